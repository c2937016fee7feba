"""Small inputs joined to larger batches: the same samples, rows and moments as one by one."""

import numpy as np
import pytest
from helpers.models import normal, parse
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlowrank.calibrate.capture import positions_per_input, sample
from onnxlowrank.calibrate.stacking import stacked_inputs
from onnxlowrank.decompose.moments import Moments
from onnxlowrank.errors import InputDataError
from onnxlowrank.graph.probe import Probe
from onnxlowrank.inputs.feeds import Inputs


def arrays(count, *shape):
    return np.random.default_rng(count).standard_normal((count, *shape)).astype(np.float32)


def singles(values, name="x", labels=None):
    reads = []

    def read(index):
        reads.append(index)
        return {name: np.array(values[index : index + 1])}

    inputs = Inputs(read, len(values), 1, "values", labels)
    return inputs, reads


def net(body, n="N"):
    """Return ``x [n, 3, h, w] -> Conv -> body -> y``."""
    shapes = {"joining": [1, 4, -1], "keeping": [0, 4, -1], "fixed": [1, 4, 8, 8]}
    text = f"g (float[{n}, 3, h, w] x) => (float[] y) {{ a = Conv <pads = [1, 1, 1, 1]> (x, weight) {body} }}"
    weight = normal(np.random.default_rng(0), 4, 3, 3, 3)
    return parse(text, weight=weight, **{name: np.array(shape) for name, shape in shapes.items()})


PLAIN = net("y = Relu (a)")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 20))
def test_stacking_keeps_every_sample_in_order(count, size):
    values = arrays(count, 2)
    stacked = singles(values)[0].stacked(size)
    assert len(stacked) == -(-count // size)
    assert (stacked.samples, stacked.batch) == (count, min(count, size))
    feeds = [feeds["x"] for feeds in stacked]
    assert {len(feed) for feed in feeds[:-1]} <= {size}
    np.testing.assert_array_equal(np.concatenate(feeds), values)


def test_labels_stay_only_where_nothing_is_joined():
    inputs, _ = singles(arrays(5, 2), labels=np.arange(5)[:, None])
    np.testing.assert_array_equal(inputs.held(1000).stacked(1).labels, inputs.labels)
    assert inputs.stacked(2).labels is None


def test_held_feeds_are_read_once_and_are_the_callers_to_change():
    inputs, reads = singles(arrays(3, 5))
    held = inputs.held(2 * 20 + 19)  # two feeds
    for feeds in held:
        feeds["x"][:] = 0
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in held]), arrays(3, 5))
    assert reads == [0, 1, 2, 2, 2]
    assert (len(held), held.batch, held.samples, held.description) == (3, 1, 3, "values")


def test_small_inputs_are_stacked_and_large_ones_are_not():
    many = stacked_inputs(PLAIN, singles(arrays(100, 3, 8, 8))[0])
    assert [len(feeds["x"]) for feeds in many] == [8] * 12 + [4]  # 480 positions of each, 4096 at most
    np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in many]), arrays(100, 3, 8, 8))
    assert stacked_inputs(PLAIN, singles(arrays(1000, 3, 2, 2))[0]).batch == 16
    assert stacked_inputs(PLAIN, singles(np.zeros((40, 3, 224, 224), np.float32))[0]).batch == 1
    assert stacked_inputs(PLAIN, singles(arrays(1, 3, 8, 8))[0]).batch == 1


@pytest.mark.parametrize(
    ("model", "stacks"),
    [
        (net("b = Reshape (a, keeping) y = Relu (b)"), True),
        (net("b = Reshape (a, joining) y = Relu (b)"), False),  # runs, but to one long row
        (net("b = Reshape (a, fixed) y = Relu (b)"), False),  # does not run
        (net("b = ReduceMean <axes = [0]> (a) y = Sub (a, b)"), False),  # mixes the samples
        (net("b = ReduceMean <keepdims = 0> (a) y = Relu (b)"), False),  # a scalar
        (net("y = Relu (a)", n="1"), False),
    ],
    ids=["dynamic", "reshaped", "raises", "mixed", "scalar", "fixed"],
)
def test_networks_that_take_no_batches_get_single_samples(model, stacks):
    inputs = stacked_inputs(model, singles(arrays(100, 3, 8, 8))[0])
    assert (inputs.batch > 1) == stacks
    np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in inputs]), arrays(100, 3, 8, 8))


def test_feeds_of_other_shapes_or_batches_are_left_alone():
    def shaped(shape_of):
        return Inputs(lambda index: {"x": np.ones(shape_of(index), np.float32)}, 100, 1, "shapes")

    for shape_of in (lambda index: (1, 3, 8, 8 + (index == 99)), lambda index: (2, 3, 8, 8)):
        inputs = stacked_inputs(PLAIN, shaped(shape_of))
        assert [feeds["x"].shape for feeds in inputs] == [shape_of(index) for index in range(100)]


def test_inputs_the_network_cannot_take_are_named():
    with pytest.raises(InputDataError, match=r"'x' \[1, 2, 8, 8\]"):
        stacked_inputs(PLAIN, singles(arrays(100, 2, 8, 8))[0])


def test_samples_of_a_stack_give_their_rows_one_after_the_other():
    """Where all positions are taken, stacked rows and moments are those of single inputs."""
    inputs, _ = singles(arrays(101, 3, 8, 8))
    stacked = stacked_inputs(PLAIN, inputs)
    assert stacked.batch == 8
    assert positions_per_input(stacked) == positions_per_input(inputs)
    probes = [Probe("rows", "a", False)]
    done = []
    one, many = ([rows["rows"] for rows in sample(PLAIN, probes, each, 0, done.append)] for each in (inputs, stacked))
    assert len(done) == 101 + 13
    np.testing.assert_allclose(np.concatenate(many), np.concatenate(one), atol=1e-5)
    moments = Moments(4), Moments(4)
    for each, chunks in zip(moments, (one, many), strict=True):
        for chunk in chunks:
            each.add(chunk)
    np.testing.assert_allclose(moments[1].mean, moments[0].mean, atol=1e-5)
    np.testing.assert_allclose(moments[1].covariance, moments[0].covariance, rtol=1e-4, atol=1e-5)


def test_equal_seeds_sample_the_same_rows_of_stacks_in_any_network():
    values = arrays(500, 3, 16, 16)
    inputs = stacked_inputs(PLAIN, singles(values)[0])
    assert inputs.batch == 16
    assert len(inputs[len(inputs) - 1]["x"]) == 500 % 16
    rows = [
        np.concatenate([rows["rows"] for rows in sample(model, [Probe("rows", "x", False)], inputs, 3, lambda _: None)])
        for model in (PLAIN, net("b = Relu (a) y = Tanh (b)"))
    ]
    np.testing.assert_array_equal(*rows)
    assert len(rows[0]) == 500 * positions_per_input(inputs)

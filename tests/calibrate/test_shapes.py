"""Sizes that inputs have in all feeds are declared, so that probes know them."""

import numpy as np
import pytest
from helpers.models import normal, parse

from onnxlowrank.calibrate.capture import sample
from onnxlowrank.calibrate.shapes import with_fixed_sizes
from onnxlowrank.graph.probe import Probe, add_probes
from onnxlowrank.graph.sizes import fixed_sizes
from onnxlowrank.inputs.feeds import Inputs

RNG = np.random.default_rng(4)
BODY = """g (float[N, 4, H, W] x) => (float[N, 4, A, B] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w) b = Relu (a) y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b) }"""
PROBES = [Probe(f"p_{name}", name, False) for name in ("x", "a", "b", "y")]


def network():
    return parse(BODY, w=normal(RNG, 4, 4, 3, 3))


def inputs_of(*shapes):
    feeds = [{"x": normal(RNG, *shape)} for shape in shapes]
    return Inputs(lambda index: dict(feeds[index]), len(feeds), shapes[0][0], "test images")


@pytest.mark.parametrize(
    ("shapes", "sizes"),
    [
        ([(2, 4, 6, 8), (1, 4, 6, 8)], (None, 4, 6, 8)),
        ([(1, 4, 6, 8), (1, 4, 6, 10)], (None, 4, 6, None)),
        ([(1, 4, 6, 8), (1, 4, 7, 10)], (None, 4, None, None)),
    ],
)
def test_what_all_feeds_share_is_fixed(shapes, sizes):
    model, inputs = network(), inputs_of(*shapes)
    fixed = with_fixed_sizes(model, inputs)
    assert fixed_sizes(fixed)["x"] == sizes
    found = list(sample(fixed, PROBES, inputs, 0, lambda amount: None))
    for one, other in zip(found, sample(model, PROBES, inputs, 0, lambda amount: None), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_tensors_of_fixed_size_share_what_depends_on_it():
    model = network()
    fixed = with_fixed_sizes(model, inputs_of((2, 4, 6, 8)))

    def added(one, *names):
        probes = [probe for probe in PROBES if probe.tensor in names]
        return len(add_probes(one, probes).graph.node)

    assert added(fixed, "x", "a", "b") == added(fixed, "a", "b") + 4
    assert added(model, "x", "a", "b") > added(model, "a", "b") + 20


def test_sizes_follow_from_inputs_not_from_what_a_file_declares():
    model = network()
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 999
    fixed = with_fixed_sizes(model, inputs_of((2, 4, 6, 8)))
    assert fixed_sizes(fixed)["y"] == (None, 4, 3, 4)
    assert model.graph.input[0].type.tensor_type.shape.dim[2].dim_param == "H"

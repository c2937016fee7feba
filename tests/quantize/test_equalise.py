"""Equalised chains against the chains they were."""

from itertools import pairwise

import numpy as np
import pytest
from helpers.models import conv_model, error, normal, parse, run
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.graph.chain import DENSE, GROUPED, SPLIT, Chain, Step
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import FLAT, Geometry
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.quantize.equalise import equalise, equalised

FLAT2 = Geometry.pointwise(2)
SAME = Geometry((1, 1), (1, 1, 1, 1), (1, 1))


def drawn_chain(rng, maps, groups, orders):
    """Return links of so many maps, in so many groups, perhaps with orders of maps on either side."""
    steps = []
    for number, (inputs, outputs) in enumerate(pairwise(maps)):
        group = groups[number] if inputs % groups[number] == 0 and outputs % groups[number] == 0 else 1
        weight = normal(rng, outputs, inputs // group, *((3, 3) if number == 1 else (1, 1)))
        take = rng.permutation(inputs) if orders else None
        give = rng.permutation(outputs) if orders else None
        steps.append(Step(f"s{number}", weight, SAME if number == 1 else FLAT2, group, take, give))
    return Chain(tuple(steps), normal(rng, maps[-1]))


@given(
    st.lists(st.sampled_from([2, 4, 6, 12]), min_size=3, max_size=5),
    st.lists(st.sampled_from([1, 2, 4]), min_size=4, max_size=4),
    st.booleans(),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_the_dense_kernel_stays(maps, groups, orders, seed):
    rng = np.random.default_rng(seed)
    chain = drawn_chain(rng, maps, groups, orders)
    sizes = [10.0 ** rng.uniform(-2, 2, count) for count in maps[1:-1]]
    found = equalise(chain, sizes)
    assert error(found.dense_kernel(), chain.dense_kernel()) <= 2e-5
    assert found.bias is chain.bias
    assert [step.weight.dtype for step in found.steps] == [step.weight.dtype for step in chain.steps]


@given(st.sampled_from([4, 8]), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_depthwise_links_are_scaled_map_by_map(maps, seed):
    rng = np.random.default_rng(seed)
    first = Step("in", normal(rng, maps, 3, 1, 1), FLAT2)
    middle = Step("depthwise", normal(rng, maps, 1, 3, 3), SAME, maps)
    last = Step("out", normal(rng, 5, maps, 1, 1), FLAT2)
    chain = Chain((first, middle, last), normal(rng, 5))
    found = equalise(chain, [rng.uniform(0.1, 5, maps), rng.uniform(0.1, 5, maps)])
    assert error(found.dense_kernel(), chain.dense_kernel()) <= 2e-5


def test_maps_that_are_nothing_are_not_blown_up():
    rng = np.random.default_rng(0)
    chain = drawn_chain(rng, [3, 4, 5], [1, 1], False)
    for sizes in ([0.0, 1.0, 2.0, 1e-30], [0.0] * 4, [np.inf, 1, 1, 1], [np.nan, 1, 1, 1]):
        found = equalise(chain, [np.array(sizes, float)])
        assert found.is_finite
        assert error(found.dense_kernel(), chain.dense_kernel()) <= 2e-5
        assert max(np.abs(one.weight).max() for one in found.steps) <= 5e3


def largest_of(model, layers, chain, tensors, x):
    """Return the largest magnitude of every map of tensors of the rewritten network."""
    written = rewrite(model, layers, {layers[0].name: chain})
    for name in tensors:
        written.graph.output.add().name = name
    values = run(written, x=x)[1:]
    return [np.abs(value).max(axis=(0, *range(2, value.ndim))) for value in values]


@pytest.mark.parametrize("lowering", [GROUPED, SPLIT, DENSE])
def test_inner_maps_are_alike_on_the_inputs(lowering):
    rng = np.random.default_rng(1)
    model = conv_model(normal(rng, 6, 8, 3, 3), normal(rng, 6), pads=[1, 1, 1, 1])
    x = normal(rng, 2, 8, 7, 7)
    inputs = Inputs(lambda index: {"x": x[index : index + 1]}, 2, 1, "random numbers")
    layers = with_shapes(model, find_layers(model), inputs)
    weight = normal(rng, 8, 4, 1, 1) * 10.0 ** rng.uniform(-2, 1, (8, 1, 1, 1)).astype(np.float32)
    first = Step("one", weight, FLAT2, 2, rng.permutation(8), rng.permutation(8)).lowered(lowering)
    chain = Chain((first, Step("two", normal(rng, 6, 8, 3, 3), SAME)), normal(rng, 6))
    (found,) = equalised(model, layers, {"conv": chain}, inputs, lambda amount: None).values()
    end = "/give" if first.give is not None else "/concat" if first.split else ""
    (sizes,) = largest_of(model, layers, found, [f"conv/lowrank/one{end}/output"], x)
    np.testing.assert_allclose(sizes, sizes.max(), rtol=1e-4)
    assert error(found.dense_kernel(), chain.dense_kernel()) <= 2e-5


def test_all_places_of_a_layer_count():
    rng = np.random.default_rng(2)
    model = parse(
        "g (float[N, 6] x) => (float[N, 5] y) { a = MatMul (x, w)  t = Mul (x, c)  b = MatMul (t, w)  y = Add (a, b) }",
        w=normal(rng, 6, 5),
        c=np.array([1, 30, 1, 1, 0.1, 1], np.float32),
    )
    x = normal(rng, 4, 6)
    inputs = Inputs(lambda index: {"x": x}, 1, 4, "random numbers")
    layers = with_shapes(model, find_layers(model), inputs)
    (layer,) = layers
    assert len(layer.places) == 2
    chain = Chain((Step("one", normal(rng, 3, 6), FLAT), Step("two", normal(rng, 5, 3), FLAT)))
    (found,) = equalised(model, layers, {layer.name: chain}, inputs, lambda amount: None).values()
    both = np.concatenate([x, x * np.array([1, 30, 1, 1, 0.1, 1])]) @ found.steps[0].weight.T
    sizes = np.abs(both).max(axis=0)
    np.testing.assert_allclose(sizes, sizes.max(), rtol=1e-4)


def test_maps_that_reach_down_are_turned_over():
    rng = np.random.default_rng(2)
    chain = drawn_chain(rng, [3, 4, 5], [1, 1], False)
    found = equalise(chain, [np.array([2.0, -4.0, 1.0, -0.5])])
    assert error(found.dense_kernel(), chain.dense_kernel()) <= 2e-5
    ratios = (found.steps[0].weight / chain.steps[0].weight)[:, 0, 0, 0]
    assert np.allclose(ratios, [2, -1, 4, -8])

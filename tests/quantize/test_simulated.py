"""Rounded chains against integer arithmetic in float64, and against what onnxruntime's quantizer writes."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.int8 import feeds_of, quantised, responses
from helpers.models import conv_model, normal, parse, run
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.graph.chain import Chain, Step, as_chain
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import Geometry
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.quantize.equalise import equalise, equalised
from onnxlowrank.quantize.ranges import Histogram, Range, least_squares, whole
from onnxlowrank.quantize.simulated import on_grid, rounding_of, with_rounded_reads, with_weights_on_grid

FLAT, SAME = Geometry.pointwise(2), Geometry((1, 1), (1, 1, 1, 1), (1, 1))
ENDS = Range(-3.0, 4.0)


def layer_of(outputs, inputs):
    """Return a layer of 3x3 taps, and its network."""
    model = conv_model(np.zeros((outputs, inputs, 3, 3), np.float32), pads=[1, 1, 1, 1])
    (layer,) = find_layers(model)
    return model, layer


def drawn_chain(rng, widths, depthwise, wide):
    """Return links between so many maps, the one of index ``wide`` of 3x3 taps, some of them depthwise."""
    steps, maps = [], widths[0]
    for number, outputs in enumerate(widths[1:]):
        outputs = maps if depthwise[number] and number < len(widths) - 2 else outputs
        group = maps if depthwise[number] and outputs == maps else 1
        taps = (3, 3) if number == wide else (1, 1)
        weight = normal(rng, outputs, maps // group, *taps) * np.exp(normal(rng, outputs, 1, 1, 1))
        steps.append(Step(f"s{number}", weight, SAME if number == wide else FLAT, group))
        maps = outputs
    return Chain(tuple(steps), normal(rng, maps))


def convolve(values, weight, group):
    """Return the convolution of ``[N, C, H, W]`` by ``[F, C/group, k, k]``, padded to keep its size, as it is exact."""
    pad = weight.shape[2] // 2
    padded = np.pad(values, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    seen = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    seen = seen.reshape(len(values), group, -1, *seen.shape[2:])
    parts = weight.reshape(group, -1, *weight.shape[1:])
    found = np.einsum("ngchwij,gfcij->ngfhw", seen, parts)
    return found.reshape(len(values), -1, *found.shape[3:])


def integers(values, low, high):
    """Return whole numbers of steps from zero, and the size of a step."""
    low, high = min(low, 0), max(high, 0)
    size = (high - low) / 255
    zero = round(-low / size)
    return np.clip(np.rint(values / size) + zero, 0, 255).astype(np.int64) - zero, size


def by_integers(chain, x, bits):
    """Return the response ``[N, F, H, W]`` of a chain in float64, and by sums of products of integers."""
    maps, sizes = x.astype(np.float64), []
    for step in chain.steps[:-1]:
        maps = convolve(maps, step.weight.astype(np.float64), step.group)
        by_map = np.moveaxis(maps, 1, 0).reshape(maps.shape[1], -1)
        sizes.append(by_map[np.arange(len(by_map)), np.abs(by_map).argmax(axis=1)])
    chain = equalise(chain, sizes)
    real, coarse, (low, high) = x.astype(np.float64), x.astype(np.float64), (ENDS.low, ENDS.high)
    for step in chain.steps:
        read, size = integers(coarse, low, high)
        most = np.abs(step.weight).reshape(len(step.weight), -1).max(axis=1)
        each = np.where(most > 0, most, 1).astype(np.float64) / (127 if bits == 8 else 64)
        weight = np.rint(step.weight / each[:, None, None, None]).astype(np.int64)
        assert np.abs(weight).max() <= (127 if bits == 8 else 64)
        coarse = convolve(read, weight, step.group) * size * each[:, None, None]
        real = convolve(real, step.weight.astype(np.float64), step.group)
        low, high = real.min(), real.max()
    return real, coarse


@given(
    st.lists(st.sampled_from([3, 4, 8]), min_size=2, max_size=4),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.integers(0, 2),
    st.sampled_from([7, 8]),
    st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_noise_is_that_of_integer_arithmetic(widths, depthwise, wide, bits, seed):
    rng = np.random.default_rng(seed)
    chain = drawn_chain(rng, widths, depthwise, min(wide, len(widths) - 2))
    x = normal(rng, 5, widths[0], 6, 7)
    real, coarse = by_integers(chain, x, bits)
    _, layer = layer_of(real.shape[1], widths[0])
    found = rounding_of(layer, chain, x, ENDS, whole, bits)
    error = np.moveaxis(coarse - real, 1, -1).reshape(-1, real.shape[1])
    assert found.noise == pytest.approx(error.var(axis=0).sum(), rel=0.01)
    np.testing.assert_allclose(found.moved, error.mean(axis=0), atol=0.02 * error.std(axis=0).max())
    assert found.variance == pytest.approx(np.moveaxis(real, 1, 0).reshape(real.shape[1], -1).var(axis=1).sum())


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("kind", ["the layer itself", "dense", "depthwise"])
def test_the_response_is_that_of_what_is_written(kind, bits):
    """What the quantizer of onnxruntime makes of the chain in a network, before it rounds the response itself."""
    rng = np.random.default_rng(3)
    model, layer = layer_of(6, 8)
    x = normal(rng, 12, 8, 7, 7)
    inputs = feeds_of(x)
    layers = with_shapes(model, [replace(layer, weight=normal(rng, 6, 8, 3, 3), bias=normal(rng, 6))], inputs)
    chain = as_chain(layers[0])
    if kind != "the layer itself":
        middle = Step("b", normal(rng, 8, *((1, 3, 3) if kind == "depthwise" else (8, 3, 3))), SAME,
                      8 if kind == "depthwise" else 1)  # fmt: skip
        ends = Step("a", normal(rng, 8, 8, 1, 1), FLAT), Step("c", normal(rng, 6, 8, 1, 1), FLAT)
        chain = Chain((ends[0], middle, ends[1]), normal(rng, 6))
    (chain,) = equalised(model, layers, {"conv": chain}, inputs, lambda amount: None).values()
    written = rewrite(model, layers, {"conv": chain})
    last = [written.graph.node[-1].name]
    (real,), (coarse,) = (responses(one, x, last) for one in (written, quantised(written, inputs, weight_bits=bits)))
    error = np.moveaxis(coarse - real, 1, -1).reshape(-1, 6).astype(np.float64)
    ends = least_squares_of(x)
    found = rounding_of(layers[0], chain, x, ends, least_squares, bits)
    assert found.noise == pytest.approx(error.var(axis=0).sum(), rel=0.02)


def least_squares_of(values):
    seen = Histogram()
    seen.add(values)
    return least_squares(seen)


def test_fully_connected_layers_have_rows_of_maps():
    rng = np.random.default_rng(5)
    model = parse("g (float[N, 7, 6] x) => (float[N, 7, 5] y) { m = MatMul (x, w)  y = Add (m, b) }",
                  w=normal(rng, 6, 5), b=normal(rng, 5))  # fmt: skip
    (layer,) = find_layers(model)
    x = normal(rng, 4, 7, 6)
    ends = Range(-4.0, 4.0)
    found = rounding_of(layer, as_chain(layer), x, ends, whole, 8)
    (step,) = with_weights_on_grid(as_chain(layer), 8).steps
    error = (on_grid(x, ends) @ step.weight.T - x @ layer.weight.T).reshape(-1, 5).astype(np.float64)
    assert found.noise == pytest.approx(error.var(axis=0).sum(), rel=1e-3)
    assert found.moved.shape == (5,)


def test_a_depthwise_chain_whose_terms_cancel_is_noisier_than_the_layer():
    rng = np.random.default_rng(6)
    _, layer = layer_of(4, 8)
    x = normal(rng, 8, 8, 6, 6)
    one, taps, out = normal(rng, 4, 8, 1, 1), normal(rng, 4, 1, 3, 3), normal(rng, 4, 4, 1, 1)
    noise = []
    for gain in (0.0, 20.0):
        inputs = np.concatenate([one, one])
        outputs = np.concatenate([(1 + gain) * out, -gain * out], axis=1)
        steps = Step("a", inputs, FLAT), Step("b", np.concatenate([taps, taps]), SAME, 8), Step("c", outputs, FLAT)
        rounding = rounding_of(layer, Chain(steps), x + 0.3 * gain / 20, ENDS, whole, 8)
        noise.append(rounding.noise / rounding.variance)
    assert noise[1] > 20 * noise[0]


def test_only_the_readers_that_are_named_read_what_is_rounded():
    model = parse("g (float[N, 8] x) => (float[N, 8] y, float[N, 8] z) { y = Add (x, x)  z = Neg (x) }")
    x = np.linspace(-2, 2, 80, dtype=np.float32).reshape(10, 8)
    y, z = run(with_rounded_reads(model, ["n_y"], {"x": Range(-1.0, 1.5)}), x=x)
    np.testing.assert_array_equal(z, -x)
    np.testing.assert_allclose(y, 2 * on_grid(x, Range(-1.0, 1.5)), rtol=1e-6)
    assert y.min() == pytest.approx(-2, abs=0.02)
    assert y.max() == pytest.approx(3, abs=0.02)
    assert len(model.graph.node) == 2


def test_inner_maps_that_are_nothing_are_not_rounded():
    rng = np.random.default_rng(7)
    _, layer = layer_of(4, 8)
    chain = Chain((Step("a", np.zeros((4, 8, 1, 1), np.float32), FLAT), Step("b", normal(rng, 4, 4, 3, 3), SAME)))
    found = rounding_of(layer, chain, normal(rng, 4, 8, 6, 6), ENDS, whole, 8)
    assert (found.noise, found.variance) == (0, 0)

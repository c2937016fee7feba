"""Sampling layer after layer gives what sampling the whole network gives, and runs less of it."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.models import normal, parse

from onnxlowrank.calibrate import prefix_cache
from onnxlowrank.calibrate.capture import sample
from onnxlowrank.calibrate.prefix_cache import PrefixCache
from onnxlowrank.graph.chain import as_chain
from onnxlowrank.graph.cut import behind, frontier
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.probe import Probe, expose
from onnxlowrank.inputs.feeds import Inputs

RNG = np.random.default_rng(8)
WEIGHTS = {name: 0.3 * normal(RNG, 4, 4, 3, 3) for name in "uvw"}
CHAIN = """g (float[N, 4, H, W] x) => (float[N, 4, H, W] d) {
    a = Conv <pads = [1, 1, 1, 1]> (x, u) b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, v) r = Relu (c)
    d = Conv <pads = [1, 1, 1, 1]> (r, w) }"""
RESIDUAL = """g (float[N, 4, H, W] x) => (float[N, 4, H, W] d) {
    a = Conv <pads = [1, 1, 1, 1]> (x, u) b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, v) s = Add (c, b) r = Relu (s)
    d = Conv <pads = [1, 1, 1, 1]> (r, w) }"""
FROM_THE_INPUT = """g (float[N, 4, H, W] x) => (float[N, 4, H, W] d) {
    a = Conv <pads = [1, 1, 1, 1]> (x, u) b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, v) s = Add (c, x) r = Relu (s)
    d = Conv <pads = [1, 1, 1, 1]> (r, w) }"""
SHAPED = """g (float[N, 4, H, W] x) => (float[N, 4, H, W] d) {
    a = Conv <pads = [1, 1, 1, 1]> (x, u) b = Relu (a) h = Shape (b) f = Reshape (b, h)
    c = Conv <pads = [1, 1, 1, 1]> (f, v) r = Relu (c)
    d = Conv <pads = [1, 1, 1, 1]> (r, w) }"""


def inputs_of(shapes):
    feeds = [{"x": normal(RNG, *shape)} for shape in shapes]
    return Inputs(lambda index: dict(feeds[index]), len(feeds), shapes[0][0], "test images")


def no_progress(amount):
    pass


@pytest.mark.parametrize(
    ("body", "tensor", "expected"),
    [
        (CHAIN, "d", ["d"]),
        (CHAIN, "b", ["b"]),
        (CHAIN, "x", None),
        (RESIDUAL, "b", ["b"]),
        (RESIDUAL, "c", ["b", "c"]),
        (FROM_THE_INPUT, "b", ["x", "b"]),
        (FROM_THE_INPUT, "r", ["r"]),
        (SHAPED, "h", ["b", "h"]),
        (SHAPED, "f", ["f"]),
    ],
)
def test_what_carries_the_rest(body, tensor, expected):
    assert frontier(parse(body, **WEIGHTS), tensor) == expected


def test_constants_are_no_matter():
    body = """g (float[N, 4] x, float[4] p) => (float[N, 4] y) {
        k = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> () q = Neg (k) a = Exp (x) b = Add (a, q) c = Mul (b, p)
        y = Abs (c) }"""
    model = parse(body)
    assert frontier(model, "b") == ["p", "b"]
    assert frontier(model, "c") == ["c"]
    assert frontier(model, "q") is None
    (info,) = expose(model, ["a"]).graph.output
    assert behind(model, [info]) is None
    rest = behind(model, [info, model.graph.input[1]])
    assert [item.name for item in rest.graph.input] == ["a", "p"]
    assert [node.op_type for node in rest.graph.node] == ["Constant", "Neg", "Add", "Mul", "Abs"]


def test_what_needs_other_inputs_cannot_be_cut():
    model = parse(FROM_THE_INPUT, **WEIGHTS)
    (info,) = expose(model, ["c"]).graph.output
    assert behind(model, [info]) is None


@pytest.mark.parametrize("body", [CHAIN, RESIDUAL, FROM_THE_INPUT, SHAPED])
@pytest.mark.parametrize(
    "shapes", [[(1, 4, 6, 5)] * 4, [(2, 4, 6, 5)] * 2 + [(1, 4, 6, 5)], [(1, 4, 6, 5), (1, 4, 4, 9)]]
)
def test_equal_rows(body, shapes):
    model, inputs = parse(body, **WEIGHTS), inputs_of(shapes)
    walking = PrefixCache(model, [], inputs, seed=3)
    for settled, tensors in (
        ("x", ["x"]),
        ("x", ["a"]),
        ("b", ["c"]),
        ("b", ["r", "b"]),
        ("r", ["d", "r"]),
        ("r", ["a"]),
    ):
        probes = [Probe(f"p_{name}", name, False) for name in tensors]
        found = walking.sample({}, probes, settled, no_progress)
        for one, other in zip(found, sample(model, probes, inputs, 3, no_progress), strict=True):
            assert set(one) == set(other)
            for name in one:
                np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("body", [CHAIN, RESIDUAL, FROM_THE_INPUT])
def test_what_was_run_is_not_run_again(monkeypatch, body):
    model, inputs = parse(body, **WEIGHTS), inputs_of([(1, 4, 6, 5)] * 3)
    ran = []

    def counting(probed, *rest):
        ran.append(sum(node.op_type == "Conv" for node in probed.graph.node))
        return run(probed, *rest)

    run = prefix_cache.run_probes
    monkeypatch.setattr(prefix_cache, "run_probes", counting)
    walking = PrefixCache(model, [], inputs, seed=3)
    for settled, tensor in (("x", "a"), ("b", "c"), ("r", "d")):
        walking.sample({}, [Probe("p", tensor, False)], settled, no_progress)
    assert ran == [1, 2, 2]  # the dense layer that is sampled is run, and run again as what became of it


def test_what_is_not_settled_is_run_as_it_is_then():
    model, inputs, probes = parse(CHAIN, **WEIGHTS), inputs_of([(1, 4, 6, 5)] * 3), [Probe("p", "d", False)]
    layers = find_layers(model)
    chains = {layer.name: as_chain(replace(layer, weight=WEIGHTS["w"])) for layer in layers[:2]}
    first, second = (layer.name for layer in layers[:2])
    walking = PrefixCache(model, layers, inputs, seed=3)
    walking.sample({first: chains[first]}, [Probe("p", "c", False)], "b", no_progress)
    found = walking.sample({second: chains[second]}, probes, "r", no_progress)
    changed = parse(CHAIN, **{**WEIGHTS, "u": WEIGHTS["w"], "v": WEIGHTS["w"]})
    for one, other in zip(found, sample(changed, probes, inputs, 3, no_progress), strict=True):
        np.testing.assert_allclose(one["p"], other["p"], rtol=1e-5, atol=1e-6)


def test_of_a_layer_of_two_places_one_may_be_settled():
    body = """g (float[N, 4, H, W] x) => (float[N, 4, H, W] c) {
        a = Conv <pads = [1, 1, 1, 1]> (x, u) b = Relu (a) c = Conv <pads = [1, 1, 1, 1]> (b, u) }"""
    model, inputs, probes = parse(body, u=WEIGHTS["u"]), inputs_of([(1, 4, 6, 5)] * 3), [Probe("p", "c", False)]
    (layer,) = find_layers(model)
    assert len(layer.places) == 2
    chains = {layer.name: as_chain(replace(layer, weight=WEIGHTS["w"]))}
    walking = PrefixCache(model, [layer], inputs, seed=3)
    changed = parse(body, u=WEIGHTS["w"])
    for _ in range(2):
        found = walking.sample(chains, probes, "b", no_progress)
        for one, other in zip(found, sample(changed, probes, inputs, 3, no_progress), strict=True):
            np.testing.assert_allclose(one["p"], other["p"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reason", ["too large", "no room"])
def test_without_room_networks_run_from_their_inputs(monkeypatch, reason):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if reason == "too large":
        monkeypatch.setattr(prefix_cache, "MOST_BYTES", 3 * 4 * 6 * 5 * 4 - 1)
    else:
        monkeypatch.setattr(np, "save", full)
    model, inputs = parse(CHAIN, **WEIGHTS), inputs_of([(1, 4, 6, 5)] * 3)
    walking = PrefixCache(model, [], inputs, seed=3)
    for settled, tensor in (("b", "c"), ("r", "d")):
        probes = [Probe("p", tensor, False)]
        found = walking.sample({}, probes, settled, no_progress)
        expected = list(sample(model, probes, inputs, 3, no_progress))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one["p"], other["p"])

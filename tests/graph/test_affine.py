"""Constants folded into convolutions: fewer nodes compute the same."""

import numpy as np
import onnx
import pytest
from helpers.models import error, normal, parse, run
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlowrank import optimize
from onnxlowrank.graph.affine import fold_affine, folded_away
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.normalise import normalise


def ops(model):
    return [node.op_type for node in model.graph.node]


AFFINE = {
    "Mul": "Mul ({}, {})",
    "Mul, the other way": "Mul ({1}, {0})",
    "Add": "Add ({}, {})",
    "Sub": "Sub ({}, {})",
    "Sub, the other way": "Sub ({1}, {0})",
    "Div": "Div ({}, {})",
}


@given(
    before=st.lists(st.sampled_from(list(AFFINE)), max_size=3),
    behind=st.lists(st.sampled_from(list(AFFINE)), max_size=3),
    axes=st.integers(1, 3),
    group=st.sampled_from([1, 2, 4]),
    pad=st.integers(0, 1),
    bias=st.booleans(),
    per_map=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=60)
def test_it_computes_the_same(before, behind, axes, group, pad, bias, per_map, seed):
    rng = np.random.default_rng(seed)
    lines, tensor, constants = [], "x", {}
    for number, op in enumerate([*before, "Conv", *behind]):
        name, constant = f"t{number}", f"c{number}"
        if op == "Conv":
            lines.append(f"{name} = Conv <group = {group}, pads = {[pad] * 2 * axes}> ({tensor}, w{', b' * bias})")
        else:
            lines.append(f"{name} = {AFFINE[op].format(tensor, constant)}")
            values = normal(rng, 4, *[1] * axes) if per_map else normal(rng, 1)
            constants[constant] = np.sign(values) * (0.5 + np.abs(values))
        tensor = name
    lines.append(f"y = Relu ({tensor})")
    if bias:
        constants["b"] = normal(rng, 4)
    space = ", ".join(["5"] * axes)
    model = parse(
        f"g (float[N, 4, {space}] x) => (float[N, 4, {', '.join(['M'] * axes)}] y) {{ {' '.join(lines)} }}",
        w=normal(rng, 4, 4 // group, *[3] * axes),
        **constants,
    )
    found = fold_affine(model)
    onnx.checker.check_model(found, full_check=True)
    x = normal(rng, 2, 4, *[5] * axes)
    assert error(run(found, x=x)[0], run(model, x=x)[0]) <= 1e-5
    assert folded_away(model, found) == len(ops(model)) - len(ops(found))
    assert ops(found)[-2:] == ["Conv", "Relu"]
    if not pad:
        assert ops(found) == ["Conv", "Relu"]


HARD = {
    "sigmoid": "h = Add (x, three)  c = Clip (h, zero, six)  y = Div (c, six)",
    "sigmoid, times a sixth": "h = Add (three, x)  c = Clip (h, zero, six)  y = Mul (c, sixth)",
    "swish": "h = Add (x, three)  c = Clip (h, zero, six)  m = Mul (x, c)  y = Div (m, six)",
    "swish, divided first": "h = Add (x, three)  c = Clip (h, zero, six)  m = Div (c, six)  y = Mul (m, x)",
}


def hard(which):
    numbers = {"zero": 0, "three": 3, "six": 6, "sixth": 1 / 6}
    return parse(
        f"g (float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y) {{ {HARD[which]} }}",
        **{name: np.float32(value) for name, value in numbers.items() if name in HARD[which]},
    )


@pytest.mark.parametrize("which", HARD)
def test_hard_sigmoids_that_are_spelt_out(which):
    model = hard(which)
    found = fold_affine(model)
    onnx.checker.check_model(found, full_check=True)
    assert sorted(ops(found)) == (["HardSigmoid", "Mul"] if "swish" in which else ["HardSigmoid"])
    x = 4 * normal(np.random.default_rng(0), 2, 4, 5, 5)
    assert error(run(found, x=x)[0], run(model, x=x)[0]) <= 1e-6


@pytest.mark.parametrize(
    "lines",
    [
        "c = Conv (x, w)  y = Mul (c, c)",  # no constant
        "c = Conv (x, w)  m = Mul (c, s)  y = Add (m, c)",  # read elsewhere, too
        "y = Conv (x, w)  m = Mul (y, s)  z = Relu (m)",  # an output
        "c = Conv (x, w)  y = Mul (c, wide)",  # not map by map
        "c = Conv (x, w)  d = Conv (x, w)  m = Mul (c, s)  y = Add (m, d)",  # a weight that is shared
        "c = Conv (x, w)  y = Mul (c, s)  z = Identity (w)",  # a weight that is read elsewhere
        "t = Add (x, s)  y = Conv <pads = [1, 1, 1, 1]> (t, w)",  # what is padded is not added to
        "h = Add (x, s)  y = Clip (h, low, high)",  # no hard sigmoid
    ],
)
def test_what_cannot_be_folded_stays(lines):
    given = {
        "w": np.ones((4, 4, 1, 1), "f"),
        "s": np.float32(2),
        "wide": np.ones(5, "f"),
        "low": np.float32(0),
        "high": np.float32(6),
    }
    outputs = "float[N, 4, A, B] y, float[N, 4, A, B] z" if " z = " in lines else "float[N, 4, A, B] y"
    model = parse(
        f"g (float[N, 4, 5, 5] x) => ({outputs}) {{ {lines} }}",
        **{name: value for name, value in given.items() if f" {name}" in lines or f"{name})" in lines},
    )
    assert fold_affine(model) is model


@pytest.mark.parametrize("open_sizes", [False, True])
def test_factors_that_make_maps_stay(open_sizes):
    """A grey image, normalised by the numbers of three colours, has three maps only behind that."""
    rng = np.random.default_rng(2)
    sizes = "N, C, H, W" if open_sizes else "N, 1, 6, 6"
    model = parse(
        f"""g (float[{sizes}] x) => (float[N, 8, A, B] y) {{
            d = Sub (x, mean)  m = Mul (d, scale)  c = Conv (m, w)  y = Relu (c)
        }}""",
        mean=normal(rng, 1, 3, 1, 1),
        scale=normal(rng, 3, 1, 1),
        w=normal(rng, 8, 3, 3, 3),
    )
    found = normalise(model)
    x = normal(rng, 2, 1, 6, 6)
    assert error(run(found, x=x)[0], run(model, x=x)[0]) <= 1e-5
    assert "Sub" in ops(found)


def block(seed=0):
    """Return learnable affine blocks around hard swishes, as PP-LCNet has them."""
    rng = np.random.default_rng(seed)
    return parse(
        """g (float[N, 8, 12, 12] x) => (float[N, 32, 12, 12] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  a1 = Mul (s, a)  a2 = Add (a1, t)
            h = Add (a2, three)  k = Clip (h, zero, six)  m = Mul (a2, k)  d = Div (m, six)
            d1 = Mul (s, d)  d2 = Add (d1, t)
            y = Conv <pads = [1, 1, 1, 1]> (d2, w2, b2)
        }""",
        w1=normal(rng, 32, 8, 3, 3) / 8,
        b1=normal(rng, 32),
        w2=normal(rng, 32, 32, 3, 3) / 16,
        b2=normal(rng, 32),
        s=np.array([1.3], "f"),
        t=np.array([-0.2], "f"),
        three=np.float32(3),
        zero=np.float32(0),
        six=np.float32(6),
    )


def test_layers_know_the_hard_swish_behind_them():
    model = block()
    found = normalise(model)
    assert ops(found) == ["Conv", "HardSigmoid", "Mul", "Add", "Conv"]
    assert folded_away(model, found) == 5
    assert find_layers(found)[0].activation.name == "hard_swish"


def test_where_folding_is_enough_no_layer_is_decomposed(monkeypatch):
    from helpers.stopwatch import CountingTimer

    from onnxlowrank import pipeline
    from onnxlowrank.measure.latency import Latency
    from onnxlowrank.plan import builder, goals, network, search

    def by_nodes(models, *_, **__):
        return [Latency((float(len(model.graph.node)),) * 7) for model in models]

    monkeypatch.setattr(pipeline, "ChainTimer", CountingTimer)
    monkeypatch.setattr(network.Network, "layer_times", lambda self, *models: [{} for _ in models])
    monkeypatch.setattr(network.Network, "dense_times", ({}, 5.0))
    for module in (builder, goals, network, search):
        monkeypatch.setattr(module, "measure_in_sessions", by_nodes)
    model, rng = block(), np.random.default_rng(1)
    result = optimize(model, speedup=2.0, calibration=normal(rng, 24, 8, 12, 12))
    assert result.latency_speedup == 10 / 5
    assert {layer.kept_because for layer in result.layers} == {"constants folded into convolutions reach the goal"}
    assert any(note.startswith("5 constant factors and addends were folded") for note in result.notes)
    assert result.agreement.relative_error <= 1e-5

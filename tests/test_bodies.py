"""Networks with If and Loop: what bodies capture stays as it is, what is inside is listed with the reason."""

import numpy as np
import onnx
import pytest
from helpers.models import error, normal, parse, run
from helpers.stopwatch import no_stopwatch
from onnx import numpy_helper

from onnxlowrank import analyze, optimize
from onnxlowrank.plan.manual_ranks import ManualRank

WIDTH = 32


def low(rng, outputs, inputs, *kernel):
    fan_in = inputs * int(np.prod(kernel))
    made = normal(rng, outputs, 6) @ normal(rng, 6, fan_in) / np.sqrt(6 * fan_in / 2)
    return made.reshape(outputs, inputs, *kernel).astype(np.float32)


def network(seed=0):
    """Return three layers in a row; bodies read the weight of one, what others compute, and their own."""
    rng = np.random.default_rng(seed)
    shape = f"float[N, {WIDTH}, 6, 6]"
    return parse(
        f"""g (float[N, 4, 6, 6] x, int64 n) => ({shape} y, {shape} z) {{
            a = Conv <pads = [1, 1, 1, 1]> (x, wa)  ar = Relu (a)
            b = Conv <pads = [1, 1, 1, 1]> (ar, wb, bb)  br = Relu (b)
            c = Conv <pads = [1, 1, 1, 1]> (br, wc)  cr = Relu (c)
            go = Constant <value = bool {{1}}> ()
            y = Loop (n, go, cr) <body = step (int64 i, bool k, {shape} s) => (bool k2, {shape} t) {{
                k2 = Identity (k)
                u = Conv <pads = [1, 1, 1, 1]> (s, wc)
                v = Add (u, b)
                w = Tanh (v)
                t = Conv (w, own)
            }}>
            top = ReduceMax <keepdims = 0> (x)
            large = Greater (top, zero)
            z = If (large) <
                then_branch = yes () => ({shape} p) {{ p = Conv (br, own) }},
                else_branch = no () => ({shape} q) {{ q = Neg (cr) }}
            >
        }}""",
        wa=low(rng, WIDTH, 4, 3, 3),
        wb=low(rng, WIDTH, WIDTH, 3, 3),
        bb=0.1 * normal(rng, WIDTH),
        wc=low(rng, WIDTH, WIDTH, 3, 3),
        own=normal(rng, WIDTH, WIDTH, 1, 1) / 6,
        zero=np.float32(0),
    )


def feeds(count=24, seed=1):
    """Return inputs of which every third takes the other branch of the If than the others."""
    rng = np.random.default_rng(seed)
    given = [{"x": np.kron(normal(rng, 1, 4, 2, 2), np.ones((3, 3), "f")), "n": np.array(2)} for _ in range(count)]
    for one in given[::3]:
        one["x"] = -np.abs(one["x"])
    return given


def constants(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def carriers(model):
    return [node for node in model.graph.node if node.op_type in ("If", "Loop")]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_what_bodies_capture_stays(precision, monkeypatch):
    no_stopwatch(monkeypatch, block=8)
    model = network()
    ranks = {"n_b": ManualRank((8,), method="channel")}
    result = optimize(model, max_macs=1, calibration=feeds(), precision=precision, ranks=ranks, exclude=["n_a"])
    onnx.checker.check_model(result.model, full_check=True)
    found = {layer.name: layer for layer in result.layers}
    assert found["n_b"].method != "keep"
    assert found["n_c"].kept_because == "its weight is shared by nodes that compute something else with it"
    inside = {layer.kept_because for layer in result.layers if "inside" in layer.kept_because}
    assert inside == {"inside Loop 'n_y'", "inside If 'n_z'"}
    assert sum("inside" in layer.kept_because for layer in result.layers) == 3
    before, after = constants(model), constants(result.model)
    for name in ("wc", "own"):
        np.testing.assert_array_equal(after[name], before[name])
    for count in (0, 3):
        for sign in (1, -1):
            given = {"x": sign * np.abs(feeds(1, seed=7)[0]["x"]), "n": np.array(count)}
            for one, other in zip(run(result.model, **given), run(model, **given), strict=True):
                assert error(one, other) < (0.15 if precision == "float32" else 0.4)


def test_a_body_that_reads_what_a_rewritten_layer_computes_reads_what_its_chain_computes(monkeypatch):
    no_stopwatch(monkeypatch, block=8)
    model = network()
    result = optimize(model, max_macs=1, calibration=feeds(), only=["n_b"])
    (loop, _), (before, _) = carriers(result.model), carriers(model)
    assert "b" in [name for node in result.model.graph.node for name in node.output]
    assert [node.op_type for node in loop.attribute[0].g.node] == [node.op_type for node in before.attribute[0].g.node]


def test_analyze_lists_them():
    found = analyze(network(), calibration=feeds())
    reasons = [layer.kept_because for layer in found.layers if layer.kept_because]
    assert reasons == ["inside Loop 'n_y'"] * 2 + ["inside If 'n_z'"]

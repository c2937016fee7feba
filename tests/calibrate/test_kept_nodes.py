"""What belongs to no layer: its work, its weights and the reason, on runs of small networks."""

import numpy as np
import pytest
from helpers.models import normal, parse
from onnx import helper, parser

from onnxlowrank.calibrate.kept_nodes import kept_nodes
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.inputs.sources import open_inputs
from onnxlowrank.inputs.specs import input_specs

RNG = np.random.default_rng(9)
GIVEN = "its output_shape is given: its padding depends on its input"


def found(model, **feeds):
    """Return the layers of a network, as they were run on one input, and its kept nodes by their names."""
    normalised = normalise(model)
    inputs = open_inputs([feeds], input_specs(model), None)
    layers = with_shapes(normalised, find_layers(normalised), inputs)
    return layers, {one.name: one for one in kept_nodes(normalised, layers, inputs)}


@pytest.mark.parametrize(
    ("lines", "reason", "macs", "parameters"),
    [
        ("y = ConvTranspose <output_shape = [5, 5, 5]> (x, t3)", GIVEN, 2 * 64 * 3 * 8, 2 * 3 * 8),
        ("y = Conv (line, kernel)", "its weight is computed", 3 * 62 * 2 * 3, 0),
        ("y = MatMul (x, x)", "both operands are computed", 2 * 64 * 4, 0),
        ("y = MatMul (m, x)", "constant on the left, its input has not 3 axes but 5", 2 * 4 * 5 * 16, 20),
        ("y = MatMul (x, stack)", "batched: its weight has 3 axes", 2 * 64 * 5, 4 * 4 * 5),
        ("y = MatMul (x, v)", "its weight is a vector", 2 * 64, 4),
        ("y = Gemm (f, matrix)", "its weight is computed", 32 * 4 * 3, 0),
        ("y = Gemm (g, w, bias)", "its bias is computed", 4 * 32 * 3, 3 * 32),
        ("y = Gemm (g, w, rows)", "its addend is no bias: rows differ", 4 * 32 * 3, 3 * 32 + 4 * 3),
        ('y = Einsum <equation = "nchwd,fc->nfhwd"> (x, e)', "no pass is for Einsum", 2 * 64 * 3, 6),
        (
            "y = LSTM <hidden_size = 5> (s, lw, lr)",
            "recurrent layer (LSTM): the operator takes its recurrent weights whole",
            2 * 16 * 20 * (4 + 5),
            20 * 9,
        ),
        (
            "y = GRU <hidden_size = 5> (s, gw, gr)",
            "recurrent layer (GRU): the operator takes its recurrent weights whole",
            2 * 16 * 15 * (4 + 5),
            15 * 9,
        ),
    ],
)
def test_reasons_work_and_weights(lines, reason, macs, parameters):
    constants = {
        "t3": normal(RNG, 2, 3, 2, 2, 2), "k1": normal(RNG, 3, 2, 3),
        "m": normal(RNG, 5, 4), "stack": normal(RNG, 4, 4, 5), "v": normal(RNG, 4), "w": normal(RNG, 32, 3),
        "rows": normal(RNG, 4, 3), "e": normal(RNG, 3, 2), "lw": normal(RNG, 1, 20, 4), "lr": normal(RNG, 1, 20, 5),
        "gw": normal(RNG, 1, 15, 4), "gr": normal(RNG, 1, 15, 5), "tall": np.array([32, 4]), "wide": np.array([4, 32]),
        "flat": np.array([1, 2, 64]), "steps": np.array([2, 16, 4]), "square": np.array([4, 3]), "three": np.array([3]),
    }  # fmt: skip
    body = f"""g (float[1, 2, 4, 4, 4] x) => (float y) {{
        top = ReduceMax <keepdims = 0> (x)
        kernel = Mul (top, k1)
        matrix = Expand (top, square)
        bias = Expand (top, three)
        f = Reshape (x, tall)
        g = Reshape (x, wide)
        line = Reshape (x, flat)
        s = Reshape (x, steps)
        {lines}
    }}"""
    layers, kept = found(parse(body, **constants), x=normal(RNG, 1, 2, 4, 4, 4))
    assert layers == []
    one = kept["n_y"]
    assert (one.reason, one.macs, one.parameters, one.is_counted) == (reason, macs, parameters, True)
    assert one.is_conv == ("Conv" in lines)


def test_nothing_is_kept_of_a_network_of_layers():
    model = parse("g (float[N, 2, 5, 5] x) => (float[N, 3, 3, 3] y) { y = Conv (x, w) }", w=normal(RNG, 3, 2, 3, 3))
    (layer,), kept = found(model, x=normal(RNG, 4, 2, 5, 5))
    assert kept == {}
    assert layer.macs == 9 * 3 * 18


def test_weights_of_several_nodes_are_counted_once():
    up = "ConvTranspose <output_shape = [5, 5]> (x, w)"
    body = f"g (float[1, 2, 4, 4] x) => (float y, float z) {{ y = {up} z = {up} }}"
    _, kept = found(parse(body, w=normal(RNG, 2, 3, 2, 2)), x=normal(RNG, 1, 2, 4, 4))
    assert [one.parameters for one in kept.values()] == [24, 0]
    assert [one.macs for one in kept.values()] == [2 * 16 * 12] * 2


def test_for_one_sample_whatever_the_layout():
    """Of four samples each: steps first, rows of all steps in one matrix, several parts of a sample, and no layer."""
    body = """g (float[4, 6, 5] x) => (float y, float z, float p, float s) {
        first = Transpose <perm = [1, 0, 2]> (x)
        y = MatMul (first, w)
        r = Reshape (x, rows)
        z = Gemm (r, w)
        i = Reshape (x, parts)
        p = Conv (i, k)
        last = Transpose <perm = [0, 2, 1]> (x)
        s = MatMul (x, last)
    }"""
    constants = {
        "w": normal(RNG, 5, 7),
        "rows": np.array([24, 5]),
        "parts": np.array([8, 3, 5]),
        "k": normal(RNG, 2, 3, 2),
    }
    layers, kept = found(parse(body, **constants), x=normal(RNG, 4, 6, 5))
    assert {one.name: one.macs for one in layers} == {"n_y": 6 * 5 * 7, "n_z": 6 * 5 * 7, "n_p": 2 * 4 * 12}
    assert kept["n_s"].macs == 6 * 6 * 5


def test_the_first_axis_may_be_no_batch():
    body = "g (float[64] x) => (float y, float z) { u = Reshape (x, shape) y = Conv (u, k) z = ConvTranspose (u, k) }"
    layers, kept = found(parse(body, shape=np.array([1, 1, 64]), k=normal(RNG, 1, 1, 3)), x=normal(RNG, 64))
    assert layers[0].macs == 62 * 3
    assert layers[1].macs == 64 * 3
    assert not kept


IF = """g (float[N, 2, 4, 4] x, bool t) => (float y) {
    a = Conv (x, w)
    y = If (t) <
        then_branch = yes () => (float p) { p = ConvTranspose (a, v) },
        else_branch = no () => (float q) { c = Conv (x, w2) q = Conv (c, w2) }
    >
}"""


@pytest.mark.parametrize("taken", [True, False])
def test_the_dearer_branch_of_an_if_counts(taken):
    weights = {"w": normal(RNG, 3, 2, 3, 3), "v": normal(RNG, 3, 4, 2, 2), "w2": normal(RNG, 2, 2, 2, 2)}
    layers, kept = found(parse(IF, **weights), x=normal(RNG, 1, 2, 4, 4), t=np.array(taken))
    assert [one.name for one in layers] == ["n_a"]
    reason = "inside If 'n_y'"
    got = {one.op: (one.reason, one.macs, one.parameters) for one in kept.values() if one.macs or one.op != "Conv"}
    assert sum(one.macs for one in kept.values()) == max(3 * 4 * 16, 9 * 16 + 4 * 16)
    assert got["Conv"][0] == reason
    assert got["ConvTranspose"] == (reason + ", the other branch of which is dearer", 0, 48)
    assert len(kept) == 3
    assert all(one.is_counted for one in kept.values())
    assert {one.place for one in kept.values()} == {"n_y"}


def test_a_branch_that_is_not_taken_may_not_suit_the_input():
    weights = {"w": normal(RNG, 3, 2, 3, 3), "v": normal(RNG, 3, 4, 2, 2), "w2": normal(RNG, 2, 2, 2, 2)}
    model = parse(IF.replace("c = Conv (x, w2)", "c = Reshape (x, odd)"), odd=np.array([1, 2, 7, 7]), **weights)
    _, kept = found(model, x=normal(RNG, 1, 2, 4, 4), t=np.array(True))
    assert {one.op: (one.macs, one.is_counted) for one in kept.values()} == {
        "ConvTranspose": (3 * 4 * 16, True),
        "Conv": (0, True),
    }


LOOP = """g (float[1, 2, 6, 6] x, int64 n) => (float y) {
    go = Constant <value = bool {1}> ()
    y = Loop (n, go, x) <
        body = b (int64 i, bool k, float[1, 2, h, w] s) => (bool k2, float[1, 2, h, w] t) {
            top = Constant <value = int64 {STOP}> ()
            k2 = Less (i, top)
            t = Conv <pads = PADS> (s, w)
        }
    >
}"""


@pytest.mark.parametrize(("stop", "rounds"), [(10, 5), (1, 2)])  # as often as it says, or until the condition fails
def test_a_loop_counts_as_often_as_it_goes_round(stop, rounds):
    model = parse(LOOP.replace("STOP", str(stop)).replace("PADS", "[1, 1, 1, 1]"), w=normal(RNG, 2, 2, 3, 3))
    _, kept = found(model, x=normal(RNG, 1, 2, 6, 6), n=np.array(5))
    (one,) = kept.values()
    assert (one.op, one.reason, one.place) == ("Conv", "inside Loop 'n_y'", "n_y")
    assert (one.macs, one.parameters, one.is_counted, one.is_conv) == (rounds * 36 * 36, 36, True, True)


def test_a_loop_whose_shapes_change_is_not_fully_counted():
    model = parse(LOOP.replace("STOP", "10").replace("PADS", "[2, 2, 2, 2]"), w=normal(RNG, 2, 2, 3, 3))
    _, kept = found(model, x=normal(RNG, 1, 2, 6, 6), n=np.array(3))
    (one,) = kept.values()
    assert (one.macs, one.is_counted) == (3 * 64 * 36, False)


def test_loops_in_loops_and_scans():
    body = """g (float[1, 4] x, float[7, 1, 4] xs) => (float y, float z) {
        three = Constant <value = int64 {3}> ()
        two = Constant <value = int64 {2}> ()
        go = Constant <value = bool {1}> ()
        y = Loop (three, go, x) <body = outer (int64 i, bool k, float[1, 4] s) => (bool k2, float[1, 4] t) {
            k2 = Identity (k)
            t = Loop (two, go, s) <body = inner (int64 j, bool l, float[1, 4] u) => (bool l2, float[1, 4] v) {
                l2 = Identity (l)
                v = MatMul (u, w)
            }>
        }>
        z, last = Scan <
            num_scan_inputs = 1,
            body = step (float[1, 4] h, float[1, 4] e) => (float[1, 4] h2, float[1, 4] o) {
            h1 = MatMul (h, w)
            h2 = Add (h1, e)
            o = Identity (h2)
        }> (x, xs)
    }"""
    _, kept = found(parse(body, w=normal(RNG, 4, 4)), x=normal(RNG, 1, 4), xs=normal(RNG, 7, 1, 4))
    assert [(one.op, one.reason, one.macs, one.is_counted) for one in kept.values()] == [
        ("MatMul", "inside Loop 'n_y'", 3 * 2 * 16, True),
        ("MatMul", "inside Scan 'n_z'", 7 * 16, True),
    ]
    assert [one.parameters for one in kept.values()] == [16, 0]
    assert len(kept) == 2


def test_operators_that_are_not_known_are_named():
    model = parse("g (float[1, 2, 4] x) => (float y) { y = Relu (x) }")
    node = helper.make_node(
        "MultiHeadAttention", ["x", "x", "x"], ["y"], name="heads", num_heads=2, domain="com.microsoft"
    )
    del model.graph.node[:]
    model.graph.node.append(node)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    _, kept = found(model, x=normal(RNG, 1, 2, 4))
    one = kept["heads"]
    assert not one.is_counted
    assert one.reason == "fused by onnxruntime (MultiHeadAttention), its work is not known"


def test_functions_of_the_network_are_looked_into():
    """Where onnxruntime could not simplify a network, they are still there."""
    text = """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[1, 2, 4, 4] x, float[2, 3, 2, 2] w) => (float[1, 3, 5, 5] y) { y = local.up (x, w) }
        <domain: "local", opset_import: ["": 17]> up (x, w) => (y) { y = ConvTranspose (x, w) }"""
    model = parser.parse_model(text)
    feeds = {"x": normal(RNG, 1, 2, 4, 4), "w": normal(RNG, 2, 3, 2, 2)}
    (one,) = kept_nodes(model, [], open_inputs([feeds], input_specs(model), None))
    assert (one.op, one.reason, one.macs, one.is_counted) == (
        "ConvTranspose",
        "its weight is computed",
        2 * 16 * 12,
        True,
    )

"""Recurrent layers unfolded and folded compute what they did, whatever computes their projections by then."""

import numpy as np
import onnx
import pytest
from helpers.models import normal, parse, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxlowrank import optimize
from onnxlowrank.calibrate.kept_nodes import kept_nodes
from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.recurrent import fold_recurrent, reads_blocks, unfold_recurrent
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.feeds import Inputs

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(op, directions, inputs, hidden, steps, batch, bias, lengths, seed, weight=None):
    """Return a network of one recurrent layer, and an input."""
    rng, gates = np.random.default_rng(seed), GATES[op] * hidden
    constants = {"r": normal(rng, directions, gates, hidden)}
    constants["w"] = normal(rng, directions, gates, inputs) if weight is None else weight
    if bias:
        constants["b"] = normal(rng, directions, 2 * gates)
    if lengths:
        constants["n"] = rng.integers(1, steps + 1, batch).astype(np.int32)
    direction = "bidirectional" if directions == 2 else "reverse" if seed % 2 else "forward"
    node = f'{op} <hidden_size = {hidden}, direction = "{direction}"> (x, w, r, {"b" * bias}, {"n" * lengths})'
    model = parse(
        f"g (float[{steps}, {batch}, {inputs}] x) => "
        f"(float[{steps}, {directions}, {batch}, {hidden}] y, float[{directions}, {batch}, {hidden}] h) "
        f"{{ y, h = {node} }}",
        **constants,
    )
    return model, normal(rng, steps, batch, inputs)


CASES = {
    "op": st.sampled_from(list(GATES)),
    "directions": st.sampled_from([1, 2]),
    "inputs": st.integers(1, 9),
    "hidden": st.integers(1, 6),
    "steps": st.integers(1, 5),
    "batch": st.integers(1, 3),
    "bias": st.booleans(),
    "lengths": st.booleans(),
    "seed": st.integers(0, 2**16),
}


@given(**CASES)
@settings(deadline=None, max_examples=40)
def test_unfolded_and_folded_again_they_are_what_they_were(**case):
    model, x = recurrent(**case)
    model = normalise(model)
    unfolded = unfold_recurrent(model)
    assert [node.op_type for node in unfolded.graph.node] == ["MatMul", case["op"]]
    for mine, other in zip(run(model, x=x), run(unfolded, x=x), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
    folded = fold_recurrent(unfolded)
    assert folded.graph.node == model.graph.node
    weights = [{one.name: numpy_helper.to_array(one).tobytes() for one in m.graph.initializer} for m in (model, folded)]
    assert weights[0] == weights[1]
    onnx.checker.check_model(folded)


@given(rank=st.integers(1, 5), biased=st.booleans(), **CASES)
@settings(deadline=None, max_examples=40)
def test_a_chain_of_low_rank_becomes_a_product_and_a_smaller_weight(rank, biased, **case):
    """The network with the chain in place equals the one whose W is the product of the chain."""
    model, x = recurrent(**case)
    unfolded = unfold_recurrent(normalise(model))
    (layer,) = find_layers(unfolded)
    rng = np.random.default_rng(case["seed"])
    left, right = normal(rng, layer.outputs, rank), normal(rng, rank, layer.inputs)
    bias = normal(rng, layer.outputs) if biased else None
    chain = Chain((Step("first", right), Step("second", left)), bias)
    written = rewrite(unfolded, [layer], {layer.name: chain})
    folded = fold_recurrent(written)
    assert [node.op_type for node in folded.graph.node] == ["MatMul", case["op"]]
    sizes = {one.name: tuple(one.dims) for one in folded.graph.initializer}
    assert sizes[folded.graph.node[1].input[1]] == (case["directions"], GATES[case["op"]] * case["hidden"], rank)
    dense = onnx.ModelProto()
    dense.CopyFrom(model)
    (weight,) = (one for one in dense.graph.initializer if one.name == "w")
    weight.CopyFrom(numpy_helper.from_array((left @ right).reshape(weight.dims), "w"))
    expected = run(written if biased else dense, x=x)
    for mine, other in zip(run(folded, x=x), expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)


def test_two_that_share_a_weight_may_get_one_each():
    body = "a, p = LSTM <hidden_size = 3> (x, w, r) y, q = LSTM <hidden_size = 3> (z, w, r)"
    rng = np.random.default_rng(0)
    constants = {"w": normal(rng, 1, 12, 5), "r": normal(rng, 1, 12, 3)}
    shapes = "float[4, 1, 2, 3] a, float[4, 1, 2, 3] y"
    model = normalise(parse(f"g (float[4, 2, 5] x, float[4, 2, 5] z) => ({shapes}) {{ {body} }}", **constants))
    unfolded = unfold_recurrent(model)
    (layer,) = find_layers(unfolded)
    assert len(layer.places) == 2, "they are one layer"
    feeds = {"x": normal(rng, 4, 2, 5), "z": normal(rng, 4, 2, 5)}
    chain = Chain((Step("first", normal(rng, 2, 5)), Step("second", normal(rng, 12, 2))))
    written = rewrite(unfolded, [layer], {layer.name: chain})
    for one, other in ((fold_recurrent(unfolded), model), (fold_recurrent(written), written)):
        assert not any(reads_blocks(node) for node in one.graph.node)
        for mine, expected in zip(run(one, **feeds), run(other, **feeds), strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)
    alone = rewrite(unfolded, [layer.at(layer.places[:1])], {layer.name: chain})
    for mine, expected in zip(run(fold_recurrent(alone), **feeds), run(alone, **feeds), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


def test_a_weight_that_something_else_reads_keeps_its_values_there():
    rng = np.random.default_rng(0)
    model = normalise(
        parse(
            "g (float[4, 2, 5] x, float[1, 12, 5] z) => (float[4, 1, 2, 3] y, float[1, 12, 5] s) "
            "{ y, h = LSTM <hidden_size = 3> (x, w, r) s = Add (z, w) }",
            w=normal(rng, 1, 12, 5),
            r=normal(rng, 1, 12, 3),
        )
    )
    unfolded = unfold_recurrent(model)
    (layer,) = find_layers(unfolded)
    chain = Chain((Step("first", normal(rng, 2, 5)), Step("second", normal(rng, 12, 2))))
    written = rewrite(unfolded, [layer], {layer.name: chain})
    feeds = {"x": normal(rng, 4, 2, 5), "z": normal(rng, 1, 12, 5)}
    for mine, expected in zip(run(fold_recurrent(written), **feeds), run(written, **feeds), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_unfolded_or_folded_stays():
    computed = parse(
        "g (float[4, 2, 5] x, float[1, 12, 5] w) => (float[4, 1, 2, 3] y) { y, h = LSTM <hidden_size = 3> (x, w, r) }",
        r=np.ones((1, 12, 3), np.float32),
    )
    assert unfold_recurrent(computed) is computed
    assert fold_recurrent(computed) is computed
    model, _ = recurrent("GRU", 2, 5, 3, 4, 2, True, False, 0)
    unfolded = unfold_recurrent(normalise(model))
    relu = helper.make_node("Relu", [unfolded.graph.node[0].output[0]], ["other"])
    unfolded.graph.node[1].input[0] = "other"
    unfolded.graph.node.insert(1, relu)
    assert fold_recurrent(unfolded).graph.node == unfolded.graph.node


def test_the_work_is_counted_once():
    model, x = recurrent("LSTM", 2, 6, 3, 4, 1, True, False, 0)
    unfolded = unfold_recurrent(normalise(model))
    inputs = Inputs(lambda index: {"x": x}, 1, 1, "one")
    (whole,) = kept_nodes(normalise(model), [], inputs)
    layers = find_layers(unfolded)
    (kept,) = kept_nodes(unfolded, layers, inputs)
    assert whole.macs == 4 * 24 * (6 + 3)
    assert kept.macs == 4 * 24 * 3
    assert kept.parameters == whole.parameters - layers[0].weight.size


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_through_the_whole_pipeline(op):
    """A weight of rank 16 under noise: most of its work goes, and little of its answers."""
    rng, gates = np.random.default_rng(1), GATES[op] * 32
    weight = (normal(rng, 2, gates, 16) @ normal(rng, 16, 128)).astype(np.float32) / 8
    model = parse(
        f"g (float[1, 12, 128] x) => (float[12, 2, 1, 32] y) {{ t = Transpose <perm = [1, 0, 2]> (x) "
        f'y, h = {op} <hidden_size = 32, direction = "bidirectional"> (t, w, r) }}',
        w=weight + 0.01 * normal(rng, 2, gates, 128),
        r=normal(rng, 2, gates, 32) / 8,
    )
    macs = 12 * 2 * gates * 32 + 12 * 16 * (128 + 2 * gates)
    result = optimize(model, max_macs=macs, calibration=normal(rng, 40, 12, 128))
    assert result.reached
    assert (result.before.macs, result.after.macs) == (12 * 2 * gates * (128 + 32), macs)
    assert [node.op_type for node in result.model.graph.node] == ["Transpose", "MatMul", op]
    (layer, kept) = result.layers
    assert (layer.name.split("/")[-1], layer.method, layer.setting) == ("input", "fully_connected", (16,))
    assert "recurrent weights whole" in kept.kept_because
    assert result.agreement.relative_error < 0.1
    shapes = {one.name: list(one.dims) for one in result.model.graph.initializer}
    assert shapes["w"] == [2, gates, 16]

import logging

import numpy as np
import pytest
from helpers.models import describe, error, node, normal, parse, residual_block, run, without_body
from onnx import ModelProto, helper

from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.normalise import normalise

RNG = np.random.default_rng(1)


def counts(model: ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


def test_batch_normalisation_is_folded_and_names_stay() -> None:
    model = residual_block()
    folded = normalise(model)
    assert "BatchNormalization" not in counts(folded)
    assert [n.name for n in folded.graph.node if n.op_type == "Conv"] == ["n_a", "n_d"]
    assert [n.output[0] for n in folded.graph.node if n.op_type == "Conv"] == ["b", "e"]
    x = normal(RNG, 3, 4, 8, 8)
    assert error(run(folded, x=x)[0], run(model, x=x)[0]) < 1e-5


def test_all_but_the_computation_stays() -> None:
    model = residual_block()
    before = model.SerializeToString(deterministic=True)
    folded = normalise(model)
    assert without_body(folded) == without_body(model)
    for kept in folded.graph.node:
        original = node(model, kept.name)
        assert kept.doc_string == original.doc_string
        assert list(kept.metadata_props) == list(original.metadata_props)
    assert model.SerializeToString(deterministic=True) == before
    assert folded.SerializeToString(deterministic=True) == normalise(model).SerializeToString(deterministic=True)


def test_nodes_get_unique_names() -> None:
    model = residual_block()
    for n, name in zip(model.graph.node, ["same", "", "same", "", "lonely"], strict=False):
        n.name = name
    named = [n.name for n in normalise(model).graph.node]
    assert len(set(named)) == len(named)
    assert "" not in named
    assert {"same", "same_1", "lonely"} >= set(named[:2])
    assert "Conv/d" in named


def test_constant_nodes_become_initializers() -> None:
    model = parse(
        "g (float[1, 2] x) => (float[1, 2] y) { c = Constant <value = float[2] {1.0, 2.0}> () y = Add (x, c) }"
    )
    folded = normalise(model)
    assert counts(folded) == ["Add"]
    assert [tensor.name for tensor in folded.graph.initializer] == ["c"]


@pytest.mark.parametrize(("ir", "expected"), [(3, 4), (8, 8)])
def test_inputs_with_a_default_become_constants(ir: int, expected: int) -> None:
    channels = {name: normal(RNG, 3) for name in ("s", "b", "m")} | {"v": np.ones(3, np.float32)}
    model = parse(
        """g (float[N, 2, 5, 5] x, float[3, 2, 3, 3] w, float[3] s, float[3] b, float[3] m, float[3] v)
            => (float[N, 3, 3, 3] y) { a = Conv (x, w)  y = BatchNormalization (a, s, b, m, v) }""",
        opset=9,
        ir=ir,
        w=normal(RNG, 3, 2, 3, 3),
        **channels,
    )
    folded = normalise(model)
    assert [info.name for info in folded.graph.input] == ["x"]
    assert folded.graph.input[0] == model.graph.input[0]
    assert folded.ir_version == expected
    assert counts(folded) == ["Conv"]
    x = normal(RNG, 2, 2, 5, 5)
    assert error(run(folded, x=x)[0], run(model, x=x)[0]) < 1e-5


def test_matmul_and_add_keep_their_names() -> None:
    model = parse(
        "g (float[N, 4] x) => (float[N, 3] y) { p = MatMul (x, w)  y = Add (p, b) }",
        w=normal(RNG, 4, 3),
        b=normal(RNG, 3),
    )
    assert [n.name for n in normalise(model).graph.node] == ["n_p", "n_y"]


def test_transposes_of_a_channels_last_network_cancel() -> None:
    model = parse(
        """g (float[N, 8, 8, 3] x) => (float[N, 8, 8, 5] y) {
            a = Transpose <perm = [0, 3, 1, 2]> (x)
            b = Conv <pads = [1, 1, 1, 1]> (a, w1)
            c = Transpose <perm = [0, 2, 3, 1]> (b)
            d = Add (c, bias)
            e = Relu (d)
            f = Transpose <perm = [0, 3, 1, 2]> (e)
            h = Conv <pads = [1, 1, 1, 1]> (f, w2)
            i = Transpose <perm = [0, 2, 3, 1]> (h)
            y = MatMul (i, w3)
        }""",
        w1=normal(RNG, 4, 3, 3, 3),
        bias=normal(RNG, 4),
        w2=normal(RNG, 6, 4, 3, 3),
        w3=normal(RNG, 6, 5),
    )
    describe(model)
    folded = normalise(model)
    assert counts(folded) == ["Transpose", "Conv", "Relu", "Conv", "Transpose", "MatMul"]
    assert without_body(folded) == without_body(model)
    assert [layer.activation.name for layer in find_layers(folded)] == ["ReLU", "none", "none"]
    x = normal(RNG, 2, 8, 8, 3)
    assert error(run(folded, x=x)[0], run(model, x=x)[0]) < 1e-5


def test_local_functions_that_were_inlined_go() -> None:
    model = parse("g (float[N, 4] x) => (float[N, 4] y) { a = Relu (x)  y = Neg (a) }")
    function = helper.make_function(
        "own", "f", ["i"], ["o"], [helper.make_node("Abs", ["i"], ["o"])], [helper.make_opsetid("", 17)]
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.insert(1, helper.make_node("f", ["a"], ["b"], domain="own", name="call"))
    model.graph.node[2].input[0] = "b"
    folded = normalise(model)
    assert counts(folded) == ["Relu", "Abs", "Neg"]
    assert not folded.functions
    del model.functions[:]
    assert without_body(folded) == without_body(model)
    x = normal(RNG, 2, 4)
    np.testing.assert_array_equal(run(folded, x=x)[0], -np.maximum(x, 0))


def test_local_functions_that_are_called_stay() -> None:
    """From a node, from a subgraph, and from another function; where onnxruntime cannot inline them."""
    body = """g (float[N, 2] x, bool t) => (float[N, 2] y, float[N, 2] z) {
        y = Relu (x)
        z = If (t) <then_branch = yes () => (float[N, 2] p) { p = Neg (x) },
                    else_branch = no () => (float[N, 2] q) { q = Abs (x) }>
    }"""
    model = parse(body)
    standard, own = helper.make_opsetid("", 17), helper.make_opsetid("own", 1)
    for name, does, domain in (("f", "g", "own"), ("g", "Abs", ""), ("h", "Neg", ""), ("unused", "g", "own")):
        node = helper.make_node(does, ["i"], ["o"], domain=domain)
        model.functions.append(helper.make_function("own", name, ["i"], ["o"], [node], [standard, own]))
    model.opset_import.append(own)
    model.opset_import.append(helper.make_opsetid("unknown.domain", 1))
    model.graph.node[0].op_type, model.graph.node[0].domain = "f", "own"
    branch = next(one.g for one in model.graph.node[1].attribute if one.name == "then_branch")
    branch.node[0].op_type, branch.node[0].domain = "h", "own"
    model.graph.node.append(helper.make_node("Mystery", ["x"], ["m"], domain="unknown.domain"))
    assert [function.name for function in normalise(model).functions] == ["f", "g", "h"]


def test_model_onnxruntime_cannot_load_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = parse(
        "g (float[N, 2] x) => (float[N, 2] y) { c = Constant <value = float[2] {1.0, 2.0}> () y = Add (x, c) }"
    )
    model.opset_import.append(helper.make_opsetid("unknown.domain", 1))
    model.graph.node.insert(1, helper.make_node("Mystery", ["x"], ["z"], domain="unknown.domain"))
    model.graph.node[2].input[0] = "z"
    with caplog.at_level(logging.WARNING):
        folded = normalise(model)
    assert "stays as it is" in caplog.text
    assert [n.name for n in folded.graph.node] == ["Mystery/z", "n_y"]
    assert without_body(folded) == without_body(model)

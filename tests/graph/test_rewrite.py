from dataclasses import replace

import numpy as np
import onnx
import pytest
from helpers.models import conv_model, describe, error, node, normal, parse, residual_block, run, without_body
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import Geometry, Layer
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.rewrite import rewrite

RNG = np.random.default_rng(3)


def spatial_chain(layer: Layer, rng: np.random.Generator, ranks: tuple[int, int]) -> Chain:
    """Return random [V (k x 1), H (1 x k), 1 x 1] for a two-dimensional convolution."""
    (a, b), (kh, kw), g = ranks, layer.kernel, layer.group
    return Chain(
        (
            Step("v", normal(rng, a * g, layer.weight.shape[1], kh, 1), layer.geometry.only(0), g),
            Step("h", normal(rng, b * g, a, 1, kw), layer.geometry.only(1), g),
            Step("mix", normal(rng, layer.outputs, b * g, 1, 1), Geometry.pointwise(2)),
        ),
        layer.bias,
    )


def matrix_chain(layer: Layer, rank: int = 2) -> Chain:
    """Return random [reduce, expand] for a fully connected layer."""
    steps = Step("reduce", normal(RNG, rank, layer.inputs)), Step("expand", normal(RNG, layer.outputs, rank))
    return Chain(steps, layer.bias)


def with_weight(model: ModelProto, name: str, values: np.ndarray) -> ModelProto:
    """Return ``model`` with other values in one initializer."""
    changed = ModelProto()
    changed.CopyFrom(model)
    tensor = next(tensor for tensor in changed.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
    return changed


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[ModelProto, np.ndarray, np.random.Generator, tuple[int, int]]:
    def pair(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(2)]

    group = draw(st.integers(1, 3))
    f, c = (draw(st.integers(1, 3)) for _ in range(2))
    kernel, strides = pair(1, 4), pair(1, 3)
    attributes = {"strides": strides, "group": group}
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    # onnxruntime does not run SAME with dilations
    attributes["dilations"] = [1, 1] if auto_pad.startswith("SAME") else pair(1, 3)
    if auto_pad == "NOTSET":
        attributes["pads"] = pair(0, 2) + pair(0, 2)
    else:
        attributes["auto_pad"] = auto_pad
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bias = normal(rng, f * group) if draw(st.booleans()) else None
    model = conv_model(normal(rng, f * group, c, *kernel), bias, **attributes)
    least = [d * (k - 1) + 1 for d, k in zip(attributes["dilations"], kernel, strict=True)]
    x = normal(
        rng, draw(st.integers(1, 3)), c * group, *(n + extra for n, extra in zip(least, pair(0, 6), strict=True))
    )
    return model, x, rng, tuple(pair(1, 3))


@given(convolutions())
@settings(max_examples=120, deadline=None)
def test_chain_computes_its_dense_kernel(
    case: tuple[ModelProto, np.ndarray, np.random.Generator, tuple[int, int]],
) -> None:
    model, x, rng, ranks = case
    (layer,) = find_layers(model)
    chain = spatial_chain(layer, rng, ranks)
    rewritten = rewrite(model, [layer], {"conv": chain})
    onnx.checker.check_model(rewritten, full_check=True)
    dense = with_weight(model, "conv.weight", chain.dense_kernel())
    for attribute in dense.graph.node[0].attribute:
        if attribute.name == "group":
            attribute.i = 1
    assert error(run(rewritten, x=x)[0], run(dense, x=x)[0]) <= 1e-5
    assert [n.name for n in rewritten.graph.node] == [f"conv/lowrank/{step}" for step in ("v", "h", "mix")]


def test_one_spatial_axis() -> None:
    model = conv_model(normal(RNG, 4, 3, 5), normal(RNG, 4), strides=[2], pads=[1, 2])
    (layer,) = find_layers(model)
    first = Step("k", normal(RNG, 2, 3, 5), layer.geometry)
    chain = Chain((first, Step("mix", normal(RNG, 4, 2, 1), Geometry.pointwise(1))), layer.bias)
    x = normal(RNG, 2, 3, 17)
    dense = with_weight(model, "conv.weight", chain.dense_kernel())
    assert error(run(rewrite(model, [layer], {"conv": chain}), x=x)[0], run(dense, x=x)[0]) <= 1e-5


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("biased", [True, False])
def test_gemm(opset: int, transposed: int, biased: bool) -> None:
    weight, bias = normal(RNG, 5, 4), normal(RNG, 5)
    attributes = f"transB = {transposed}, alpha = 0.5, beta = 3.0"
    model = parse(
        f"g (float[N, 4] x) => (float[N, 5] y) {{ y = Gemm <{attributes}> (x, w, b) }}",
        opset=opset,
        w=weight if transposed else np.ascontiguousarray(weight.T),
        b=bias,
    )
    (layer,) = find_layers(model)
    chain = matrix_chain(layer) if biased else replace(matrix_chain(layer), bias=None)
    rewritten = rewrite(model, [layer], {layer.name: chain})
    onnx.checker.check_model(rewritten)
    assert [n.op_type for n in rewritten.graph.node] == ["Gemm", "Gemm"]
    assert [len(n.input) for n in rewritten.graph.node] == ([3, 3] if opset < 11 else [2, 2 + biased])
    x = normal(RNG, 3, 4)
    expected = x @ chain.dense_kernel().T + (3 * bias if biased else 0)
    assert error(run(rewritten, x=x)[0], expected) <= 1e-5
    exact = Chain((Step("same", layer.weight),), layer.bias)
    assert error(run(rewrite(model, [layer], {layer.name: exact}), x=x)[0], run(model, x=x)[0]) <= 1e-6


@pytest.mark.parametrize("biased", [True, False])
def test_matmul(biased: bool) -> None:
    lines = "m = MatMul (x, w)  y = Add (b, m)" if biased else "y = MatMul (x, w)"
    model = parse(f"g (float[N, 6, 4] x) => (float[N, 6, 5] y) {{ {lines} }}", w=normal(RNG, 4, 5), b=normal(RNG, 5))
    (layer,) = find_layers(model)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("m", onnx.TensorProto.FLOAT, None))
    chain = matrix_chain(layer)
    rewritten = rewrite(model, [layer], {layer.name: chain})
    onnx.checker.check_model(rewritten, full_check=True)
    assert [n.op_type for n in rewritten.graph.node] == ["MatMul", "MatMul", *["Add"] * biased]
    assert not rewritten.graph.value_info
    x = normal(RNG, 2, 6, 4)
    expected = x @ chain.dense_kernel().T + (layer.bias if biased else 0)
    assert error(run(rewritten, x=x)[0], expected) <= 1e-5


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_matrices_on_the_left_and_of_columns(data: st.DataObject) -> None:
    c, f, t, n, rank = (data.draw(st.integers(1, 5), name) for name in ("C", "F", "T", "N", "K"))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    biased, is_gemm = data.draw(st.booleans()), data.draw(st.booleans())
    if is_gemm:
        body = f"g (float[{c}, N] x) => (float[N, {f}] y) {{ y = Gemm <transA = 1> (x, w{', b' * biased}) }}"
        model = parse(body, w=normal(rng, c, f), **({"b": normal(rng, f)} if biased else {}))
        x = normal(rng, c, n)
    else:
        lines = "m = MatMul (w, x)  y = Add (m, b)" if biased else "y = MatMul (w, x)"
        body = f"g (float[N, {c}, T] x) => (float[N, {f}, T] y) {{ {lines} }}"
        model = parse(body, w=normal(rng, f, c), **({"b": normal(rng, f, 1)} if biased else {}))
        x = normal(rng, n, c, t)
    (layer,) = find_layers(model)
    chain = Chain(
        (Step("reduce", normal(rng, rank, c)), Step("expand", normal(rng, f, rank))), layer.bias if biased else None
    )
    rewritten = rewrite(model, [layer], {layer.name: chain})
    onnx.checker.check_model(rewritten, full_check=True)
    expected = np.moveaxis(np.tensordot(x, chain.dense_kernel(), (0 if is_gemm else 1, 1)), -1, -1 if is_gemm else 1)
    if biased:
        expected = expected + (layer.bias if is_gemm else layer.bias[:, None])
    assert error(run(rewritten, x=x)[0], expected) <= 1e-5
    place = replace(layer.places[0], input_shape=x.shape, output_shape=expected.shape)
    shaped = replace(layer.at([place]), samples=None)
    each = 1 if is_gemm else t
    assert (shaped.macs, shaped.positions) == (each * c * f, each)
    assert chain.macs_in(shaped) == each * rank * (c + f)


def test_only_named_layers_change_and_all_else_stays() -> None:
    model = normalise(residual_block())
    model.graph.value_info.extend(info for info in onnx.shape_inference.infer_shapes(model).graph.value_info)
    before = model.SerializeToString(deterministic=True)
    layers = find_layers(model)
    chains = {"n_d": spatial_chain(layers[1], RNG, (2, 3)), "n_y": matrix_chain(layers[2])}
    rewritten = rewrite(model, layers, chains)
    onnx.checker.check_model(rewritten, full_check=True)

    assert model.SerializeToString(deterministic=True) == before
    assert without_body(rewritten) == without_body(model)
    assert list(rewritten.graph.value_info) == list(model.graph.value_info)
    new = [n for n in rewritten.graph.node if "/lowrank/" in n.name]
    assert [n.name for n in new] == [
        "n_d/lowrank/v", "n_d/lowrank/h", "n_d/lowrank/mix", "n_y/lowrank/reduce", "n_y/lowrank/expand"
    ]  # fmt: skip
    assert (new[2].output[0], new[4].output[0]) == (layers[1].output, layers[2].output)
    for kept in rewritten.graph.node:
        assert kept in new or kept == node(model, kept.name)
    weights = {tensor.name for tensor in rewritten.graph.initializer}
    used = {name for n in rewritten.graph.node for name in n.input}
    assert weights <= used
    assert {"n_d/lowrank/v.weight", "n_d/lowrank/mix.bias", "n_y/lowrank/expand.bias"} <= weights
    assert "n_d/lowrank/v.bias" not in weights


def test_no_chains_give_the_same_model() -> None:
    model = normalise(residual_block())
    assert rewrite(model, find_layers(model), {}) == model


def test_equal_calls_give_equal_bytes() -> None:
    model = normalise(residual_block())
    layers = find_layers(model)
    chains = {"n_a": spatial_chain(layers[0], RNG, (2, 3)), "n_d": spatial_chain(layers[1], RNG, (2, 2))}
    first = rewrite(model, layers, chains).SerializeToString()
    second = rewrite(model, find_layers(model), dict(reversed(chains.items()))).SerializeToString()
    assert first == second


def test_shared_weight_stays_for_its_other_reader() -> None:
    model = parse("g (float[N, 4] x) => (float[N, 4] y) { a = MatMul (x, w)  y = Gemm (a, w) }", w=normal(RNG, 4, 4))
    layers = find_layers(model)
    chain = matrix_chain(layers[0])
    rewritten = rewrite(model, layers, {"n_a": chain})
    assert next(tensor.name for tensor in rewritten.graph.initializer) == "w"
    x = normal(RNG, 2, 4)
    assert error(run(rewritten, x=x)[0], x @ chain.dense_kernel().T @ layers[1].weight.T) <= 1e-5


def test_a_layer_of_two_places_is_a_chain_of_shared_weights_at_each() -> None:
    lines = "m = MatMul (x, w)  a = Add (m, b)  r = Relu (a)  n = MatMul (r, w)  y = Add (n, b)"
    model = parse(f"g (float[N, 4] x) => (float[N, 4] y) {{ {lines} }}", w=normal(RNG, 4, 4), b=normal(RNG, 4))
    (layer,) = find_layers(model)
    chain = matrix_chain(layer)
    rewritten = rewrite(model, [layer], {layer.name: chain})
    onnx.checker.check_model(rewritten, full_check=True)
    assert [n.name for n in rewritten.graph.node] == [
        *("n_m/lowrank/reduce", "n_m/lowrank/expand", "n_m/lowrank/bias", "n_r"),
        *("n_n/lowrank/reduce", "n_n/lowrank/expand", "n_n/lowrank/bias"),
    ]
    assert [tensor.name for tensor in rewritten.graph.initializer] == [
        f"n_m/lowrank/{name}" for name in ("reduce.weight", "expand.weight", "bias.bias")
    ]
    x = normal(RNG, 2, 4)
    hidden = np.maximum(x @ chain.dense_kernel().T + layer.bias, 0)
    assert error(run(rewritten, x=x)[0], hidden @ chain.dense_kernel().T + layer.bias) <= 1e-5


def test_constant_node_of_a_replaced_weight_disappears() -> None:
    model = parse(
        "g (float[N, 4] x) => (float[N, 4] y) { k = Constant <value = float[1] {1.0}> ()  y = MatMul (x, k) }"
    )
    model.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(normal(RNG, 4, 4)))
    layers = find_layers(model)
    rewritten = rewrite(model, layers, {"n_y": matrix_chain(layers[0])})
    assert [n.op_type for n in rewritten.graph.node] == ["MatMul", "MatMul"]


def test_names_that_are_taken_are_numbered() -> None:
    model = parse("g (float[N, 4] x) => (float[N, 4] y) { a = MatMul (x, w)  y = Relu (a) }", w=normal(RNG, 4, 4))
    model.graph.node[1].name = "n_a/lowrank/reduce"
    layers = find_layers(model)
    rewritten = rewrite(model, layers, {"n_a": matrix_chain(layers[0])})
    assert [n.name for n in rewritten.graph.node] == [
        "n_a/lowrank/reduce_1",
        "n_a/lowrank/expand",
        "n_a/lowrank/reduce",
    ]
    onnx.checker.check_model(rewritten)


def test_network_with_subgraphs_functions_and_empty_attributes() -> None:
    model = parse(
        """g (float[N, 4] x, bool t) => (float[N, 4] y, float[N, 4] z) {
            a = MatMul (x, w)
            y = Relu (a)
            k = Neg (x)
            z = If (t) < then_branch = yes () => (float[N, 4] p) { p = Relu (k) },
                         else_branch = no () => (float[N, 4] q) { q = Add (a, c) } >
        }""",
        w=normal(RNG, 4, 4),
        c=normal(RNG, 4),
    )
    describe(model)
    model.graph.node[1].attribute.append(onnx.helper.make_attribute("unused", [], attr_type=onnx.AttributeProto.INTS))
    model.functions.append(
        onnx.helper.make_function(
            "own", "f", ["i"], ["o"], [onnx.helper.make_node("Abs", ["i"], ["o"])], model.opset_import
        )
    )
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    model.graph.node[2].op_type, model.graph.node[2].domain = "f", "own"
    layers = find_layers(model)
    rewritten = rewrite(model, layers, {"n_a": matrix_chain(layers[0], 4)})
    assert without_body(rewritten) == without_body(model)
    assert list(rewritten.graph.node)[2:] == list(model.graph.node)[1:]
    assert [tensor.name for tensor in rewritten.graph.initializer][:1] == ["c"]


def test_refusals() -> None:
    model = normalise(residual_block())
    layers = find_layers(model)
    chain = matrix_chain(layers[2])
    with pytest.raises(ValueError, match=r"no such layers.*other"):
        rewrite(model, layers, {"n_y": chain, "other": chain})
    once = rewrite(model, layers, {"n_y": chain})
    with pytest.raises(ValueError, match="'n_y' are not in the model"):
        rewrite(once, layers, {"n_y": chain})
    model.graph.node[0].name = model.graph.node[1].name
    with pytest.raises(ValueError, match="normalise it first"):
        rewrite(model, layers, {"n_y": chain})

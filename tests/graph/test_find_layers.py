import numpy as np
import pytest
from helpers.models import conv_model, normal, parse, residual_block
from onnx import ModelProto, helper, numpy_helper

from onnxlowrank.decompose.activation import IDENTITY, RELU, Smooth, clip, leaky_relu
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.index import Index
from onnxlowrank.graph.layer import Geometry, Layer
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.refusals import refusal

RNG = np.random.default_rng(2)
W, B = normal(RNG, 3, 2, 3, 3), normal(RNG, 3)


def only(model: ModelProto) -> Layer:
    (layer,) = find_layers(model)
    return layer


def followed_by(lines: str, opset: int = 17, outputs: str = "float[N, 3, h, w] y", **constants: np.ndarray) -> Layer:
    """Return the layer ``c = Conv(x)`` of a network in which ``lines`` follow."""
    conv = "c = Conv <pads = [1, 1, 1, 1]> (x, W)"
    body = f"g (float[N, 2, h, w] x, float[N, 3, h, w] s) => ({outputs}) {{ {conv} {lines} }}"
    return only(parse(body, opset, W=W, **constants))


@pytest.mark.parametrize("group", [1, 2])
def test_responses_to_white_inputs(group: int) -> None:
    """Their covariance is that of the dense matrix, whose blocks share no inputs."""
    weight = normal(RNG, 6, 2, 3, 3)
    dense = np.zeros((6, 2 * group, 9))
    for f in range(6):
        first = 2 * (f * group // 6)
        dense[f, first : first + 2] = weight[f].reshape(2, 9)
    rows = dense.reshape(6, -1)
    np.testing.assert_allclose(only(conv_model(weight, group=group)).white, rows @ rows.T, rtol=1e-4, atol=1e-5)


def test_conv() -> None:
    model = conv_model(
        normal(RNG, 6, 2, 3, 5), normal(RNG, 6), group=2, strides=[1, 2], pads=[0, 1, 2, 3], dilations=[2, 1]
    )
    layer = only(model)
    assert (layer.name, layer.op, layer.input, layer.output, layer.nodes) == ("conv", "Conv", "x", "y", ("conv",))
    assert layer.geometry == Geometry((1, 2), (0, 1, 2, 3), (2, 1))
    assert (layer.group, layer.kernel, layer.inputs, layer.outputs) == (2, (3, 5), 4, 6)
    np.testing.assert_array_equal(layer.weight, numpy_helper.to_array(model.graph.initializer[0]))
    np.testing.assert_array_equal(layer.bias, numpy_helper.to_array(model.graph.initializer[1]))
    assert (layer.preactivation, layer.shortcut, layer.activation) == ("y", None, IDENTITY)
    assert layer.input_shape == layer.output_shape == ()


def test_conv_defaults_and_one_axis() -> None:
    assert only(conv_model(normal(RNG, 3, 2, 5))).geometry == Geometry((1,), (0, 0), (1,))
    layer = only(conv_model(W, auto_pad="SAME_LOWER"))
    assert layer.geometry == Geometry((1, 1), (0, 0, 0, 0), (1, 1), "SAME_LOWER")
    assert layer.bias is None


def test_three_axes() -> None:
    layer = only(conv_model(normal(RNG, 6, 2, 3, 1, 2), group=2, strides=[1, 2, 3], pads=[0, 1, 2, 3, 4, 5]))
    assert layer.geometry == Geometry((1, 2, 3), (0, 1, 2, 3, 4, 5), (1, 1, 1))
    assert (layer.group, layer.kernel, layer.taps, layer.inputs, layer.outputs) == (2, (3, 1, 2), 6, 4, 6)


def test_only_constant_float32_weights_make_a_layer() -> None:
    assert (
        find_layers(parse("g (float[1, 2, 5, 5] x, float[3, 2, 3, 3] w) => (float[1, 3, 3, 3] y) { y = Conv (x, w) }"))
        == []
    )
    assert (
        find_layers(parse("g (double[1, 2, 5, 5] x) => (double[1, 3, 3, 3] y) { y = Conv (x, w) }", w=np.float64(W)))
        == []
    )
    body = "g (float[1, 2, 5, 5] x, float[3] b) => (float[1, 3, 3, 3] y) { y = Conv (x, w, b) }"
    assert find_layers(parse(body, w=W)) == []


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 5)])
def test_gemm(transposed: int, shape: tuple[int, ...]) -> None:
    weight, bias = normal(RNG, 5, 4), normal(RNG, *shape)
    attributes = f"transB = {transposed}, alpha = 0.5, beta = 2.0"
    model = parse(
        f"g (float[N, 4] x) => (float[N, 5] y) {{ y = Gemm <{attributes}> (x, w, b) }}",
        w=weight if transposed else np.ascontiguousarray(weight.T),
        b=bias,
    )
    layer = only(model)
    np.testing.assert_array_equal(layer.weight, 0.5 * weight)
    np.testing.assert_array_equal(layer.bias, np.broadcast_to(2 * bias, (1, 5))[0])
    assert (layer.op, layer.geometry, layer.kernel) == ("Gemm", Geometry(), ())


def test_gemms_that_are_no_layers() -> None:
    body = "g (float[3, 4] x) => (float[3, 5] y) { y = Gemm (x, w, b) }"
    assert find_layers(parse(body, w=normal(RNG, 4, 5), b=normal(RNG, 3, 1))) == []
    assert find_layers(parse(body, w=normal(RNG, 4, 5), b=normal(RNG, 3, 5))) == []


def test_a_gemm_of_the_columns_of_its_input() -> None:
    weight = normal(RNG, 4, 5)
    layer = only(parse("g (float[4, N] x) => (float[N, 5] y) { y = Gemm <transA = 1> (x, w) }", w=weight))
    assert (layer.columns, layer.channels_last) == (True, True)
    np.testing.assert_array_equal(layer.weight, weight.T)


@pytest.mark.parametrize("shape", [(5, 4), (1, 5, 4)])
@pytest.mark.parametrize("bias", [(5, 1), (1, 5, 1)])
def test_a_matmul_by_a_matrix_on_the_left(shape: tuple[int, ...], bias: tuple[int, ...]) -> None:
    weight, addend = normal(RNG, *shape), normal(RNG, *bias)
    body = "g (float[N, 4, 7] x) => (float[N, 5, 7] y) { m = MatMul (w, x)  y = Add (m, b) }"
    layer = only(parse(body, w=weight, b=addend))
    assert (layer.columns, layer.channels_last, layer.input, layer.nodes) == (True, False, "x", ("n_m", "n_y"))
    np.testing.assert_array_equal(layer.weight, weight.reshape(5, 4))
    np.testing.assert_array_equal(layer.bias, addend.ravel())


@pytest.mark.parametrize(
    ("source", "target", "weight", "reason"),
    [
        ("float[4, 7] x", "float[5, 7] y", "m = MatMul (w, x)  y = Identity (m)", "not 3 axes but 2"),
        ("float[N, 2, 4, 7] x", "float[N, 2, 5, 7] y", "m = MatMul (w, x)  y = Identity (m)", "not 3 axes but 4"),
        ("float[4, 5] x", "float[1, 4, 4] y", "m = MatMul (x, v)  y = Identity (m)", "its input may have fewer"),
    ],
)
def test_matrices_that_are_kept(source: str, target: str, weight: str, reason: str) -> None:
    model = parse(f"g ({source}) => ({target}) {{ {weight} }}", w=normal(RNG, 5, 4), v=normal(RNG, 1, 5, 4))
    assert find_layers(model) == []
    assert reason in (refusal(Index.of(model), model.graph.node[0]) or "")


def test_a_weight_of_three_axes_that_is_one_matrix() -> None:
    weight, bias = normal(RNG, 1, 4, 5), normal(RNG, 1, 1, 5)
    body = "g (float[N, 7, 4] x) => (float[N, 7, 5] y) { m = MatMul (x, w)  y = Add (m, b) }"
    layer = only(parse(body, w=weight, b=bias))
    np.testing.assert_array_equal(layer.weight, weight[0].T)
    np.testing.assert_array_equal(layer.bias, bias.ravel())


def test_an_addend_that_adds_an_axis_is_no_bias() -> None:
    body = "g (float[N, 4] x) => (float[1, N, 5] y) { m = MatMul (x, w)  y = Add (m, b) }"
    assert only(parse(body, w=normal(RNG, 4, 5), b=normal(RNG, 1, 1, 5))).bias is None


def test_matmul_with_its_bias() -> None:
    weight, bias = normal(RNG, 4, 5), normal(RNG, 5)
    body = "g (float[N, 7, 4] x) => (float[N, 7, 5] y) {{ m = MatMul (x, w)  a = Add ({})  y = Relu (a) }}"
    for operands in ("m, b", "b, m"):
        layer = only(parse(body.format(operands), w=weight, b=bias))
        assert (layer.name, layer.nodes, layer.output, layer.activation) == ("n_m", ("n_m", "n_a"), "a", RELU)
        np.testing.assert_array_equal(layer.weight, weight.T)
        np.testing.assert_array_equal(layer.bias, bias)


@pytest.mark.parametrize(
    ("outputs", "lines"),
    [
        ("float[N, 5] y, float[N, 5] m", "y = Add (m, b)"),  # the product is an output
        ("float[N, 5] y, float[N, 5] z", "y = Add (m, b)  z = Neg (m)"),  # and here read twice
        ("float[N, 5] y", "y = Add (m, one)"),  # not one bias an output
    ],
)
def test_matmul_without_bias(outputs: str, lines: str) -> None:
    body = f"g (float[N, 4] x) => ({outputs}) {{ m = MatMul (x, w)  {lines} }}"
    layer = only(parse(body, w=normal(RNG, 4, 5), b=normal(RNG, 5), one=normal(RNG, 1)))
    assert (layer.bias, layer.output, layer.nodes, layer.shortcut) == (None, "m", ("n_m",), None)


def test_matmul_of_two_constants_or_a_stack_of_matrices_is_no_layer() -> None:
    body = "g (float[N, 2, 3, 4] x) => (float[N, 2, 3, 5] y) { y = MatMul (x, w) }"
    assert find_layers(parse(body, w=normal(RNG, 2, 4, 5))) == []
    assert (
        find_layers(
            parse("g (float[3] x) => (float[3, 5] y) { y = MatMul (v, w) }", v=normal(RNG, 3, 4), w=normal(RNG, 4, 5))
        )
        == []
    )


def test_weights_in_constant_nodes_and_behind_identities() -> None:
    model = parse("g (float[N, 2, 5, 5] x) => (float[N, 3, 3, 3] y) { w = Identity (k)  y = Conv (x, w, b) }", b=B)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(W)))
    layer = only(model)
    np.testing.assert_array_equal(layer.weight, W)
    assert not layer.shares_weight
    only(normalise(model))


def test_overridable_weights_need_normalising() -> None:
    model = parse("g (float[1, 2, 5, 5] x, float[3, 2, 3, 3] w) => (float[1, 3, 3, 3] y) { y = Conv (x, w) }", w=W)
    assert find_layers(model) == []
    assert only(normalise(model)).name == "n_y"


@pytest.mark.parametrize("second", ["w", "v"])
def test_shared_weights(second: str) -> None:
    body = "g (float[1, 4] x) => (float[1, 4] y) {{ v = Identity (w)  a = MatMul (x, w)  y = {} }}"
    weight = normal(RNG, 4, 4)
    shared = only(parse(body.format(f"MatMul (a, {second})"), w=weight))
    assert not shared.shares_weight
    assert [(place.input, place.output, place.nodes) for place in shared.places] == [
        ("x", "a", ("n_a",)),
        ("a", "y", ("n_y",)),
    ]
    assert only(parse(body.format("Relu (a)"), w=weight)).elsewhere == ()


def test_places_have_their_own_surroundings() -> None:
    body = """g (float[1, 3, 8, 8] x, float[1, 3, 4, 4] u) => (float[1, 3, 8, 8] y, float[1, 3, 4, 4] z) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        s = Add (a, x)
        y = Relu (s)
        c = Conv <pads = [1, 1, 1, 1]> (u, w, b2)
        z = Tanh (c)
    }"""
    bias = normal(RNG, 3)
    layer = only(parse(body, w=normal(RNG, 3, 3, 3, 3), b=bias, b2=bias))
    assert [(place.preactivation, place.shortcut, place.activation) for place in layer.places] == [
        ("s", "x", RELU),
        ("c", None, Smooth("tanh")),
    ]
    assert layer.common_activation == IDENTITY


@pytest.mark.parametrize(
    "other",
    [
        "z = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)",
        "z = Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> (x, w, b)",
        "z = Conv <pads = [1, 1, 1, 1]> (x, w)",
        "z = Conv <pads = [1, 1, 1, 1]> (x, w, b2)",
    ],
)
def test_a_weight_that_is_used_otherwise_is_shared(other: str) -> None:
    body = f"""g (float[1, 3, 8, 8] x) => (float[1, 3, h, w] y, float[1, 3, h, w] y2, float[1, 3, h, w] z) {{
        y = Conv <pads = [1, 1, 1, 1]> (x, w, b)  y2 = Conv <pads = [1, 1, 1, 1]> (y, w, b)  {other} }}"""
    found = find_layers(parse(body, w=normal(RNG, 3, 3, 3, 3), b=normal(RNG, 3), b2=normal(RNG, 3)))
    assert [(len(layer.places), layer.shares_weight) for layer in found] == [(2, True), (1, True)]


GELUS = (
    "d = Div (c, root)  e = Erf (d)  a = Add (e, one)  m = Mul (c, a)  y = Mul (m, half)",
    "d = Mul (c, flat)  h = Mul (half, c)  e = Erf (d)  a = Add (one, e)  y = Mul (a, h)",
    "q = Mul (c, c)  k = Mul (q, c)  v = Mul (cube, k)  w2 = Add (c, v)  u = Mul (w2, slope)  t = Tanh (u)  "
    "a = Add (t, one)  h = Mul (c, half)  y = Mul (h, a)",
)
"""As PyTorch, TensorFlow and the approximation by tanh write it."""


@pytest.mark.parametrize(
    ("lines", "opset", "expected"),
    [
        ("y = Relu (c)", 17, RELU),
        ("y = LeakyRelu <alpha = 0.25> (c)", 17, leaky_relu(0.25)),
        ("y = Clip (c, zero, six)", 17, clip(0, 6)),
        ("y = Clip (c, zero)", 17, clip(0, np.inf)),
        ("y = Clip (c, , six)", 17, clip(-np.inf, 6)),
        ("y = Clip <min = 0.0, max = 6.0> (c)", 6, clip(0, 6)),
        ("y = Clip <min = -1.0> (c)", 6, clip(-1, np.inf)),
        ("y = Clip (c, six, zero)", 17, IDENTITY),
        ("m = ReduceMax <keepdims = 0> (s)  y = Clip (c, zero, m)", 17, IDENTITY),
        ("y = Sigmoid (c)", 17, Smooth("sigmoid")),
        ("y = Tanh (c)", 17, Smooth("tanh")),
        ("y = HardSwish (c)", 17, Smooth("hard_swish")),
        ("g1 = Sigmoid (c)  y = Mul (c, g1)", 17, Smooth("silu")),
        ("g1 = Sigmoid (c)  y = Mul (g1, c)", 17, Smooth("silu")),
        ("g1 = HardSigmoid <alpha = 0.16666667, beta = 0.5> (c)  y = Mul (c, g1)", 17, Smooth("hard_swish")),
        ("g1 = HardSigmoid (c)  y = Mul (c, g1)", 17, IDENTITY),  # slope 1/5
        ("g1 = Sigmoid (c)  y = Mul (s, g1)  z = Neg (c)", 17, IDENTITY),
        ("g1 = Sigmoid (c)  p = Mul (c, g1)  y = Add (p, g1)", 17, IDENTITY),
        ("g1 = Sigmoid (c)  p = Mul (c, g1)  q = Neg (c)  y = Add (p, q)", 17, IDENTITY),
        ("y = Relu (c)  z = Neg (c)", 17, IDENTITY),
        ("y = Elu (c)", 17, IDENTITY),
        ("y = Gelu (c)", 20, Smooth("gelu")),
        *((lines, 17, Smooth("gelu")) for lines in GELUS),
        (GELUS[0].replace("Add (e, one)", "Add (e, six)"), 17, IDENTITY),
        (GELUS[0] + "  z = Neg (e)", 17, IDENTITY),
        (GELUS[0].replace("Mul (c, a)", "Mul (s, a)"), 17, IDENTITY),
    ],
)
def test_activation(lines: str, opset: int, expected: object) -> None:
    numbers = {"one": 1, "half": 0.5, "root": np.sqrt(2), "flat": np.sqrt(0.5), "cube": 0.044715}
    numbers |= {"slope": np.sqrt(2 / np.pi), "zero": 0, "six": 6}
    layer = followed_by(lines, opset, **{name: np.float32(value) for name, value in numbers.items()})
    assert layer.activation == expected
    assert (layer.preactivation, layer.shortcut) == ("c", None)


@pytest.mark.parametrize("lines", ["y = Relu (c)", "g1 = Sigmoid (c)  y = Mul (c, g1)", "y = Add (c, s)"])
def test_response_that_is_an_output(lines: str) -> None:
    layer = followed_by(lines, outputs="float[N, 3, h, w] y, float[N, 3, h, w] c")
    assert (layer.activation, layer.preactivation, layer.shortcut) == (IDENTITY, "c", None)


def test_gate_that_is_an_output() -> None:
    layer = followed_by("t = Sigmoid (c)  y = Mul (c, t)", outputs="float[N, 3, h, w] y, float[N, 3, h, w] t")
    assert layer.activation == IDENTITY


@pytest.mark.parametrize("operands", ["c, s", "s, c"])
def test_residual(operands: str) -> None:
    layer = followed_by(f"a = Add ({operands})  y = Relu (a)")
    assert (layer.output, layer.preactivation, layer.shortcut, layer.activation) == ("c", "a", "s", RELU)


@pytest.mark.parametrize(
    "lines",
    [
        "a = Add (c, c)  y = Relu (a)",
        "r = Relu (c)  y = Add (c, r)",
        "a = Add (c, k)  y = Relu (a)",
        "m = GlobalAveragePool (s)  a = Add (c, m)  y = Relu (a)",
        "m = ReduceMax <keepdims = 0> (s)  a = Add (c, m)  y = Relu (a)",
    ],
)
def test_no_residual(lines: str) -> None:
    layer = followed_by(lines, k=normal(RNG, 3, 1, 1))
    assert (layer.preactivation, layer.shortcut, layer.activation) == ("c", None, IDENTITY)


def test_residual_that_is_an_output_has_no_activation() -> None:
    layer = followed_by("a = Add (c, s)  y = Relu (a)", outputs="float[N, 3, h, w] y, float[N, 3, h, w] a")
    assert (layer.preactivation, layer.shortcut, layer.activation) == ("a", "s", IDENTITY)


def test_block_and_its_order() -> None:
    layers = find_layers(normalise(residual_block()))
    assert [(layer.name, layer.activation, layer.shortcut) for layer in layers] == [
        ("n_a", RELU, None),
        ("n_d", RELU, "x"),
        ("n_y", IDENTITY, None),
    ]


def test_reads_in_subgraphs_count() -> None:
    body = """g (float[N, 2, h, w] x, bool t) => (float[N, 3, h, w] y, float[N, 3, h, w] z) {
        c = Conv <pads = [1, 1, 1, 1]> (x, W)
        y = Relu (c)
        z = If (t) <
            then_branch = yes () => (float[N, 3, h, w] p) { p = Conv <pads = [1, 1, 1, 1]> (x, W) },
            else_branch = no () => (float[N, 3, h, w] q) { q = Neg (c) }
        >
    }"""
    layer = only(parse(body, W=W))
    assert layer.activation == IDENTITY
    assert layer.shares_weight


def test_operators_of_other_domains_are_no_layers() -> None:
    model = conv_model(W)
    model.graph.node[0].domain = "com.microsoft"
    assert find_layers(model) == []

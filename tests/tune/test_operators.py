"""What PyTorch computes for ONNX graphs, against onnxruntime; and its gradients, against finite differences."""

import numpy as np
import pytest
from helpers.models import error, normal, parse, run
from onnx import ModelProto

from onnxlowrank.tune.network import TorchNetwork, is_known

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(3)
W = {"w": normal(RNG, 6, 4, 3, 3), "b": normal(RNG, 6)}
GROUPED = {"w": normal(RNG, 8, 2, 3, 2), "b": normal(RNG, 8)}
TURNED = {"w": normal(RNG, 4, 3, 3, 2), "b": normal(RNG, 3)}
MAPS = {name: normal(RNG, 4) for name in ("s", "b", "m")} | {"v": np.abs(normal(RNG, 4)) + 0.5}


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CASES = {
    "conv": ("y = Conv <pads = [1, 1, 1, 1]> (x, w, b)", W),
    "conv, uneven": ("y = Conv <pads = [0, 1, 2, 0], strides = [2, 1], dilations = [1, 2]> (x, w, b)", W),
    "conv, same upper": ('y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)', W),
    "conv, same lower": ('y = Conv <auto_pad = "SAME_LOWER", strides = [2, 3]> (x, w, b)', W),
    "conv, valid": ('y = Conv <auto_pad = "VALID"> (x, w, b)', W),
    "conv, grouped": ("y = Conv <group = 2> (x, w, b)", GROUPED),
    "transposed": ("y = ConvTranspose <strides = [2, 2], pads = [1, 0, 0, 1]> (x, w, b)", TURNED),
    "transposed, padded": ("y = ConvTranspose <strides = [2, 3], output_padding = [1, 2]> (x, w, b)", TURNED),
    "transposed, sized": ("y = ConvTranspose <strides = [2, 2], output_shape = [19, 15]> (x, w, b)", TURNED),
    "transposed, same": ('y = ConvTranspose <strides = [2, 2], auto_pad = "SAME_UPPER"> (x, w, b)', TURNED),
    "gemm": (
        "f = Flatten (x)  y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (f, w, b)",
        {"w": normal(RNG, 5, 288), "b": normal(RNG, 5)},
    ),
    "matmul": ("y = MatMul (x, w)", {"w": normal(RNG, 8, 3)}),
    "max pool": ("y = MaxPool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 1]> (x)", {}),
    "max pool, ceil": ("y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x)", {}),
    "max pool, same": ('y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], auto_pad = "SAME_UPPER"> (x)', {}),
    "average": ("y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)", {}),
    "average, pads count": (
        "y = AveragePool <kernel_shape = [3, 3], pads = [1, 0, 1, 1], count_include_pad = 1> (x)",
        {},
    ),
    "average, ceil": ("y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x)", {}),
    "average, ceil, pads count": (
        "y = AveragePool <kernel_shape = [3, 3], strides = [2, 3], pads = [1, 1, 1, 1], ceil_mode = 1, "
        "count_include_pad = 1> (x)",
        {},
    ),
    "global pools": ("a = GlobalAveragePool (x)  b = GlobalMaxPool (x)  y = Sum (a, b)", {}),
    "batch norm": ("y = BatchNormalization (x, s, b, m, v)", MAPS),
    "instance norm": ("y = InstanceNormalization (x, s, b)", MAPS),
    "layer norm": (
        "y = LayerNormalization <axis = -2, epsilon = 0.01> (x, s, b)",
        {"s": normal(RNG, 9, 8), "b": normal(RNG, 9, 8)},
    ),
    "response norm": ("y = LRN <size = 3, alpha = 0.3, beta = 0.6, bias = 1.5> (x)", {}),
    "l2 norm": ("y = LpNormalization <axis = 1> (x)", {}),
    "nearest": (
        'y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (x, , s)',
        {"s": np.float32([1, 1, 2, 3])},
    ),
    "nearest, halves": ('y = Resize <mode = "nearest"> (x, , s)', {"s": np.float32([1, 1, 3, 2])}),
    "linear": ('y = Resize <mode = "linear"> (x, , , s)', {"s": ints(2, 4, 13, 20)}),
    "linear, corners": (
        'y = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, , , s)',
        {"s": ints(2, 4, 5, 11)},
    ),
    "relu": ("y = Relu (x)", {}),
    "leaky": ("y = LeakyRelu <alpha = 0.2> (x)", {}),
    "prelu": ("y = PRelu (x, s)", {"s": normal(RNG, 4, 1, 1)}),
    "clip": ("y = Clip (x, l, h)", {"l": np.float32(-0.5), "h": np.float32(0.7)}),
    "clip above": ("y = Clip (x, , h)", {"h": np.float32(0.7)}),
    "elu": ("a = Elu <alpha = 0.5> (x)  b = Selu (x)  c = Celu <alpha = 2.0> (x)  y = Sum (a, b, c)", {}),
    "sigmoids": ("a = Sigmoid (x)  b = HardSigmoid (x)  c = HardSwish (x)  y = Sum (a, b, c)", {}),
    "soft": ("a = Softplus (x)  b = Softsign (x)  c = Tanh (x)  d = Erf (x)  y = Mean (a, b, c, d)", {}),
    "thresholded": ("y = ThresholdedRelu <alpha = 0.4> (x)", {}),
    "arithmetic": (
        "a = Abs (x)  b = Sqrt (a)  c = Pow (a, two)  d = Sub (b, c)  e = Div (d, half)  y = Neg (e)",
        {"two": np.float32(2), "half": normal(RNG, 1, 4, 1, 1)},
    ),
    "largest": ("y = Max (x, a)", {"a": normal(RNG, 1, 4, 9, 1)}),
    "choice": ("c = Greater (x, z)  n = Not (c)  a = Exp (x)  y = Where (n, a, x)", {"z": np.float32(0)}),
    "rounded": ("a = Round (x)  b = Floor (x)  c = Ceil (x)  y = Sum (a, b, c)", {}),
    "softmax": ("y = Softmax <axis = 1> (x)", {}),
    "log softmax": ("y = LogSoftmax (x)", {}),
    "means": (
        "a = ReduceMean <axes = [2, 3]> (x)  b = ReduceMax <axes = [2, 3]> (x)  "
        "c = ReduceL2 <axes = [2, 3]> (x)  y = Sum (a, b, c)",
        {},
    ),
    "sums": (
        "a = ReduceSum <keepdims = 0> (x, k)  b = ReduceProd <axes = [1, 3], keepdims = 0> (x)  y = Add (a, b)",
        {"k": ints(3, 1)},
    ),
    "logsumexp": ("y = ReduceLogSumExp <axes = [1], keepdims = 0> (x)", {}),
    "largest class": ("a = ArgMax <axis = 1> (x)  y = Cast <to = 1> (a)", {}),
    "cumulated": ("y = CumSum <exclusive = 1, reverse = 1> (x, k)", {"k": np.int64(3)}),
    "reshaped": (
        "a = Reshape (x, s)  b = Transpose <perm = [0, 2, 1]> (a)  y = Flatten <axis = 2> (b)",
        {"s": ints(0, -1, 8)},
    ),
    "by its own shape": (
        "a = Shape (x)  b = Gather (a, i)  c = Concat <axis = 0> (b, m)  y = Reshape (x, c)",
        {"i": ints(0), "m": ints(-1)},
    ),
    "squeezed": ("a = Unsqueeze (x, k)  b = Squeeze (a, j)  y = Squeeze (b)", {"k": ints(0, 3), "j": ints(0)}),
    "expanded": ("a = ReduceMean <axes = [1]> (x)  s = Shape (x)  y = Expand (a, s)", {}),
    "tiled": ("y = Tile (x, r)", {"r": ints(1, 2, 1, 3)}),
    "split": ("a, b = Split <axis = 2> (x, p)  y = Concat <axis = 2> (b, a, b)", {"p": ints(4, 5)}),
    "slices": (
        "y = Slice (x, s, e, k, t)",
        {"s": ints(1, -1, 0), "e": ints(9, -99, 3), "k": ints(2, 3, 1), "t": ints(2, -2, 1)},
    ),
    "gathered": ("y = Gather <axis = 1> (x, i)", {"i": np.array([[0, -1], [2, 2]])}),
    "gathered elements": ("y = GatherElements <axis = 3> (x, i)", {"i": RNG.integers(-8, 8, (2, 4, 9, 3))}),
    "padded": ("y = Pad (x, p, v)", {"p": ints(0, 1, 2, 0, 0, 0, 1, 3), "v": np.float32(0.5)}),
    "reflected": ('y = Pad <mode = "reflect"> (x, p)', {"p": ints(0, 0, 2, 0, 0, 0, 1, 3)}),
    "deep": (
        "p = Pad (x, w)  a = SpaceToDepth <blocksize = 2> (p)  y = DepthToSpace <blocksize = 2> (a)",
        {"w": ints(0, 0, 1, 0, 0, 0, 0, 0)},
    ),
    "deep, other order": ('y = DepthToSpace <blocksize = 2, mode = "CRD"> (x)', {}),
    "filled": ("s = Shape (x)  a = ConstantOfShape (s)  y = Add (a, x)", {}),
    "counted": (
        "r = Range (z, n, o)  a = Cast <to = 1> (r)  y = Mul (x, a)",
        {"z": np.int64(0), "n": np.int64(8), "o": np.int64(1)},
    ),
    "triangle": ("y = Trilu <upper = 0> (x)", {}),
    "einsum": ('y = Einsum <equation = "nchw,cd->ndhw"> (x, w)', {"w": normal(RNG, 4, 3)}),
    "dropout": ("y = Dropout (x)", {}),
    "constants": (
        "c = Constant <value_floats = [2.0]> ()  d = Constant <value = float[1] {3.0}> ()  a = Mul (x, c)  "
        "y = Add (a, d)",
        {},
    ),
    "whole numbers": (
        "s = Shape (x)  h = Slice (s, a, b)  q = Div (h, two)  c = Cast <to = 1> (q)  y = Mul (x, c)",
        {"a": ints(2), "b": ints(3), "two": ints(2)},
    ),
}


def network(name: str) -> ModelProto:
    """Return the network of a case, whose output has no declared shape."""
    body, constants = CASES[name]
    model = parse(f"g (float[2, 4, 9, 8] x) => (float y) {{ {body} }}", **constants)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize("name", CASES)
def test_as_onnxruntime(name):
    model, x = network(name), normal(np.random.default_rng(5), 2, 4, 9, 8)
    (expected,) = run(model, x=x)
    found = TorchNetwork(model, model.graph.node, [], ["y"], "cpu").run({"x": x})["y"].numpy()
    assert found.dtype == expected.dtype
    assert error(found, expected) < 2e-5


def test_softmax_of_old_opsets_is_over_all_that_follows():
    model, x = parse("g (float[2, 4, 9] x) => (float[2, 4, 9] y) { y = Softmax (x) }", opset=11), normal(RNG, 2, 4, 9)
    found = TorchNetwork(model, model.graph.node, [], ["y"], "cpu").run({"x": x})["y"].numpy()
    assert error(found, run(model, x=x)[0]) < 1e-6
    np.testing.assert_allclose(found.sum(axis=(1, 2)), 1, rtol=1e-5)


def test_gradients_are_those_of_finite_differences():
    model = parse(
        """g (double[N, 2, 5, 5] x) => (double[N, 3] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            b = Tanh (a)
            c = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)
            d = Flatten (c)
            y = MatMul (d, v)
        }""",
        w=RNG.standard_normal((3, 2, 3, 3)),
        v=RNG.standard_normal((12, 3)),
    )
    x = RNG.standard_normal((2, 2, 5, 5))
    network = TorchNetwork(model, model.graph.node, ["w", "v"], ["y"], "cpu")
    network.run({"x": x})["y"].square().sum().backward()
    for name, parameter in network.parameters.items():
        direction = torch.from_numpy(RNG.standard_normal(tuple(parameter.shape)))
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(step * direction)
                ends.append(float(network.run({"x": x})["y"].square().sum()))
                parameter.sub_(step * direction)
        assert float((parameter.grad * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5), name


def test_what_is_known():
    node = network("conv").graph.node[0]
    assert is_known(node)
    node.domain = "com.microsoft"
    assert not is_known(node)
    node.domain, node.op_type = "", "NonMaxSuppression"
    assert not is_known(node)


def test_what_is_not_computed_alike_is_refused():
    for body in (
        'y = Resize <mode = "cubic"> (x, , s)',
        'y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric"> (x, , s)',
        'y = Pad <mode = "wrap"> (x, p)',
    ):
        constants = {"s": np.float32([1, 1, 2, 2]), "p": ints(0, 0, 1, 1, 0, 0, 1, 1)}
        model = parse(f"g (float[2, 4, 9, 8] x) => (float y) {{ {body} }}", **constants)
        with pytest.raises(NotImplementedError):
            TorchNetwork(model, model.graph.node, [], ["y"], "cpu").run({"x": normal(RNG, 2, 4, 9, 8)})

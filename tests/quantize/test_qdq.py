"""Int8 networks: what is in them, what they compute, and what they keep of the float32 network."""

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.int8 import feeds_of, small_network
from helpers.int8 import ranges_of as observed_ranges
from helpers.models import describe, error, node, normal, parse, residual_block, run, without_body

from onnxlowrank.goal import FLOAT32, INT8
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.walk import walk
from onnxlowrank.measure.hardware import adds_int8_exactly
from onnxlowrank.quantize.qdq import precision_of, quantise
from onnxlowrank.quantize.ranges import Range, least_squares, whole

RNG = np.random.default_rng(8)
needs_exact_sums = pytest.mark.skipif(not adds_int8_exactly(), reason="this processor has no VNNI")


def batches(*shape, count=4):
    rng = np.random.default_rng(0)
    return [normal(rng, *shape) for _ in range(count)]


def ranges_of(model, feeds, ranging=whole):
    return observed_ranges(model, feeds_of(np.concatenate(feeds), len(feeds[0])), ranging)


def optimised(model, *feeds):
    """Run a network as onnxruntime optimises it; return the operators it runs, and the outputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(feeds[1])
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"x": feeds[0]})
    return [one.op_type for one in walk(onnx.load(feeds[1]).graph.node)], outputs


def plain():
    return small_network(RNG)


def test_everything_is_computed_in_integers(tmp_path):
    model, x = plain(), batches(2, 8, 8, 8)
    found = quantise(model, ranges_of(model, x))
    onnx.checker.check_model(found, full_check=True)
    ops, outputs = optimised(found, x[0], tmp_path / "o.onnx")
    assert not {"Conv", "Relu", "MaxPool", "Concat", "Gemm", "GlobalAveragePool"} & set(ops)
    assert ops.count("QLinearConv") == 2
    assert ops.count("QuantizeLinear") == 1
    assert "QGemm" in ops
    assert "DequantizeLinear" not in ops  # the scores come in float32 from the Gemm
    (wanted,) = run(model, x=x[0])
    assert error(outputs[0], wanted) <= 0.03
    (simulated,) = run(found, x=x[0])
    assert error(outputs[0], simulated) <= 0.02


@pytest.mark.parametrize(
    "moved",
    [
        "q = MaxPool <kernel_shape = [1, 1]> (r)",
        "q = AveragePool <kernel_shape = [1, 1]> (r)",
        "q = Pad (r, pads)",
        "p = Transpose <perm = [0, 1, 3, 2]> (r)  q = Transpose <perm = [0, 1, 3, 2]> (p)",
    ],
)
def test_a_bias_beside_weights_of_hardly_anything_is_kept(moved):
    """Behind what has its own range in the statistics and that of its input in the network."""
    weight, bias = normal(RNG, 8, 8, 1, 1), np.zeros(8, np.float32)
    weight[3] *= np.float32(1e-13)
    bias[3] = 0.5
    model = parse(
        f"""g (float[N, 8, 8, 8] x) => (float[N, 8, s, t] y) {{
            a = Conv (x, w1)  r = Relu (a)  {moved}  y = Conv (q, w2, b2)
        }}""",
        w1=normal(RNG, 8, 8, 1, 1) / 8,
        w2=weight,
        b2=bias,
        pads=np.zeros(8, np.int64),
    )
    x = batches(2, 8, 8, 8)
    ranges = ranges_of(model, x)
    widest = ranges["q"].high
    found = quantise(model, ranges | {"q": Range(0.0, 3 * widest), "p": Range(0.0, 2 * widest)})
    (outputs,), (wanted,) = run(found, x=x[0]), run(model, x=x[0])
    step = (ranges["y"].high - ranges["y"].low) / 255
    np.testing.assert_allclose(wanted[:, 3], 0.5, atol=1e-6)
    np.testing.assert_allclose(outputs[:, 3], 0.5, atol=step)


def test_what_is_padded_with_numbers_has_a_range_that_holds_them():
    model = parse(
        """g (float[N, 8, 8, 8] x) => (float[N, 8, s, t] y) {
            a = Conv (x, w1)  r = Relu (a)  q = Pad (r, pads, value)  y = Conv (q, w2)
        }""",
        w1=normal(RNG, 8, 8, 1, 1) / 8,
        w2=normal(RNG, 8, 8, 1, 1),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        value=np.array(-3.0, np.float32),
    )
    x = batches(2, 8, 8, 8)
    found = quantise(model, ranges_of(model, x))
    assert error(run(found, x=x[0])[0], run(model, x=x[0])[0]) <= 0.03


GATED = {
    "silu": "g = Sigmoid (a)  r = Mul (a, g)",
    "squeeze and excitation": "p = GlobalAveragePool (a)  q = Conv (p, w3, b3)  g = Sigmoid (q)  r = Mul (a, g)",
    "leaky ReLU": "r = LeakyRelu <alpha = 0.1> (a)",
    "hard swish": "r = HardSwish (a)",
    "hard swish of two": "g = HardSigmoid <alpha = 0.1667, beta = 0.5> (a)  r = Mul (a, g)",
    "hard squeeze": "p = GlobalAveragePool (a)  q = Conv (p, w3, b3)  g = HardSigmoid (q)  r = Mul (a, g)",
}


def gated(which, ending="y = Conv (r, w2, b2)"):
    return parse(
        f"""g (float[N, 8, 8, 8] x) => (float[N, 8, 8, 8] y) {{
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  {GATED[which]}  {ending}
        }}""",
        w1=normal(RNG, 8, 8, 3, 3) / 8,
        b1=normal(RNG, 8),
        w2=normal(RNG, 8, 8, 1, 1),
        b2=normal(RNG, 8),
        w3=normal(RNG, 8, 8, 1, 1),
        b3=normal(RNG, 8),
    )


@pytest.mark.parametrize("which", GATED)
def test_activations_between_layers_are_computed_in_integers(tmp_path, which):
    model, x = gated(which), batches(2, 8, 8, 8)
    found = quantise(model, ranges_of(model, x))
    onnx.checker.check_model(found, full_check=True)
    ops, outputs = optimised(found, x[0], tmp_path / "o.onnx")
    assert not {"Conv", "Sigmoid", "Mul", "LeakyRelu", "GlobalAveragePool", "HardSigmoid", "HardSwish"} & set(ops)
    assert ops.count("QuantizeLinear") == ops.count("DequantizeLinear") == 1
    (wanted,) = run(model, x=x[0])
    assert error(outputs[0], wanted) <= 0.03


@pytest.mark.parametrize("relu", [False, True])
def test_what_a_concat_alone_reads_has_its_range(tmp_path, relu):
    how = "a = Relu (p)  b = Relu (q)" if relu else "a = Identity (p)  b = Identity (q)"
    model = normalise(
        parse(
            f"""g (float[N, 8, 8, 8] x) => (float[N, 4, 8, 8] y) {{
                p = Conv (x, w1, b1)  q = Conv (x, w2, b2)  {how}
                j = Concat <axis = 1> (a, b)
                y = Conv (j, w3, b3)
            }}""",
            w1=normal(RNG, 4, 8, 1, 1),
            b1=normal(RNG, 4),
            w2=9 * normal(RNG, 4, 8, 1, 1),
            b2=normal(RNG, 4),
            w3=normal(RNG, 4, 8, 1, 1),
            b3=normal(RNG, 4),
        )
    )
    x = batches(2, 8, 8, 8)
    found = quantise(model, ranges_of(model, x))
    _, outputs = optimised(found, x[0], tmp_path / "o.onnx")
    (joined,) = (one for one in onnx.load(tmp_path / "o.onnx").graph.node if one.op_type == "QLinearConcat")
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "o.onnx").graph.initializer}
    scales, zeros = ({constants[name].item() for name in joined.input[first::3]} for first in (3, 4))
    assert scales == {constants[joined.input[0]].item()}
    assert zeros == {constants[joined.input[1]].item()}
    assert error(outputs[0], run(model, x=x[0])[0]) <= 0.03


@pytest.mark.parametrize(
    ("ending", "exact"),
    [
        ("y = Sigmoid (r)", {"y"}),  # scores
        ("s = Sigmoid (r)  y = Add (s, x)", {"s"}),  # whose sum with anything has another range
        ("s = Sigmoid (r)  y = Mul (s, x)", {"s", "y"}),  # that end the network times something
        ("t = Tanh (r)  y = Conv (t, w2, b2)", {"g", "r"}),  # of what is read in float32
    ],
)
def test_in_front_of_anything_else_they_stay_in_float32(ending, exact):
    model, x = gated("silu", ending), batches(2, 8, 8, 8)
    found = quantise(model, ranges_of(model, x))
    onnx.checker.check_model(found, full_check=True)
    assert exact.isdisjoint(one.input[0] for one in found.graph.node if one.op_type == "QuantizeLinear")


def test_scores_of_a_product_and_a_bias_stay_in_float32(tmp_path):
    model = parse(
        "g (float[N, 16] x) => (float[N, 12] y) { m = MatMul (x, w)  y = Add (m, b) }",
        w=normal(RNG, 16, 12),
        b=normal(RNG, 12),
    )
    x = batches(8, 16)
    found = quantise(model, ranges_of(model, x))
    onnx.checker.check_model(found, full_check=True)
    _, outputs = optimised(found, x[0], tmp_path / "o.onnx")
    assert error(outputs[0], run(model, x=x[0])[0]) <= 0.03
    assert len(np.unique(outputs[0])) > 90  # of 96, which are no steps of a grid of 256 that repeat
    assert [one.op_type for one in found.graph.node if "y" in one.output] == ["Add"]


def test_interface_and_all_that_is_no_computation_stay():
    model = normalise(residual_block())
    x = batches(2, 4, 8, 8)
    found = quantise(model, ranges_of(model, x))
    assert without_body(found) == without_body(model)
    for one in found.graph.node:
        if one.op_type in ("Conv", "Gemm", "Add"):
            assert (one.doc_string, one.metadata_props[0].value) == (f"node {one.name}", one.name)
    for batch in (1, 3):
        (y,) = run(found, x=normal(RNG, batch, 4, 8, 8))
        assert y.shape == (batch, 5)
        assert y.dtype == np.float32


def test_equal_arguments_give_equal_bytes_and_nothing_else_changes():
    model, x = plain(), batches(2, 8, 8, 8)
    before, ranges = model.SerializeToString(deterministic=True), ranges_of(model, x)
    one, other = quantise(model, ranges), quantise(model, ranges)
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("bits", [7, 8])
def test_weights_are_on_the_grid_of_their_map(bits):
    model, x = plain(), batches(2, 8, 8, 8)
    found = quantise(model, ranges_of(model, x), weight_bits=bits)
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in found.graph.initializer}
    floats = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    for name in ("w1", "w2", "w3"):
        steps, scales = constants[f"{name}_quantized"], constants[f"{name}_scale"]
        most = 127 if bits == 8 else 64
        assert steps.dtype == np.int8
        assert np.abs(steps.astype(int)).max() == most
        assert scales.shape == (len(steps),)
        shaped = scales.reshape(-1, *(1,) * (steps.ndim - 1))
        assert np.abs(steps * shaped - floats[name]).max() <= 0.501 * scales.max()
        assert not constants[f"{name}_zero_point"].any()


@pytest.mark.parametrize("maps", [1, 3, 4, 5])
def test_maps_that_are_fed_are_filled_up_to_four(maps, tmp_path):
    model = parse(
        f"""g (float[N, {maps}, 8, 8] x) => (float[N, 8, 8, 8] y, float[N, 8, 8, 8] z) {{
            a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            y = Relu (a)
            z = Conv (x, v)
        }}""",
        w=normal(RNG, 8, maps, 3, 3),
        b=normal(RNG, 8),
        v=normal(RNG, 8, maps, 1, 1),
    )
    x = batches(2, maps, 8, 8)
    found = quantise(model, ranges_of(model, x))
    onnx.checker.check_model(found, full_check=True)
    assert without_body(found) == without_body(model)
    shapes = [one.dims[1] for one in found.graph.initializer if len(one.dims) == 4]
    assert shapes == [maps + -maps % 4] * 2
    assert sum(one.op_type == "Pad" for one in found.graph.node) == (maps != 4)
    ops, outputs = optimised(found, x[0], tmp_path / "o.onnx")
    assert ops.count("QLinearConv") == 2
    for one, wanted in zip(outputs, run(model, x=x[0]), strict=True):
        assert error(one, wanted) <= 0.03


def test_nodes_stay_in_float32_where_asked():
    model, x = plain(), batches(2, 8, 8, 8)
    found = quantise(model, ranges_of(model, x), float32=["n_c"])
    first, second, _ = find_layers(model)
    assert (precision_of(found, first), precision_of(found, second)) == (INT8, FLOAT32)
    assert node(found, "n_c").input[1] == "w2"
    assert quantise(model, {}, float32=[]) is model


@pytest.mark.parametrize("bad", [Range(0, 0), Range(-1, np.nan), Range(0, np.inf)])
@pytest.mark.parametrize("tensor", ["m", "c"])
def test_a_range_that_is_none_keeps_what_touches_it_in_float32(bad, tensor):
    model, x = plain(), batches(2, 8, 8, 8)
    found = quantise(model, ranges_of(model, x) | {tensor: bad})
    onnx.checker.check_model(found, full_check=True)
    assert [precision_of(found, layer) for layer in find_layers(model)] == [INT8, FLOAT32, INT8]
    (y,), (wanted,) = run(found, x=x[0]), run(model, x=x[0])
    assert error(y, wanted) <= 0.03


def test_a_clip_that_leaves_zero_out_is_not_taken_for_a_range():
    model = parse(
        """g (float[N, 8, 4, 4] x) => (float[N, 4, 4, 4] y) {
            a = Conv (x, w)
            r = Clip (a, low, high)
            y = Conv (r, v)
        }""",
        w=normal(RNG, 16, 8, 1, 1),
        v=normal(RNG, 4, 16, 1, 1),
        low=np.float32(1),
        high=np.float32(6),
    )
    x = batches(2, 8, 4, 4)
    (y,), (wanted,) = run(quantise(model, ranges_of(model, x)), x=x[0]), run(model, x=x[0])
    assert error(y, wanted) <= 0.03


def test_exposed_tensors_are_found_under_their_names():
    model, x = plain(), batches(2, 8, 8, 8)
    ranges = ranges_of(model, x)
    assert not any("a" in one.output for one in quantise(model, ranges).graph.node)  # it went into the ReLU
    found = quantise(model, ranges, exposed=["a"])
    assert [output.name for output in found.graph.output] == ["y"]
    model.graph.output.add().name = found.graph.output.add().name = "a"
    assert error(run(found, x=x[0])[1], run(model, x=x[0])[1]) <= 0.03


def test_tensors_that_a_subgraph_reads_stay():
    model = parse(
        """g (float[N, 8, 4, 4] x) => (float[N, 16, 4, 4] y) {
            a = Conv (x, w)
            r = Relu (a)
            s = ReduceMax <keepdims = 0> (r)
            z = Greater (s, c)
            y = If (z) <
                then_branch = t () => (float[N, 16, 4, 4] t1) { t1 = Add (a, r) },
                else_branch = e () => (float[N, 16, 4, 4] e1) { e1 = Sub (a, r) }
            >
        }""",
        w=normal(RNG, 16, 8, 1, 1),
        c=np.float32(0),
    )
    x = batches(2, 8, 4, 4)
    found = quantise(model, ranges_of(model, x))
    onnx.checker.check_model(found)
    assert error(run(found, x=x[0])[0], run(model, x=x[0])[0]) <= 0.03


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm (x, w, c)",  # the bias is computed for every row
        "y = Gemm (x, w, s)",  # or one number
        "t = Transpose (x)  y = MatMul (t, x)",
        "y = MatMul (x, i)",
    ],
)
def test_what_has_no_integer_code_is_left(body):
    model = parse(
        f"g (float[6, 6] x) => (float[6, 6] y) {{ {body} }}",
        w=normal(RNG, 6, 6),
        c=normal(RNG, 6, 6),
        s=normal(RNG),
        i=np.full((6, 6), np.inf, np.float32),
    )
    describe(model)
    assert quantise(model, dict.fromkeys("xyt", Range(-1, 1))) is model


@pytest.mark.parametrize("bits", [7, pytest.param(8, marks=needs_exact_sums)])
def test_a_fully_connected_layer_is_exact_integer_arithmetic(bits, tmp_path):
    """Onnxruntime's int8 code gives what int64 gives, for products as large as they come, all of one sign."""
    weight = np.abs(normal(RNG, 8, 64)) + np.float32(0.5)
    model = parse(
        "g (float[N, 64] x) => (float[N, 8] y) { y = Gemm <transB = 1> (x, w, b) }", w=weight, b=normal(RNG, 8)
    )
    x = [np.abs(normal(RNG, 32, 64)) + 1 for _ in range(3)]
    found = quantise(model, ranges_of(model, x, least_squares), weight_bits=bits)
    wanted = exact(found, x[0])
    _, (computed,) = optimised(found, x[0], tmp_path / "o.onnx")
    assert error(computed, wanted) <= 1e-5
    assert error(run(found, x=x[0])[0], wanted) <= 1e-5
    assert error(computed, run(model, x=x[0])[0]) <= 0.03


def exact(model, x):
    """Return the output of a quantised Gemm by int64 arithmetic ``[N, F]``."""
    known = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    steps, scale = read_by(known, x)
    sums = steps @ known["w_quantized"].astype(np.int64).T + known["b_quantized"].astype(np.int64)
    return sums * (scale.astype(np.float64) * known["w_scale"].astype(np.float64))


def read_by(known, x):
    """Return the whole numbers of steps that a layer reads, and the size of a step, by a network's constants."""
    scale, zero = known["x_scale"], int(known["x_zero_point"])
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - zero, scale


@pytest.mark.parametrize("bits", [7, pytest.param(8, marks=needs_exact_sums)])
def test_a_convolution_is_exact_integer_arithmetic(bits, tmp_path):
    weight = np.abs(normal(RNG, 16, 16, 1, 1)) + np.float32(0.5)
    model = parse("g (float[N, 16, 4, 4] x) => (float[N, 16, 4, 4] y) { y = Conv (x, w) }", w=weight)
    x = [np.abs(normal(RNG, 8, 16, 4, 4)) + 1 for _ in range(3)]
    found = quantise(model, ranges_of(model, x), weight_bits=bits)
    known = {one.name: onnx.numpy_helper.to_array(one) for one in found.graph.initializer}
    steps, scale = read_by(known, x[0])
    sums = np.einsum("fc,nchw->nfhw", known["w_quantized"][:, :, 0, 0].astype(np.int64), steps)
    real = sums * (scale.astype(np.float64) * known["w_scale"].astype(np.float64))[:, None, None]
    _, (computed,) = optimised(found, x[0], tmp_path / "o.onnx")
    assert np.abs(computed - real).max() <= 0.5001 * known["y_scale"]

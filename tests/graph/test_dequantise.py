"""Float32 networks of QDQ networks."""

import numpy as np
import onnx
import pytest
from helpers.models import error, normal, parse, residual_block, run, without_body

from onnxlowrank.errors import UnsupportedModelError
from onnxlowrank.graph.dequantise import dequantised
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.quantize.int8 import observed_ranges
from onnxlowrank.quantize.qdq import quantise
from onnxlowrank.quantize.ranges import whole

RNG = np.random.default_rng(12)


def int8_block():
    model = normalise(residual_block())
    x = [normal(RNG, 2, 4, 8, 8) for _ in range(8)]
    inputs = Inputs(lambda index: {"x": x[index]}, 8, 2, "random numbers")
    return model, quantise(model, observed_ranges(model, inputs, whole)), x


def test_it_computes_what_the_network_did_before_it_was_quantised():
    model, int8, x = int8_block()
    assert "Relu" not in [node.op_type for node in int8.graph.node]
    found = dequantised(int8, "m")
    onnx.checker.check_model(found, full_check=True)
    ops = [node.op_type for node in found.graph.node]
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(ops)
    assert "Relu" in ops
    assert without_body(found) == without_body(model)
    for one in x:
        assert error(run(found, x=one)[0], run(model, x=one)[0]) <= 0.03
    weights = [onnx.numpy_helper.to_array(one) for one in found.graph.initializer if len(one.dims) == 4]
    assert {one.dtype for one in weights} == {np.dtype(np.float32)}


def test_weights_are_the_numbers_that_the_steps_stand_for():
    steps = RNG.integers(-127, 128, (6, 4)).astype(np.int8)
    scales = RNG.uniform(0.1, 1, 6).astype(np.float32)
    zeros = RNG.integers(-5, 5, 6).astype(np.int8)
    model = parse(
        """g (float[N, 4] x) => (float[N, 6] y) {
            w = DequantizeLinear <axis = 0> (q, s, z)
            y = Gemm <transB = 1> (x, w)
        }""",
        q=steps,
        s=scales,
        z=zeros,
    )
    found = dequantised(model, "m")
    (weight,) = (onnx.numpy_helper.to_array(one) for one in found.graph.initializer)
    np.testing.assert_allclose(weight, (steps.astype(float) - zeros[:, None]) * scales[:, None], rtol=1e-6)
    x = normal(RNG, 3, 4)
    assert error(run(found, x=x)[0], run(model, x=x)[0]) <= 1e-6


def test_a_pair_on_a_weight_leaves_the_weight():
    model = parse(
        """g (float[N, 4] x) => (float[N, 6] y) {
            q = QuantizeLinear (w, s, z)
            d = DequantizeLinear (q, s, z)
            y = MatMul (x, d)
        }""",
        w=normal(RNG, 4, 6),
        s=np.float32(0.02),
        z=np.uint8(0),
    )
    assert [node.op_type for node in dequantised(model, "m").graph.node] == ["MatMul"]


@pytest.mark.parametrize("zero", [0, 128])
def test_what_a_pair_cut_off_at_zero_is_still_cut_off(zero):
    model = parse(
        """g (float[N, 4] x) => (float[N, 4] y) {
            q = QuantizeLinear (x, s, z)
            y = DequantizeLinear (q, s, z)
        }""",
        s=np.float32(0.02),
        z=np.uint8(zero),
    )
    x = np.array([[-1, -0.5, 0.25, 1]], np.float32)
    found = dequantised(model, "m")
    assert error(run(found, x=x)[0], np.maximum(x, 0) if zero == 0 else x) <= 1e-6


def test_what_is_not_quantised_is_left():
    model = residual_block()
    assert dequantised(model, "m") is model


@pytest.mark.parametrize(
    "body",
    [
        "g (uint8[N, 4] x) => (float[N, 4] y) { y = DequantizeLinear (x, s, z) }",
        "g (float[N, 4] x) => (uint8[N, 4] y) { y = QuantizeLinear (x, s, z) }",
        "g (float[N, 4] x, float t) => (float[N, 4] y) { w = DequantizeLinear (q, t, z) y = Add (x, w) }",
    ],
)
def test_integers_that_come_in_or_go_out_are_refused(body):
    model = parse(body, s=np.float32(1), z=np.uint8(0), q=np.ones(4, np.uint8))
    with pytest.raises(UnsupportedModelError, match="m cannot be dequantised"):
        dequantised(model, "m")

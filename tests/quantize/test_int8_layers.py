"""What the weights of int8 layers meet, against onnxruntime."""

import numpy as np
import pytest
from helpers.int8 import feeds_of, quantised
from helpers.models import conv_model, normal, parse, run
from onnx import numpy_helper

from onnxlowrank.quantize.int8_layers import int8_layers, sampled_responses


def check(model, x):
    """Compare the product of what is read and the weight with what the layer writes, at some positions."""
    rng = np.random.default_rng(3)
    int8 = quantised(model, feeds_of(x))
    (layer,) = int8_layers(int8)
    for name in (layer.node.output[0], layer.source):
        int8.graph.output.add().name = name
    _, response, source = run(int8, x=x)
    numbers = rng.random(7, dtype=np.float32)
    read = layer.read(source, numbers)
    rows = layer.rows_of(numpy_helper.to_array(layer.weight)) * layer.steps[:, None]
    assert np.array_equal(layer.with_rows(layer.rows_of(numpy_helper.to_array(layer.weight)).astype(np.int64)).raw_data,
                          numpy_helper.from_array(numpy_helper.to_array(layer.weight)).raw_data)  # fmt: skip
    by_group = rows.reshape(layer.group, -1, layer.columns)
    found = np.einsum("ngd,gfd->ngf", read, by_group).reshape(len(read), -1)
    if layer.bias is not None:
        found = found + numpy_helper.to_array(layer.bias) * layer.steps * layer.scale
    wanted = sampled_responses(layer.node, response, numbers)
    assert wanted.shape == found.shape
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("shape", "how"),
    [
        ((6, 4, 3, 3), {"pads": [1, 0, 2, 1]}),
        ((6, 4, 3, 2), {"strides": [2, 1], "dilations": [1, 2], "pads": [1, 1, 1, 1]}),
        ((6, 2, 3, 3), {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((8, 1, 1, 4), {"group": 4, "auto_pad": "SAME_LOWER"}),
        ((6, 4, 2, 2), {"auto_pad": "VALID"}),
        ((6, 4, 3), {"pads": [1, 1]}),
    ],
)
def test_convolutions(shape, how):
    rng = np.random.default_rng(1)
    x = normal(rng, 8, shape[1] * how.get("group", 1), *(9, 8)[: len(shape) - 2]) + 0.2
    check(conv_model(normal(rng, *shape), normal(rng, shape[0]), **how), x)


def test_a_matrix_product_of_rows():
    rng = np.random.default_rng(2)
    check(
        parse("g (float[N, 9, 6] x) => (float[N, 9, 5] y) { y = MatMul (x, w) }", w=normal(rng, 6, 5)),
        normal(rng, 8, 9, 6),
    )


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_fully_connected_layer(transposed):
    rng = np.random.default_rng(2)
    body = f"g (float[N, 6] x) => (float[N, 5] y) {{ y = Gemm <transB = {transposed}> (x, w, b) }}"
    check(parse(body, w=normal(rng, *((5, 6) if transposed else (6, 5))), b=normal(rng, 5)), normal(rng, 8, 6))

"""A small U-Net: down twice, up twice by transposed convolutions, with a skip."""

import numpy as np
from onnx import ModelProto

from helpers.models import normal, parse


def unet(width: int = 24, rank: int = 8, seed: int = 0) -> ModelProto:
    """Return ``x [N, 3, h, w] -> y [N, 2, h, w]`` for sizes that four divides, weights nearly of low rank."""
    rng = np.random.default_rng(seed)

    def weight(outputs: int, inputs: int, *kernel: int) -> np.ndarray:
        fan_in = inputs * int(np.prod(kernel))
        low = normal(rng, outputs, rank) @ normal(rng, rank, fan_in) / np.sqrt(rank * fan_in / 2)
        return (low + 0.05 * normal(rng, outputs, fan_in) / np.sqrt(fan_in)).reshape(outputs, inputs, *kernel)

    def transposed(outputs: int, inputs: int, *kernel: int) -> np.ndarray:
        return np.ascontiguousarray(weight(outputs, inputs, *kernel).swapaxes(0, 1)).astype(np.float32)

    constants = {
        "w1": weight(width, 3, 3, 3), "w2": weight(2 * width, width, 3, 3), "w3": weight(2 * width, 2 * width, 3, 3),
        "u1": transposed(2 * width, 2 * width, 3, 3), "u2": transposed(width, 2 * width, 4, 4),
        "w4": weight(2, 2 * width, 1, 1), "b1": 0.1 * normal(rng, 2 * width), "b2": 0.1 * normal(rng, width),
    }  # fmt: skip
    return parse(
        """g (float[N, 3, h, w] x) => (float[N, 2, h, w] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1)  s = Relu (a)
            b = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (s, w2)  c = Relu (b)
            d = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (c, w3)  e = Relu (d)
            f = ConvTranspose <pads = [1, 1, 1, 1], strides = [2, 2], output_padding = [1, 1]> (e, u1, b1)
            g = Relu (f)
            i = ConvTranspose <pads = [1, 1, 1, 1], strides = [2, 2]> (g, u2, b2)
            j = Relu (i)
            k = Concat <axis = 1> (j, s)
            y = Conv (k, w4)
        }""",
        **{name: values.astype(np.float32) for name, values in constants.items()},
    )

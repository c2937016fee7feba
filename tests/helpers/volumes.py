"""A small network over volumes, or short films, and what it may be fed."""

import numpy as np
from onnx import ModelProto

from helpers.models import normal, parse


def film_network(width: int = 16, rank: int = 4, seed: int = 0) -> ModelProto:
    """Return ``x [N, 2, d, h, w] -> y [N, 5]``, with 3-D kernels nearly of low rank, one of them transposed."""
    rng = np.random.default_rng(seed)

    def weight(outputs: int, inputs: int, *kernel: int) -> np.ndarray:
        fan_in = inputs * int(np.prod(kernel))
        low = normal(rng, outputs, rank) @ normal(rng, rank, fan_in) / np.sqrt(rank * fan_in / 2)
        noisy = low + 0.02 * normal(rng, outputs, fan_in) / np.sqrt(fan_in)
        return noisy.reshape(outputs, inputs, *kernel).astype(np.float32)

    return parse(
        """g (float[N, 2, d, h, w] x) => (float[N, 5] y) {
            a = Conv <pads = [1, 1, 1, 1, 1, 1]> (x, wa, ba)  ar = Relu (a)
            b = Conv <pads = [1, 1, 1, 1, 1, 1], strides = [1, 2, 2]> (ar, wb)  br = Relu (b)
            c = ConvTranspose <pads = [1, 1, 1, 1, 1, 1], strides = [2, 1, 2], output_padding = [1, 0, 1]> (br, wc, bc)
            cr = Relu (c)
            d1 = Conv <pads = [0, 1, 1, 0, 1, 1]> (cr, wd, bd)  dr = Relu (d1)
            p = GlobalAveragePool (dr)  q = Flatten (p)
            y = Gemm <transB = 1> (q, wf)
        }""",
        wa=weight(width, 2, 3, 3, 3),
        ba=0.1 * normal(rng, width),
        wb=weight(2 * width, width, 3, 3, 3),
        wc=np.ascontiguousarray(weight(width, 2 * width, 3, 3, 3).swapaxes(0, 1)),
        bc=0.1 * normal(rng, width),
        wd=weight(2 * width, width, 1, 3, 3),
        bd=0.1 * normal(rng, 2 * width),
        wf=normal(rng, 5, 2 * width),
    )


def films(count: int, frames: int = 6, size: int = 8, seed: int = 0) -> np.ndarray:
    """Return smooth films ``[count, 2, frames, size, size]``."""
    coarse = np.random.default_rng(seed).standard_normal((count, 2, frames // 2, size // 4, size // 4))
    return np.kron(coarse, np.ones((1, 1, 2, 4, 4))).astype(np.float32)

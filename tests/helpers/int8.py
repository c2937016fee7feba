"""A small network, what makes it int8, and its sample inputs."""

import numpy as np

from helpers.models import normal, parse
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.quantize.observe import observe
from onnxlowrank.quantize.qdq import activations_of, quantisable, quantise
from onnxlowrank.quantize.ranges import least_squares


def small_network(rng):
    """Return Conv-ReLU-Conv-pool-Gemm, with biases, from float32 images of four maps."""
    return parse(
        """g (float[N, 4, 8, 8] x) => (float[N, 5] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            r = Relu (a)
            c = Conv (r, w2, b2)
            p = GlobalAveragePool (c)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, w3, b3)
        }""",
        w1=normal(rng, 16, 4, 3, 3),
        b1=normal(rng, 16),
        w2=normal(rng, 8, 16, 1, 1),
        b2=normal(rng, 8),
        w3=normal(rng, 5, 8),
        b3=normal(rng, 5),
    )


def feeds_of(x, batch=4):
    """Return an array as inputs of ``batch`` samples each."""
    return Inputs(lambda index: {"x": x[batch * index : batch * (index + 1)]}, len(x) // batch, batch, "random numbers")


def quantised(model, inputs, **how):
    """Return a network as int8, its ranges observed on inputs."""
    seen = observe(model, activations_of(model, quantisable(model)), inputs, lambda amount: None)
    return quantise(model, {name: least_squares(one) for name, one in seen.items()}, **how)


def mean_of_maps(value):
    """Return the means of the maps ``[N, maps, ...]``."""
    return np.moveaxis(value, 1, 0).reshape(value.shape[1], -1).mean(axis=1, dtype=np.float64)

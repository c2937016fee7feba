"""A small network, what makes it int8, and its sample inputs."""

import numpy as np
import onnx

from helpers.models import normal, parse, run
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.quantize.observe import observe
from onnxlowrank.quantize.qdq import activations_of, quantisable, quantise
from onnxlowrank.quantize.ranges import least_squares


def small_network(rng):
    """Return Conv-ReLU-pool-Conv-Concat-pool-Gemm, with biases, from float32 images of eight maps."""
    return parse(
        """g (float[N, 8, 8, 8] x) => (float[N, 5] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            r = Relu (a)
            m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
            c = Conv (m, w2, b2)
            j = Concat <axis = 1> (c, m)
            p = GlobalAveragePool (j)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, w3, b3)
        }""",
        w1=normal(rng, 16, 8, 3, 3),
        b1=normal(rng, 16),
        w2=normal(rng, 16, 16, 1, 1),
        b2=normal(rng, 16),
        w3=normal(rng, 5, 32),
        b3=normal(rng, 5),
    )


def feeds_of(x, batch=4):
    """Return an array as inputs of ``batch`` samples each."""
    return Inputs(lambda index: {"x": x[batch * index : batch * (index + 1)]}, len(x) // batch, batch, "random numbers")


def ranges_of(model, inputs, ranging=least_squares):
    """Return the ranges of what can be int8 in a network, as they are on inputs."""
    seen = observe(model, activations_of(model, quantisable(model)), inputs, lambda amount: None)
    return {name: ranging(one) for name, one in seen.items()}


def quantised(model, inputs, **how):
    """Return a network as int8, its ranges observed on inputs."""
    return quantise(model, ranges_of(model, inputs), **how)


def responses(model, x, names):
    """Return what nodes write."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    outputs = [next(one for one in model.graph.node if one.name == name).output[0] for name in names]
    del copy.graph.output[:]
    for name in outputs:
        copy.graph.output.add().name = name
    return run(copy, x=x)


def mean_of_maps(value):
    """Return the means of the maps ``[N, maps, ...]``."""
    return np.moveaxis(value, 1, 0).reshape(value.shape[1], -1).mean(axis=1, dtype=np.float64)

"""Biases that take back what rounding moves means by."""

import numpy as np
from helpers.models import normal, parse, run

from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.quantize.bias import with_corrected_biases
from onnxlowrank.quantize.observe import observe
from onnxlowrank.quantize.qdq import activations_of, quantisable, quantise
from onnxlowrank.quantize.ranges import least_squares


def network(rng):
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


def means(model, x, names):
    """Return the mean of every map of what nodes write."""
    copy = type(model)()
    copy.CopyFrom(model)
    outputs = [next(one for one in model.graph.node if one.name == name).output[0] for name in names]
    del copy.graph.output[:]
    for name in outputs:
        copy.graph.output.add().name = name
    return [np.moveaxis(value, 1, 0).reshape(value.shape[1], -1).mean(axis=1) for value in run(copy, x=x)]


def test_the_means_of_all_responses_are_those_of_the_float32_network():
    rng = np.random.default_rng(6)
    model, x = network(rng), normal(rng, 64, 4, 8, 8) + 0.3
    inputs = Inputs(lambda index: {"x": x[4 * index : 4 * index + 4]}, 16, 4, "random numbers")
    seen = observe(model, activations_of(model, quantisable(model)), inputs, lambda amount: None)
    int8 = quantise(model, {name: least_squares(one) for name, one in seen.items()})
    before, done = int8.SerializeToString(), []
    corrected = with_corrected_biases(model, int8, inputs, done.append)
    assert int8.SerializeToString() == before
    assert abs(sum(done) - 1) < 1e-9
    names = ["n_a", "n_c", "n_y"]
    wanted, moved, found = (means(one, x, names) for one in (model, int8, corrected))
    constants = {one.name: one for one in corrected.graph.initializer}
    for number, name in enumerate(("b1", "b2", "b3")):
        step = np.frombuffer(constants[f"{name}_quantized_scale"].raw_data, np.float32)
        assert np.all(np.abs(found[number] - wanted[number]) <= 0.51 * step + 1e-4)
    assert np.abs(moved[1] - wanted[1]).max() > 10 * np.abs(found[1] - wanted[1]).max()


def test_layers_without_a_bias_stay():
    rng = np.random.default_rng(7)
    model = parse("g (float[N, 6] x) => (float[N, 5] y) { y = MatMul (x, w) }", w=normal(rng, 6, 5))
    x = normal(rng, 8, 6)
    inputs = Inputs(lambda index: {"x": x}, 1, 8, "random numbers")
    seen = observe(model, activations_of(model, quantisable(model)), inputs, lambda amount: None)
    int8 = quantise(model, {name: least_squares(one) for name, one in seen.items()})
    assert with_corrected_biases(model, int8, inputs, lambda amount: None) == int8

"""Which layers have to stay in float32 together, against what onnxruntime makes of them."""

import numpy as np
import pytest
from helpers.models import normal, parse

from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.successors import next_layers
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.node_times import profile
from onnxlowrank.measure.sessions import Target
from onnxlowrank.quantize.qdq import activations_of, quantisable, quantise
from onnxlowrank.quantize.ranges import Range
from onnxlowrank.quantize.stretches import requantised, stretch

NAMES = ("n_a", "n_b", "n_c", "n_d", "n_y")


@pytest.fixture(scope="module")
def case():
    """Return Conv-ReLU-Conv-ReLU-MaxPool-Conv + shortcut-Conv-pool-Gemm, and its int8 network by what stays float32."""
    rng = np.random.default_rng(1)
    model = parse(
        """g (float[N, 4, 16, 16] x) => (float[N, 6] y) {
            a = Conv (x, wa, ba)
            ar = Relu (a)
            b = Conv (ar, wb, bb)
            br = Relu (b)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (br)
            c = Conv (p, wc, bc)
            s = Add (c, p)
            d = Conv (s, wd, bd)
            q = GlobalAveragePool (d)
            f = Flatten (q)
            y = Gemm <transB = 1> (f, wy, by)
        }""",
        wa=normal(rng, 8, 4, 1, 1), ba=normal(rng, 8), wb=normal(rng, 8, 8, 1, 1), bb=normal(rng, 8),
        wc=normal(rng, 8, 8, 1, 1), bc=normal(rng, 8), wd=normal(rng, 8, 8, 1, 1), bd=normal(rng, 8),
        wy=normal(rng, 6, 8), by=normal(rng, 6),
    )  # fmt: skip
    x = normal(rng, 1, 4, 16, 16)
    layers = with_shapes(model, find_layers(model), Inputs(lambda index: {"x": x}, 1, 1, "random numbers"))
    ranges = dict.fromkeys(activations_of(model, quantisable(model)), Range(-2.0, 2.0))
    ranges |= dict.fromkeys(("ar", "br", "p"), Range(0.0, 2.0))
    return model, layers, {"x": x}, lambda float32: quantise(model, ranges, float32)


def in_float32(model, feeds, names):
    """Return which of these nodes onnxruntime computes in float32."""
    ran = {one.node: one.op for one in profile(model, feeds, Target(), 0.05)}
    return [name for name in names if ran.get(name) in ("Conv", "FusedConv", "Gemm")]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_of_one_layer_is_what_onnxruntime_does(case, name):
    _, _, feeds, write = case
    model = write([name])
    assert (name in requantised(model)) == (name not in in_float32(model, feeds, [name]))


@pytest.mark.parametrize("name", NAMES)
def test_a_stretch_stays_in_float32(case, name):
    model, layers, feeds, write = case
    found = stretch(name, layers, next_layers(model, layers), write)
    assert name in found
    assert len(found) <= 3
    assert in_float32(write(found), feeds, found) == list(found)


def test_a_layer_in_front_of_a_pool_takes_the_next_one_along(case):
    model, layers, _, write = case
    assert "n_b" in requantised(write(["n_b"]))
    assert stretch("n_b", layers, next_layers(model, layers), write) == ("n_b", "n_c")
    assert stretch("n_d", layers, next_layers(model, layers), write) == ("n_d",)

"""Observed activations against the whole of them."""

import numpy as np
from helpers.models import normal, parse, run

from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.quantize.observe import activations, observe


def test_inputs_and_inner_tensors_are_seen_once_a_feed_and_integers_are_not():
    model = parse(
        "g (float[N, 3] x) => (float[N, 2] y) { a = MatMul (x, w)  s = Shape (a)  y = Relu (a) }",
        w=normal(np.random.default_rng(0), 3, 2),
    )
    x = normal(np.random.default_rng(1), 12, 3)
    inputs = Inputs(lambda index: {"x": x[3 * index : 3 * index + 3]}, 4, 3, "random numbers")
    done = []
    seen = observe(model, ["x", "a", "s", "y"], inputs, done.append)
    assert done == [1, 1, 1, 1]
    assert set(seen) == {"x", "a", "y"}
    (y,) = run(model, x=x)
    assert (seen["x"].low, seen["x"].high) == (x.min(), x.max())
    assert seen["y"].high == y.max()
    assert seen["a"].counts.sum() == 24
    assert [set(one) for one in activations(model, ["y"], inputs, lambda amount: None)] == [{"y"}] * 4


def test_of_large_tensors_some_numbers_are_counted_and_all_count_for_the_ends():
    model = parse("g (float[N, m] x) => (float[N, m] y) { y = Neg (x) }")
    x = normal(np.random.default_rng(2), 2, 500_000)
    x[1, 77777] = 1e3
    inputs = Inputs(lambda index: {"x": x}, 1, 2, "random numbers")
    seen = observe(model, ["y"], inputs, lambda amount: None)["y"]
    assert seen.low == -1e3
    assert 30_000 <= seen.counts.sum() <= 2**16
    assert abs(seen.quantile(0.5)) < 0.03

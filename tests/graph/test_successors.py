"""Which layers come next, in small networks."""

import numpy as np
import pytest
from helpers.models import parse

from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.successors import next_layers

SQUARE = np.eye(4, dtype=np.float32)
CHAIN = "g (float[N, 4] x) => (float[N, 4] z) { a = MatMul (x, u) r = Relu (a) b = MatMul (r, v) z = MatMul (b, w) }"
RESIDUAL = """g (float[N, 4] x) => (float[N, 4] z) {
    a = MatMul (x, u) b = MatMul (a, v) s = Add (a, b) c = MatMul (s, w) t = Add (s, c) z = MatMul (t, o) }"""
BIAS = "g (float[N, 4] x) => (float[N, 4] z) { p = MatMul (x, u) a = Add (p, bias) z = MatMul (a, v) }"
NESTED = """g (float[N, 4] x, bool c) => (float[N, 4] z) {
    a = MatMul (x, u)
    s = If (c) <then_branch = yes () => (float[N, 4] m) { m = Relu (a) },
                else_branch = no () => (float[N, 4] n) { n = Neg (a) }>
    z = MatMul (s, v) }"""


def found(body, without=(), **constants):
    """Return the names of the next layers, layers being called after their first node's output."""
    model = parse(body, u=SQUARE, v=SQUARE, w=SQUARE, o=SQUARE, **constants)
    layers = [layer for layer in find_layers(model) if layer.name not in without]
    return {name: [one.name for one in after] for name, after in next_layers(model, layers).items()}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (CHAIN, {"n_a": ["n_b"], "n_b": ["n_z"], "n_z": []}),
        (RESIDUAL, {"n_a": ["n_b", "n_c", "n_z"], "n_b": ["n_c", "n_z"], "n_c": ["n_z"], "n_z": []}),
        (NESTED, {"n_a": ["n_z"], "n_z": []}),
    ],
)
def test_the_first_layers_on_every_path_come_next(body, expected):
    assert found(body) == expected


def test_the_bias_of_a_layer_is_part_of_it():
    assert found(BIAS, bias=np.ones(4, np.float32)) == {"n_p": ["n_z"], "n_z": []}


def test_layers_that_are_not_asked_for_are_passed():
    assert found(CHAIN, without=["n_b"]) == {"n_a": ["n_z"], "n_z": []}

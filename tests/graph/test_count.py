"""Counts against brute force: the operators computed one product at a time, and what comes out is what they compute."""

import itertools
import math

import numpy as np
import pytest
from helpers.models import normal, run
from onnx import TensorProto, helper

from onnxlowrank.graph.count import arithmetic, einsum_macs, is_unknown

RNG = np.random.default_rng(4)


def indices(shape):
    return itertools.product(*map(range, shape))


class Counter:
    """Multiplies, and counts how often."""

    def __init__(self):
        self.products = 0

    def times(self, one, other):
        self.products += 1
        return float(one) * float(other)


def convolve(x, w, group, strides, pads, dilations, count):
    """Return a convolution, of any number of axes, tap by tap; those in the padding are multiplied like others."""
    axes = x.ndim - 2
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)])
    size = [(padded.shape[2 + i] - dilations[i] * (w.shape[2 + i] - 1) - 1) // strides[i] + 1 for i in range(axes)]
    y = np.zeros((x.shape[0], w.shape[0], *size))
    maps = w.shape[0] // group
    for n, f, *place in indices(y.shape):
        for c, *tap in indices(w.shape[1:]):
            at = [place[i] * strides[i] + tap[i] * dilations[i] for i in range(axes)]
            y[(n, f, *place)] += count.times(padded[(n, f // maps * w.shape[1] + c, *at)], w[(f, c, *tap)])
    return y


def spread(x, w, group, strides, pads, count):
    """Return a transposed convolution: what every input position adds to the output, which is cropped at last."""
    axes = x.ndim - 2
    size = [(x.shape[2 + i] - 1) * strides[i] + w.shape[2 + i] for i in range(axes)]
    y = np.zeros((x.shape[0], w.shape[1] * group, *size))
    for n, c, *place in indices(x.shape):
        for f, *tap in indices(w.shape[1:]):
            at = [place[i] * strides[i] + tap[i] for i in range(axes)]
            y[(n, c // (x.shape[1] // group) * w.shape[1] + f, *at)] += count.times(x[(n, c, *place)], w[(c, f, *tap)])
    crop = (slice(pads[i], size[i] - pads[axes + i]) for i in range(axes))
    return y[(slice(None), slice(None), *crop)]


def multiply(a, b, count):
    """Return the product of two matrices, or of stacks of them."""
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = np.broadcast_to(a, (*lead, *a.shape[-2:])), np.broadcast_to(b, (*lead, *b.shape[-2:]))
    y = np.zeros((*lead, a.shape[-2], b.shape[-1]))
    for *place, i, j in indices(y.shape):
        for k in range(a.shape[-1]):
            y[(*place, i, j)] += count.times(a[(*place, i, k)], b[(*place, k, j)])
    return y


def contract(equation, operands, count):
    """Return an Einsum of two operands without ellipses."""
    left, _, right = equation.partition("->")
    terms = left.split(",")
    sizes = {
        letter: n for term, x in zip(terms, operands, strict=True) for letter, n in zip(term, x.shape, strict=True)
    }
    y = np.zeros([sizes[letter] for letter in right])
    for place in indices(sizes.values()):
        at = dict(zip(sizes, place, strict=True))
        y[tuple(at[one] for one in right)] += count.times(
            *(x[tuple(at[one] for one in term)] for term, x in zip(terms, operands, strict=True))
        )
    return y


def recur(x, w, r, count):
    """Return the states ``[T, directions, N, H]`` of an RNN without biases; other cells have more rows."""
    y = np.zeros((x.shape[0], w.shape[0], x.shape[1], r.shape[2]))
    for d in range(w.shape[0]):
        h = np.zeros((x.shape[1], r.shape[2]))
        for t in range(x.shape[0])[:: -1 if d else 1]:
            h = np.tanh(multiply(x[t], w[d].T, count) + multiply(h, r[d].T, count))
            y[t, d] = h
    return y


def computed(op, arrays, outputs=1, **how):
    """Return what onnxruntime computes, and the multiply-accumulates that are counted for it."""
    names = [f"x{i}" for i in range(len(arrays))]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], name="node", **how)
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape)
            for name, x in zip(names, arrays, strict=True)
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = run(model, **dict(zip(names, arrays, strict=True)))
    return found[0], arithmetic(node).macs(node, [x.shape for x in arrays], [y.shape for y in found])


@pytest.mark.parametrize(
    ("x", "w", "group", "strides", "pads", "dilations"),
    [
        ((2, 3, 9), (4, 3, 3), 1, (2,), (1, 1), (1,)),
        ((1, 4, 5, 6), (6, 2, 3, 2), 2, (1, 2), (1, 0, 1, 2), (1, 1)),
        ((2, 4, 6, 5), (4, 1, 2, 2), 4, (1, 1), (0, 0, 0, 0), (2, 2)),
        ((1, 2, 4, 5, 4), (3, 2, 3, 3, 3), 1, (1, 2, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1)),
    ],
)
def test_convolutions(x, w, group, strides, pads, dilations):
    x, w, count = normal(RNG, *x), normal(RNG, *w), Counter()
    y, macs = computed("Conv", (x, w), group=group, strides=strides, pads=pads, dilations=dilations)
    np.testing.assert_allclose(convolve(x, w, group, strides, pads, dilations, count), y, atol=1e-4)
    assert macs == count.products


@pytest.mark.parametrize(
    ("x", "w", "group", "strides", "pads"),
    [
        ((2, 3, 5), (3, 2, 4), 1, (2,), (1, 1)),
        ((1, 4, 4, 3), (4, 3, 3, 2), 2, (2, 1), (1, 0, 0, 0)),
        ((1, 2, 3, 3, 2), (2, 3, 2, 2, 2), 1, (2, 2, 2), (0,) * 6),
    ],
)
def test_transposed_convolutions(x, w, group, strides, pads):
    x, w, count = normal(RNG, *x), normal(RNG, *w), Counter()
    y, macs = computed("ConvTranspose", (x, w), group=group, strides=strides, pads=pads)
    np.testing.assert_allclose(spread(x, w, group, strides, pads, count), y, atol=1e-4)
    assert macs == count.products


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(trans_a, trans_b):
    a, b, count = normal(RNG, 3, 4), normal(RNG, 4, 5), Counter()
    y, macs = computed("Gemm", (a.T if trans_a else a, b.T if trans_b else b), transA=trans_a, transB=trans_b)
    np.testing.assert_allclose(multiply(a, b, count), y, atol=1e-4)
    assert macs == count.products == 60


@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((2, 1, 3, 4), (6, 4, 5)), ((3, 4), (2, 4, 5))],
)
def test_products_of_matrices(a, b):
    a, b, count = normal(RNG, *a), normal(RNG, *b), Counter()
    y, macs = computed("MatMul", (a, b))
    np.testing.assert_allclose(multiply(a, b, count), y, atol=1e-4)
    assert macs == count.products


@pytest.mark.parametrize(("a", "b", "macs"), [((4,), (4,), 4), ((3, 4), (4,), 12), ((4,), (4, 5), 20)])
def test_products_with_vectors(a, b, macs):
    assert computed("MatMul", (normal(RNG, *a), normal(RNG, *b)))[1] == macs


@pytest.mark.parametrize(
    ("equation", "a", "b"),
    [
        ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
        ("bhqd,bhkd->bhqk", (2, 2, 3, 4), (2, 2, 5, 4)),
        ("nchw,fc->nfhw", (1, 3, 2, 4), (5, 3)),
        ("i,j->ij", (3,), (4,)),
        ("ij,ij->", (3, 4), (3, 4)),
    ],
)
def test_einsum(equation, a, b):
    a, b, count = normal(RNG, *a), normal(RNG, *b), Counter()
    y, macs = computed("Einsum", (a, b), equation=equation)
    np.testing.assert_allclose(contract(equation, (a, b), count), y, atol=1e-4)
    assert macs == count.products == einsum_macs(equation, (a.shape, b.shape))


def test_einsum_of_ellipses_of_one_and_of_three_operands():
    assert einsum_macs("...ij, ...jk -> ...ik", [(2, 1, 3, 4), (6, 4, 5)]) == 2 * 6 * 3 * 4 * 5
    assert einsum_macs("bij,bjk", [(2, 3, 4), (2, 4, 5)]) == 2 * 3 * 4 * 5
    assert einsum_macs("bij->bji", [(2, 3, 4)]) == 0
    assert einsum_macs("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]) == 2 * 3 * 4 + 2 * 4 * 5


@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers(directions):
    steps, batch, inputs, hidden = 4, 2, 3, 5
    x = normal(RNG, steps, batch, inputs)
    direction = "bidirectional" if directions == 2 else "forward"
    for op, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        w, r = normal(RNG, directions, gates * hidden, inputs), normal(RNG, directions, gates * hidden, hidden)
        y, macs = computed(op, (x, w, r), hidden_size=hidden, direction=direction)
        count = Counter()
        if op == "RNN":
            np.testing.assert_allclose(recur(x, w, r, count), y, atol=1e-4)
            assert macs == count.products
        assert macs == steps * batch * directions * gates * hidden * (inputs + hidden)


def test_attention_is_its_two_products():
    batch, heads, queries, keys, width, values = 2, 3, 4, 5, 6, 7
    shapes = [(batch, heads, queries, width), (batch, heads, keys, width), (batch, heads, keys, values)]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    products = batch * heads * (queries * keys * width + queries * keys * values)
    assert arithmetic(node).macs(node, shapes, [(batch, heads, queries, values)]) == products
    flat = [(shape[0], shape[2], shape[1] * shape[3]) for shape in shapes]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=heads, kv_num_heads=heads)
    assert arithmetic(node).macs(node, flat, [(batch, queries, heads * values)]) == products


def test_operators_of_onnxruntime():
    fused = helper.make_node("FusedConv", ["x", "w"], ["y"], domain="com.microsoft")
    assert arithmetic(fused).macs(fused, [(2, 3, 8, 8), (4, 3, 3, 3)], [(2, 4, 6, 6)]) == 2 * 4 * 36 * 27
    fused = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", transA=1)
    assert arithmetic(fused).macs(fused, [(4, 3), (4, 5)], [(3, 5)]) == math.prod((3, 4, 5))


@pytest.mark.parametrize(
    ("op", "domain", "unknown"),
    [
        ("Relu", "", False),
        ("Conv", "ai.onnx", False),
        ("Gelu", "com.microsoft", False),
        ("FusedConv", "com.microsoft", False),
        ("MultiHeadAttention", "com.microsoft", True),
        ("TreeEnsembleClassifier", "ai.onnx.ml", False),
        ("SVMClassifier", "ai.onnx.ml", True),
        ("Anything", "org.example", True),
    ],
)
def test_what_is_not_known_is_told(op, domain, unknown):
    assert is_unknown(helper.make_node(op, ["x"], ["y"], domain=domain)) == unknown

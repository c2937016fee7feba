"""Squared gradients against NumPy by hand and against finite differences."""

import sys

import numpy as np
import pytest
import scipy.special
from helpers.models import conv_model, normal, parse

from onnxlowrank.calibrate.gradients import squared_gradients
from onnxlowrank.errors import ModelError, OptionError
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.inputs.feeds import Inputs

RNG = np.random.default_rng(9)


def inputs_of(batches, labels=None):
    labels = None if labels is None else np.asarray(labels, np.int64).reshape(len(batches), -1)
    return Inputs(lambda index: {"x": batches[index]}, len(batches), len(batches[0]), "test rows", labels)


def squares_of(model, inputs, **options):
    pytest.importorskip("onnx2torch")
    model, shares = normalise(model), []
    found = squared_gradients(model, find_layers(model), inputs, shares.append, **options)
    assert sum(shares) == pytest.approx(1)
    return found


def softmax_regression(rows, logits, labels, h):
    """Eq. 1-2 by hand for logits that are a matrix ``[F, C]`` times rows ``[n, C]``, plus a bias."""
    squares = np.zeros((logits.shape[1], rows.shape[1]))
    for row, scores, label in zip(rows.astype(np.float64), logits.astype(np.float64), labels, strict=True):
        probabilities = scipy.special.softmax(scores)
        wrong = [k for k in np.argsort(-scores) if k != label][:h]
        for k in wrong:
            squares += np.outer(probabilities - np.eye(len(scores))[k], row) ** 2
    return squares[..., None]


WEIGHT, BIAS = normal(RNG, 6, 4), normal(RNG, 6)
ROWS = normal(RNG, 5, 4)
LOGITS = ROWS @ WEIGHT.T + BIAS
LABELS = [3, 0, 5, 1, 1]
GEMM = "y = Gemm <transB = 1> (x, w, b)"
LINEAR = {
    "gemm": (GEMM, {"w": WEIGHT, "b": BIAS}),
    "gemm, not transposed, scaled": ("y = Gemm <alpha = 2.0> (x, w, b)", {"w": WEIGHT.T / 2, "b": BIAS}),
    "gemm, a matrix for a bias": ("y = Gemm <transB = 1, alpha = 2.0> (x, w, b)", {"w": WEIGHT / 2, "b": BIAS[None]}),
    "matmul": ("m = MatMul (x, w)  y = Add (m, b)", {"w": WEIGHT.T, "b": BIAS}),
    "softmax": ("m = Gemm <transB = 1> (x, w, b)  y = Softmax <axis = 1> (m)", {"w": WEIGHT, "b": BIAS}),
}


def linear(body, constants, dims="N, 4"):
    constants = {name: np.ascontiguousarray(values) for name, values in constants.items()}
    return parse(f"g (float[{dims}] x) => (float[{dims.split(',')[0]}, 6] y) {{ {body} }}", **constants)


@pytest.mark.parametrize("labels", [None, LABELS], ids=["own answers", "labels"])
@pytest.mark.parametrize("name", LINEAR)
def test_softmax_regression_by_hand(name, labels):
    model = linear(*LINEAR[name])
    (found,) = squares_of(model, inputs_of([row[None] for row in ROWS], labels)).values()
    assert found.dtype == np.float64
    expected = softmax_regression(ROWS, LOGITS, LOGITS.argmax(1) if labels is None else labels, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("h", [1, 5, 99])
def test_as_many_mistakes_as_asked_for(h):
    (found,) = squares_of(linear(*LINEAR["gemm"]), inputs_of([row[None] for row in ROWS], LABELS), h=h).values()
    np.testing.assert_allclose(found, softmax_regression(ROWS, LOGITS, LABELS, h), rtol=1e-4, atol=1e-7)


def test_elements_of_a_batch_count_one_by_one():
    model = linear(*LINEAR["gemm"], dims="5, 4")
    (found,) = squares_of(model, inputs_of([ROWS, ROWS[::-1].copy()], LABELS + LABELS[::-1])).values()
    np.testing.assert_allclose(found, 2 * softmax_regression(ROWS, LOGITS, LABELS, 3), rtol=1e-4, atol=1e-7)


def test_a_batch_shorter_than_the_first():
    (found,) = squares_of(linear(*LINEAR["gemm"]), inputs_of([ROWS, ROWS[:2]])).values()
    rows, logits = (np.concatenate([whole, whole[:2]]) for whole in (ROWS, LOGITS))
    np.testing.assert_allclose(found, softmax_regression(rows, logits, logits.argmax(1), 3), rtol=1e-4, atol=1e-7)


def test_a_hundred_samples_evenly_spread():
    read = []

    def feed(index):
        read.append(index)
        return {"x": ROWS[index % 5][None]}

    squares_of(linear(*LINEAR["gemm"]), Inputs(feed, 1000, 1, "many"))
    assert len(read) == 100
    assert (read[0], read[-1]) == (0, 999)
    assert set(np.diff(read)) <= {10, 11}


def correlate(x, weight, pads, strides, group):
    """Return the convolution of ``x [C, H, W]``, in float64."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(1, 2))
    windows = windows[:, :: strides[0], :: strides[1]]
    parts = zip(np.split(windows, group), np.split(weight, group), strict=True)
    return np.concatenate([np.einsum("chwij,fcij->fhw", *part) for part in parts])


@pytest.mark.parametrize("group", [1, 2])
def test_convolutions_by_finite_differences(group):
    x, w1, w2 = normal(RNG, 3, 6, 6), normal(RNG, 4, 3, 3, 2), normal(RNG, 4, 4 // group, 3, 3)
    model = parse(
        f"""g (float[N, 3, 6, 6] x) => (float[N, 4] y) {{
            a = Conv <pads = [1, 0, 0, 1]> (x, w1)
            r = Relu (a)
            c = Conv <strides = [2, 1], group = {group}> (r, w2)
            p = GlobalAveragePool (c)
            y = Flatten (p)
        }}""",
        w1=w1,
        w2=w2,
    )
    for node in model.graph.node:
        node.name = f"block.0/{node.name}"  # a name that PyTorch would change

    def logits(first, second):
        hidden = np.maximum(correlate(x, first, (1, 0, 0, 1), (1, 1), 1), 0)
        return correlate(hidden, second, (0, 0, 0, 0), (2, 1), group).mean(axis=(1, 2))

    def losses(first, second):
        return -scipy.special.log_softmax(logits(first, second))

    label = 2
    wrong = [k for k in np.argsort(-logits(w1, w2)) if k != label][:2]
    found = squares_of(model, inputs_of([x[None]], [label]), h=2)
    assert list(found) == ["block.0/n_a", "block.0/n_c"]
    weights = [w1.astype(np.float64), w2.astype(np.float64)]
    for position, squares in enumerate(found.values()):
        weight = weights[position]
        expected = np.zeros(weight.shape)
        for index in np.ndindex(*weight.shape):
            up, down = ([w.copy() for w in weights] for _ in range(2))
            up[position][index] += 1e-6
            down[position][index] -= 1e-6
            expected[index] = (((losses(*up) - losses(*down)) / 2e-6)[wrong] ** 2).sum()
        assert expected.max() > 1e-3
        np.testing.assert_allclose(squares, expected.reshape(*weight.shape[:2], -1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["conv", "matmul"])
def test_a_layer_of_two_places_by_finite_differences(kind):
    """The gradient by a weight is the sum of those at its places."""
    if kind == "conv":
        x, weight, label = normal(RNG, 4, 6, 6), normal(RNG, 4, 4, 3, 3), 2
        lines = "a = Conv (x, w) r = Relu (a) c = Conv (r, w) p = GlobalAveragePool (c) y = Flatten (p)"
        model = parse(f"g (float[N, 4, 6, 6] x) => (float[N, 4] y) {{ {lines} }}", w=weight)
    else:
        x, weight, label = normal(RNG, 4), normal(RNG, 4, 4), 1
        body = "g (float[N, 4] x) => (float[N, 4] y) { a = MatMul (x, w) r = Relu (a) y = MatMul (r, w) }"
        model = parse(body, w=np.ascontiguousarray(weight.T))

    def logits(kernel):
        if kind == "matmul":
            return kernel @ np.maximum(kernel @ x.astype(np.float64), 0)
        hidden = np.maximum(correlate(x, kernel, (0,) * 4, (1, 1), 1), 0)
        return correlate(hidden, kernel, (0,) * 4, (1, 1), 1).mean(axis=(1, 2))

    wrong = [k for k in np.argsort(-logits(weight)) if k != label][:2]
    (found,) = squares_of(model, inputs_of([x[None]], [label]), h=2).values()
    expected = np.zeros(weight.shape)
    for index in np.ndindex(*weight.shape):
        ends = []
        for step in (1e-6, -1e-6):
            moved = weight.astype(np.float64)
            moved[index] += step
            ends.append(-scipy.special.log_softmax(logits(moved)))
        expected[index] = (((ends[0] - ends[1]) / 2e-6)[wrong] ** 2).sum()
    np.testing.assert_allclose(found, expected.reshape(4, 4, -1), rtol=1e-3, atol=1e-5 * expected.max())


def test_a_layer_that_nothing_depends_on_and_no_layers():
    pytest.importorskip("onnx2torch")
    model = linear("y = Gemm <transB = 1> (x, w, b)  dead = MatMul (x, v)", {"w": WEIGHT, "b": BIAS, "v": WEIGHT.T})
    inputs = inputs_of([row[None] for row in ROWS])
    found = squared_gradients(model, find_layers(model), inputs, lambda share: None)
    assert found["n_y"].min() > 0
    np.testing.assert_array_equal(found["n_dead"], np.zeros((6, 4, 1)))
    assert squared_gradients(model, [], inputs, lambda share: None) == {}


def test_networks_that_are_no_classifiers():
    two = parse("g (float[N, 4] x) => (float[N, 6] y, float[N, 6] z) { y = MatMul (x, w)  z = Relu (y) }", w=WEIGHT.T)
    with pytest.raises(ModelError, match="one output, not 2"):
        squares_of(two, inputs_of([ROWS]))
    image = conv_model(normal(RNG, 3, 2, 3, 3))
    with pytest.raises(ModelError, match=r"\[N, classes\], not \[1, 3, 3, 3\]"):
        squares_of(image, inputs_of([normal(RNG, 1, 2, 5, 5)]))
    single = linear("y = MatMul (x, w)", {"w": WEIGHT[:1].T})
    with pytest.raises(ModelError, match=r"not \[1, 1\]"):
        squares_of(single, inputs_of([ROWS[:1]]))


def test_an_operator_that_pytorch_lacks():
    model = linear("m = Gemm <transB = 1> (x, w, b)  y = Hardmax (m)", {"w": WEIGHT, "b": BIAS})
    with pytest.raises(ModelError, match=r"PyTorch cannot run the network .*Hardmax.*use another metric"):
        squares_of(model, inputs_of([ROWS[:1]]))


def test_values_that_are_not_finite():
    with pytest.raises(ModelError, match="layer n_y are not finite on test rows"):
        squares_of(linear(*LINEAR["gemm"]), inputs_of([np.full((1, 4), np.inf, np.float32)]))


@pytest.mark.parametrize("missing", ["torch", "onnx2torch"])
def test_without_pytorch(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(OptionError, match=r"pip install 'onnxlowrank\[finetune\]'"):
        squared_gradients(linear(*LINEAR["gemm"]), [], inputs_of([ROWS[:1]]), lambda share: None)

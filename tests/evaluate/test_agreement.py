"""Comparison of outputs against NumPy, by hand."""

import numpy as np
import pytest
import scipy.special
from helpers.models import normal, parse

from onnxlowrank.errors import ModelError
from onnxlowrank.evaluate.agreement import compare_outputs
from onnxlowrank.evaluate.classes import confidence, divergence
from onnxlowrank.evaluate.intervals import paired_interval, share_interval
from onnxlowrank.graph.probe import expose
from onnxlowrank.inputs.feeds import Inputs

RNG = np.random.default_rng(5)


def inputs_of(*batches, labels=None):
    labels = None if labels is None else np.asarray(labels, np.int64).reshape(len(batches), -1)
    return Inputs(lambda index: {"x": batches[index]}, len(batches), len(batches[0]), "test rows", labels)


def linear(weight, tail="y = MatMul (x, w)", output="float[N, 3] y"):
    return parse(f"g (float[N, 4] x) => ({output}) {{ {tail} }}", w=weight)


def compared(before, after, inputs):
    advanced = []
    agreement = compare_outputs(before, after, inputs, advanced.append)
    assert sum(advanced) == len(inputs)
    return agreement


WEIGHT = normal(RNG, 4, 3)
OTHER = WEIGHT + 0.3 * normal(RNG, 4, 3)
BATCHES = normal(RNG, 5, 4), normal(RNG, 5, 4)
ROWS = np.concatenate(BATCHES)


@pytest.mark.parametrize("at_once", [2, 3, 4, 100])
def test_inputs_at_once_are_compared_one_by_one(at_once):
    body = "g (float[N, C, 4] x) => (float[N, C, 3] y) { y = MatMul (x, w) }"
    before, after = parse(body, w=WEIGHT), parse(body, w=OTHER)
    inputs = inputs_of(*(normal(RNG, 1, 2 + (i > 6), 4) for i in range(10)))
    advanced = []
    alone = compare_outputs(before, after, inputs, lambda amount: None)
    found = compare_outputs(before, after, inputs, advanced.append, at_once=at_once)
    assert advanced == [1] * 10
    assert (found.inputs, found.outputs) == (10, alone.outputs)
    assert found == alone


def test_logits():
    a, b = ROWS @ WEIGHT, ROWS @ OTHER
    labels = [0, 1, 2, 0, 1, 2, 2, 1, 0, 0]
    found = compared(linear(WEIGHT), linear(OTHER), inputs_of(*BATCHES, labels=labels))
    assert (found.inputs, found.source) == (10, "test rows")
    assert found.largest_difference == pytest.approx(np.abs(a - b).max(), rel=1e-5)
    assert found.relative_error == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-5)
    agreement = np.mean(a.argmax(1) == b.argmax(1))
    assert 0 < agreement < 1
    assert found.top1_agreement == pytest.approx(agreement)
    p, q = scipy.special.softmax(a, axis=1), scipy.special.softmax(b, axis=1)
    assert found.divergence == pytest.approx(scipy.special.rel_entr(p, q).sum(axis=1).mean(), rel=1e-4)
    assert found.accuracy == pytest.approx((np.mean(a.argmax(1) == labels), np.mean(b.argmax(1) == labels)))


def test_probabilities():
    tail = "m = MatMul (x, w)  y = Softmax <axis = 1> (m)"
    found = compared(linear(WEIGHT, tail), linear(OTHER, tail), inputs_of(*BATCHES))
    p, q = (scipy.special.softmax(ROWS @ w, axis=1) for w in (WEIGHT, OTHER))
    assert found.divergence == pytest.approx(scipy.special.rel_entr(p, q).sum(axis=1).mean(), rel=1e-4)
    assert found.relative_error == pytest.approx(np.linalg.norm(q - p) / np.linalg.norm(p), rel=1e-4)
    assert found.accuracy is None


def test_certain_probabilities_stay_finite():
    tail = "m = MatMul (x, w)  y = Hardmax <axis = 1> (m)"
    found = compared(linear(WEIGHT, tail), linear(OTHER, tail), inputs_of(*BATCHES, labels=[0] * 10))
    assert np.isfinite(found.divergence)
    assert found.divergence > 0


def test_a_network_and_itself():
    found = compared(linear(WEIGHT), linear(WEIGHT), inputs_of(*BATCHES, labels=range(10)))
    assert (found.largest_difference, found.relative_error, found.divergence) == (0, 0, 0)
    assert found.top1_agreement == 1
    assert found.accuracy[0] == found.accuracy[1]


def test_outputs_of_nothing_but_zeros():
    zero = np.zeros((4, 3), np.float32)
    assert compared(linear(zero), linear(zero), inputs_of(*BATCHES)).relative_error == 0


def test_all_outputs_count_and_those_that_are_no_numbers_by_what_decides_them():
    tail = "y = MatMul (x, w)  z = Mul (y, y)  k = ArgMax <axis = 1> (y)"
    output = "float[N, 3] y, float[N, 3] z, int64[N, 1] k"
    found = compared(linear(WEIGHT, tail, output), linear(OTHER, tail, output), inputs_of(*BATCHES))
    a, b = ROWS @ WEIGHT, ROWS @ OTHER
    difference = np.concatenate([b - a, b**2 - a**2])
    expected = np.linalg.norm(difference) / np.linalg.norm(np.concatenate([a, a**2]))
    assert found.relative_error == pytest.approx(expected, rel=1e-5)
    assert found.largest_difference == pytest.approx(np.abs(difference).max(), rel=1e-5)
    assert found.top1_agreement is None
    y, z, k = found.outputs
    assert (y.equal, z.equal) == (None, None)
    assert (k.equal, k.largest, k.relative_error) == (np.mean(a.argmax(1) == b.argmax(1)), None, None)
    assert [(one.tensor, one.outputs, one.measure) for one in found.judged] == [
        ("y", ("y", "k"), "values"),
        ("z", ("z",), "values"),
    ]
    spread = ((a - a.mean(axis=0)) ** 2).sum()
    assert found.judged[0].loss == pytest.approx(((b - a) ** 2).sum() / spread, rel=1e-4)


def test_a_discrete_output_is_judged_inside_or_not_at_all():
    tail, output = "m = MatMul (x, w)  y = ArgMax <axis = 1> (m)", "int64[N, 1] y"
    one, other = linear(WEIGHT, tail, output), linear(OTHER, tail, output)
    alone = compared(one, other, inputs_of(*BATCHES))
    assert (alone.relative_error, alone.largest_difference) == (None, None)
    assert "has no tensor m" in alone.not_compared
    inside = expose(one, ["m"]), expose(other, ["m"])
    found = compare_outputs(one, other, inputs_of(*BATCHES), lambda amount: None, inside=inside)
    a, b = ROWS @ WEIGHT, ROWS @ OTHER
    assert found.relative_error == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-5)
    assert not found.not_compared
    assert found.outputs[0].equal == alone.outputs[0].equal == np.mean(a.argmax(1) == b.argmax(1)) < 1


def test_rows_that_appear_or_vanish_are_a_difference_and_no_error():
    tail = "m = MatMul (x, w)  i = NonZero (m)  t = Transpose (i)  y = GatherND (m, t)  k = Cast <to = 7> (y)"
    output = "float[K] y, int64[K] k"
    some = OTHER.copy()
    some[:, 0] = 0
    one, other = linear(WEIGHT, tail, output), linear(some, tail, output)
    inside = expose(one, ["m"]), expose(other, ["m"])
    found = compare_outputs(one, other, inputs_of(*BATCHES), lambda amount: None, inside=inside)
    y, k = found.outputs
    assert y.rows == k.rows == (30, 20)
    assert "its shape is" in y.why_not
    assert 0 <= k.equal < 1
    assert found.relative_error == pytest.approx(
        np.linalg.norm(ROWS @ some - ROWS @ WEIGHT) / np.linalg.norm(ROWS @ WEIGHT), rel=1e-5
    )


def test_intervals_hold_what_was_found():
    labels = [0, 1, 2, 0, 1, 2, 2, 1, 0, 0]
    found = compared(linear(WEIGHT), linear(OTHER), inputs_of(*BATCHES, labels=labels))
    low, high = found.error_interval
    assert low <= found.relative_error <= high
    assert found.top1_interval == share_interval(round(10 * found.top1_agreement), 10)
    a, b = (ROWS @ WEIGHT).argmax(1) == labels, (ROWS @ OTHER).argmax(1) == labels
    expected = paired_interval(int((a & ~b).sum()), int((b & ~a).sum()), 10)
    assert found.drop_interval == pytest.approx([100 * end for end in expected])
    assert found.largest_drop == found.drop_interval[1] >= found.drop


@pytest.mark.parametrize(
    ("tail", "output"),
    [
        ("m = MatMul (x, w)  one = Constant <value_ints = [1]> ()  y = Unsqueeze (m, one)", "float[N, 1, 3] y"),
        ("m = MatMul (x, w)  y = ReduceSum <keepdims = 1> (m)", "float[1, 1] y"),
        ("m = MatMul (x, w)  y = ArgMax <axis = 1> (m)", "int64[N, 1] y"),
    ],
)
def test_no_classifier(tail, output):
    found = compared(linear(WEIGHT, tail, output), linear(OTHER, tail, output), inputs_of(*BATCHES))
    assert (found.top1_agreement, found.divergence, found.accuracy) == (None, None, None)
    assert found.inputs == 10
    assert (found.relative_error is None) == ("ArgMax" in tail)


def test_outputs_whose_width_changes_are_no_classes():
    body = "g (float[N, T] x) => (float[N, T] y) { y = Mul (x, w) }"
    batches = normal(RNG, 1, 4), normal(RNG, 1, 6)
    found = compared(parse(body, w=np.float32(2)), parse(body, w=np.float32(3)), inputs_of(*batches))
    assert found.relative_error == pytest.approx(0.5)


def test_labels_that_are_not_one_a_row_give_no_accuracy():
    tail = "m = MatMul (x, w)  shape = Constant <value_ints = [-1, 3]> ()  y = Reshape (m, shape)"
    body = f"g (float[N, 2, 4] x) => (float[M, 3] y) {{ {tail} }}"
    batches = normal(RNG, 5, 2, 4), normal(RNG, 5, 2, 4)
    found = compared(parse(body, w=WEIGHT), parse(body, w=OTHER), inputs_of(*batches, labels=[0] * 10))
    assert found.accuracy is None
    assert found.top1_agreement is not None


def test_infinities_are_refused_where_there_were_none():
    with pytest.raises(ModelError, match=r"output y of the optimised model is not finite on test rows"):
        compared(linear(WEIGHT), linear(WEIGHT * np.float32(np.inf)), inputs_of(*BATCHES))


def test_other_shapes_are_not_compared():
    wide = linear(normal(RNG, 4, 5), output="float[N, 5] y")
    found = compared(linear(WEIGHT), wide, inputs_of(*BATCHES))
    assert found.outputs[0].why_not == "its shape is [5, 3] in one network and [5, 5] in the other"
    assert (found.relative_error, found.outputs[0].relative_error) == (None, None)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("given", ["logits", "probabilities"])
def test_divergence_and_confidence_at_a_temperature(temperature, given):
    rng = np.random.default_rng(2)
    one, other = 3 * normal(rng, 6, 5), 3 * normal(rng, 6, 5)
    p, q = (scipy.special.softmax(scores / temperature, axis=1) for scores in (one, other))
    if given == "probabilities":
        one, other = (scipy.special.softmax(scores.astype(np.float64), axis=1) for scores in (one, other))
    expected = scipy.special.rel_entr(p, q).sum(axis=1).mean()
    assert divergence(one, other, temperature) == pytest.approx(expected, rel=1e-4)
    assert confidence(one, temperature) == pytest.approx(p.max(axis=1).mean(), rel=1e-4)


NOISY = "m = MatMul (x, w)  n = RandomNormalLike <scale = 0.5> (m)  y = Add (m, n)"


def many_rows(count=4000):
    rows = normal(np.random.default_rng(9), count, 4)
    return rows, inputs_of(rows, labels=(rows @ WEIGHT).argmax(1))


def test_the_noise_of_a_network_is_told_from_what_was_changed():
    rows, inputs = many_rows()
    a, b = rows @ WEIGHT, rows @ OTHER
    found = compared(linear(WEIGHT, NOISY), linear(OTHER, NOISY), inputs)
    norm = np.mean(a**2) + 0.25  # of two draws of variance 1/4 each, one is in the first network
    assert found.noise.relative_error == pytest.approx((2 * 0.25 / norm) ** 0.5, rel=0.03)
    assert found.relative_error == pytest.approx(((np.mean((b - a) ** 2) + 2 * 0.25) / norm) ** 0.5, rel=0.03)
    assert found.noise.top1_agreement < 1
    assert found.top1_agreement < found.noise.top1_agreement
    assert found.noise.largest_difference > 1


def test_a_noisy_network_and_itself_differ_by_its_noise():
    found = compared(linear(WEIGHT, NOISY), linear(WEIGHT, NOISY), many_rows()[1])
    assert found.relative_error == found.noise.relative_error > 0.1
    assert compared(linear(WEIGHT, NOISY), linear(WEIGHT, NOISY), many_rows()[1]) == found, "it repeats"


def test_without_noise_there_is_none_to_tell():
    seeded = NOISY.replace("scale", "seed = 3.0, scale")
    for tail in (seeded, "y = MatMul (x, w)"):
        found = compared(linear(WEIGHT, tail), linear(WEIGHT, tail), many_rows()[1])
        assert (found.noise, found.relative_error) == (None, 0)


def test_noise_is_told_of_the_tensors_inside():
    tail, output = f"{NOISY.replace('y = Add', 'z = Add')}  y = ArgMax <axis = 1> (z)", "int64[N, 1] y"
    one, other = linear(WEIGHT, tail, output), linear(OTHER, tail, output)
    inside = expose(one, ["z"]), expose(other, ["z"])
    found = compare_outputs(one, other, many_rows()[1], lambda amount: None, inside=inside)
    assert 0.1 < found.noise.relative_error < found.relative_error

"""What a network loses, against NumPy: variance, class scores at a temperature, several outputs."""

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from onnxlowrank.evaluate.classes import confidence, divergence
from onnxlowrank.evaluate.discrete import as_array, equal_entries, row_count
from onnxlowrank.evaluate.measures import CLASSES, VALUES, Measure
from onnxlowrank.evaluate.objective import Objective
from onnxlowrank.evaluate.variance import Variance

RNG = np.random.default_rng(8)


def measure(kind, axis=1):
    return Measure("t", ("t",), kind, axis)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 2**31))
def test_variance_feed_by_feed_is_that_of_all(batches, maps, positions, seed):
    rng = np.random.default_rng(seed)
    shape = (maps,) if not positions else (maps, positions, 2)
    feeds = [1e3 + rng.standard_normal((batch, *shape)) for batch in batches]
    variance = Variance()
    for feed in feeds:
        variance.add(feed)
    whole = np.concatenate(feeds)
    axes = (0, *range(2, whole.ndim))
    by_map = ((whole - whole.mean(axis=axes, keepdims=True)) ** 2).sum()
    one_sample = whole.size == maps
    expected = ((whole - whole.mean()) ** 2).sum() if one_sample else by_map
    assert variance.sum == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_variance_of_what_never_varies_is_nothing():
    variance = Variance()
    for _ in range(3):
        variance.add(np.full((2, 3), 7.0, np.float32))
    assert variance.sum == 0


def test_values_are_relative_to_their_variance_not_to_their_size():
    before = [100 + RNG.standard_normal((4, 3)) for _ in range(5)]
    after = [array + 0.1 for array in before]
    loss = Objective([measure(VALUES)], [[array] for array in before]).loss([[array] for array in after])
    whole = np.concatenate(before)
    assert loss == pytest.approx(60 * 0.01 / ((whole - whole.mean(axis=0)) ** 2).sum(), rel=1e-6)


def test_outputs_add_up_whatever_their_order_and_size():
    one = [RNG.standard_normal((4, 3)) for _ in range(3)]
    other = [1e4 * RNG.standard_normal((4, 2, 8, 8)) for _ in range(3)]
    moved = (
        [a + 0.1 * RNG.standard_normal(a.shape) for a in one],
        [a + 1e3 * RNG.standard_normal(a.shape) for a in other],
    )
    pairs, changed = list(zip(one, other, strict=True)), list(zip(*moved, strict=True))
    both = [measure(VALUES)] * 2
    there = Objective(both, pairs).loss(changed)
    back = Objective(both, [pair[::-1] for pair in pairs]).loss([pair[::-1] for pair in changed])
    alone = [Objective([measure(VALUES)], [[p[i]] for p in pairs]).loss([[c[i]] for c in changed]) for i in (0, 1)]
    assert there == pytest.approx(back) == pytest.approx(sum(alone))
    assert min(alone) > 0.001


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_classes_of_every_position(axis):
    scores = [2 * RNG.standard_normal((2, 4, 4, 4)) for _ in range(3)]
    changed = [array + 0.3 * RNG.standard_normal(array.shape) for array in scores]
    loss = Objective([measure(CLASSES, axis)], [[a] for a in scores]).loss([[a] for a in changed])
    rows = [np.moveaxis(np.concatenate(arrays), axis, -1).reshape(-1, 4) for arrays in (scores, changed)]
    p, q = (scipy.special.softmax(one, axis=1) for one in rows)
    assert confidence(rows[0]) < 0.8
    assert loss == pytest.approx(scipy.special.rel_entr(p, q).sum(axis=1).mean(), rel=1e-6)


def test_a_network_sure_of_its_classes_is_asked_at_a_temperature():
    scores = 30 * RNG.standard_normal((50, 5))
    changed = scores + RNG.standard_normal(scores.shape)
    loss = Objective([measure(CLASSES)], [[scores]]).loss([[changed]])
    hotter = next(t for t in np.linspace(1, 300, 3000) if confidence(scores, t) <= 0.8)
    assert loss == pytest.approx(hotter**2 * divergence(scores, changed, hotter), rel=0.02)


def test_equal_entries():
    assert equal_entries(np.array([1, 2, 3]), np.array([1, 5, 3])) == (2, 3)
    assert equal_entries(np.array(["a", "b"], object), np.array(["a", "c"], object)) == (1, 2)
    rows, fewer = np.array([[0, 1], [2, 3], [0, 1]]), np.array([[2, 3], [0, 1]])
    assert equal_entries(rows, fewer) == (2, 3)
    assert (row_count(rows), row_count(np.zeros((1, 5, 4))), row_count(np.zeros(6))) == (3, 5, 6)


def test_maps_become_rows():
    assert as_array([{"a": 0.25, "b": 0.75}, {"a": 0.5, "b": 0.5}]).tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert as_array([{"a": 1.0}, {"b": 1.0}]) is None
    assert as_array("text") is None

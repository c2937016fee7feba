"""Streamed ranges against numpy on all the numbers at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlowrank.quantize.ranges import Histogram, Range, least_squares, percentile, rounding_error, whole


def filled(parts):
    seen = Histogram()
    for part in parts:
        seen.add(np.asarray(part, np.float32))
    return seen


PARTS = st.lists(
    st.tuples(st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 40.0, 1e5]), st.integers(1, 300)),
    min_size=1,
    max_size=6,
)


@given(PARTS, st.sampled_from([0.0, -0.7, 3.0]))
@settings(max_examples=60, deadline=None)
def test_a_histogram_that_grows_is_that_of_all_numbers_at_once(parts, shift):
    drawn = [
        (scale * (shift + np.random.default_rng(seed).standard_normal(count))).astype(np.float32)
        for seed, scale, count in parts
    ]
    seen, together = filled(drawn), np.concatenate(drawn).astype(np.float64)
    assert (seen.low, seen.high) == (together.min(), together.max())
    edges = np.append(seen.centres - seen.width / 2, seen.centres[-1] + seen.width / 2)
    inside = np.floor(together / seen.width).astype(int) - round(edges[0] / seen.width)
    np.testing.assert_array_equal(seen.counts, np.bincount(inside, minlength=len(seen.counts)))
    assert len(seen.counts) <= 8192
    assert seen.width <= np.abs(together).max() / 1023


@given(PARTS, st.sampled_from([0.001, 0.1, 0.5, 0.999]))
@settings(max_examples=60, deadline=None)
def test_percentiles_are_those_of_all_numbers_to_a_bin(parts, share):
    drawn = [
        (scale * np.random.default_rng(seed).standard_normal(count)).astype(np.float32) for seed, scale, count in parts
    ]
    seen, together = filled(drawn), np.concatenate(drawn).astype(np.float64)
    found = seen.quantile(share)
    below, above = (np.quantile(together, share, method=method) for method in ("lower", "higher"))
    lower = np.quantile(together, max(share - 1 / len(together), 0), method="lower")
    assert min(lower, below) - seen.width <= found <= above + seen.width


def test_the_order_in_which_numbers_come_does_not_matter():
    numbers = np.random.default_rng(0).standard_normal(5000) * 10.0 ** np.linspace(-4, 2, 5000)
    one, other = filled(np.split(numbers, 50)), filled(np.split(numbers[::-1], 10))
    np.testing.assert_array_equal(one.counts, other.counts)
    assert one.width == other.width


def test_memory_does_not_grow_with_the_numbers():
    seen = Histogram()
    for seed in range(200):
        seen.add(np.random.default_rng(seed).standard_normal(1000).astype(np.float32) * (1 + seed))
    assert seen.counts.sum() == 200_000
    assert seen.counts.size <= 8192


def exact_error(numbers, ends):
    """Round numbers to uint8 as QuantizeLinear does and back."""
    low, high = min(ends.low, 0), max(ends.high, 0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    return np.mean(((np.clip(np.rint(numbers / scale) + zero, 0, 255) - zero) * scale - numbers) ** 2)


@pytest.mark.parametrize("draw", ["normal", "relu", "tail", "shifted", "negative"])
def test_the_best_clip_is_that_of_brute_force(draw):
    rng = np.random.default_rng(3)
    numbers = {
        "normal": lambda: rng.standard_normal(40000),
        "relu": lambda: np.maximum(rng.standard_normal(40000), 0),
        "tail": lambda: rng.standard_t(3, 40000),
        "shifted": lambda: 2 + rng.standard_normal(40000),
        "negative": lambda: -np.abs(rng.standard_t(3, 40000)),
    }[draw]().astype(np.float32)
    seen = filled(np.split(numbers, 40))
    found = least_squares(seen)
    low, high = min(numbers.min(), 0), max(numbers.max(), 0)
    tried = [
        exact_error(numbers, Range(a * low, b * high)) for a in np.linspace(0.1, 1, 19) for b in np.linspace(0.1, 1, 19)
    ]
    assert exact_error(numbers, found) <= 1.03 * min(tried)
    assert exact_error(numbers, found) <= exact_error(numbers, whole(seen)) * 1.001


def test_errors_by_the_histogram_are_those_of_the_numbers():
    numbers = np.random.default_rng(4).standard_t(4, 50000).astype(np.float32)
    seen = filled([numbers])
    for ends in (Range(-3, 3), Range(-1, 5), whole(seen)):
        assert rounding_error(seen, ends) == pytest.approx(exact_error(numbers, ends), rel=0.1)


def test_percentile_leaves_the_tails_out():
    numbers = np.append(np.random.default_rng(5).uniform(-1, 1, 100_000), [50.0, -70.0])
    seen = filled([numbers])
    assert whole(seen) == Range(-70.0, 50.0)
    found = percentile(seen, 1e-4)
    assert -1.1 - seen.width <= found.low < -0.9
    assert 0.9 < found.high <= 1.1 + seen.width


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_a_range_unusable(bad):
    seen = filled([[1.0, 2.0], [bad, 3.0], [0.5]])
    for ranging in (whole, percentile, least_squares):
        assert not ranging(seen).is_usable
    assert seen.counts.sum() == 4


@pytest.mark.parametrize("values", [[0.0, 0.0], [-0.0], [1e-40], []])
def test_nothing_makes_a_range_unusable(values):
    for ranging in (whole, percentile, least_squares):
        assert not ranging(filled([values])).is_usable


@pytest.mark.parametrize("value", [3.0, -2.0, 1e30, -1e-20])
def test_one_number_has_a_range_from_zero(value):
    for ranging in (whole, percentile, least_squares):
        found = ranging(filled([[value]]))
        assert found.is_usable
        assert min(found.low, 0) <= min(value, 0) * 0.999
        assert max(found.high, 0) >= max(value, 0) * 0.999

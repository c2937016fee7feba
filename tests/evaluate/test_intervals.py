"""Confidence intervals against exact probabilities: they hold as often as they say."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest, multinomial

from onnxlowrank.evaluate.intervals import bootstrap_interval, paired_interval, samples_to_confirm, share_interval


@pytest.mark.parametrize(("count", "samples"), [(0, 7), (3, 10), (10, 10), (77, 300)])
def test_a_share_is_as_scipy_has_it(count, samples):
    expected = binomtest(count, samples).proportion_ci(method="exact")
    assert share_interval(count, samples) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("lost", "won"), [(0.0, 0.0), (0.02, 0.01), (0.1, 0.02), (0.3, 0.3), (0.0, 0.2)])
def test_a_paired_difference_is_covered_as_often_as_it_should_be(lost, won):
    """Exactly, by the sum over all outcomes of 60 pairs."""
    samples, covered = 60, 0.0
    outcomes = multinomial(samples, [lost, won, 1 - lost - won])
    for a, b in itertools.product(range(samples + 1), repeat=2):
        if a + b <= samples and (chance := outcomes.pmf([a, b, samples - a - b])) > 1e-9:
            low, high = paired_interval(a, b, samples)
            assert low <= (a - b) / samples + 1e-9
            assert high >= (a - b) / samples - 1e-9
            covered += chance * (low - 1e-9 <= lost - won <= high + 1e-9)
    assert covered > 0.93


def test_the_ends_swap_with_the_networks():
    low, high = paired_interval(7, 2, 50)
    assert paired_interval(2, 7, 50) == pytest.approx((-high, -low), abs=1e-6)


def test_no_pair_that_differs_is_no_certainty():
    low, high = paired_interval(0, 0, 100)
    assert high == pytest.approx(1.96**2 / (100 + 1.96**2), rel=1e-3)
    assert low == pytest.approx(-high, rel=1e-6)


@pytest.mark.parametrize("share", [0.005, 0.01, 0.05])
def test_so_many_samples_it_takes(share):
    samples = samples_to_confirm(share)
    assert paired_interval(0, 0, samples)[1] <= share * (1 + 1e-9) < paired_interval(0, 0, samples - 1)[1]


def test_bootstrap_of_a_mean():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(lambda chosen: values[chosen].mean(), len(values))
    deviation = values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - 1.96 * deviation, values.mean() + 1.96 * deviation), abs=0.05)
    assert (low, high) == bootstrap_interval(lambda chosen: values[chosen].mean(), len(values))

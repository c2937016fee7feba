"""Weights rounded together, against every way to round them."""

import itertools

import numpy as np
import pytest

from onnxlowrank.decompose.rounding import round_together


def problem(seed, rows=3, columns=4, spread=2.0):
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((columns, columns)) * 10 ** rng.uniform(-spread / 2, spread / 2, columns)
    return rng.standard_normal((rows, columns)), rng.uniform(0.2, 0.5, rows), factor @ factor.T + 0.01 * np.eye(columns)


def lost(numbers, weight, steps, moments):
    off = numbers * steps[:, None] - weight
    return np.einsum("fd,de,fe->f", off, moments, off)


def test_next_to_the_best_of_all_ways():
    """The best is searched among all numbers of steps within four of the weight."""
    ratios, nearest = [], []
    for seed in range(20):
        weight, steps, moments = problem(seed, columns=3, spread=1.0)
        found = lost(round_together(weight, steps, moments, 127), weight, steps, moments)
        plain = np.rint(weight / steps[:, None])
        for row in range(len(weight)):
            floor = np.floor(weight[row] / steps[row])
            ways = floor + np.array(list(itertools.product(range(-3, 5), repeat=weight.shape[1])))
            off = ways * steps[row] - weight[row]
            best = np.einsum("nd,de,ne->n", off, moments, off).min()
            ratios.append(found[row] / best)
            nearest.append(lost(plain[row : row + 1], weight[row : row + 1], steps[row : row + 1], moments)[0] / best)
    assert np.median(ratios) <= 1.05
    assert np.mean(ratios) <= 1.5
    assert np.mean(nearest) >= 3 * np.mean(ratios)


@pytest.mark.parametrize("columns", [1, 5, 200])
def test_never_worse_than_the_nearest_steps_and_within_the_largest(columns):
    for seed in range(3):
        weight, steps, moments = problem(seed, rows=8, columns=columns)
        found = round_together(weight, steps, moments, 4)
        assert np.abs(found).max() <= 4
        nearest = np.clip(np.rint(weight / steps[:, None]), -4, 4)
        assert np.all(lost(found, weight, steps, moments) <= lost(nearest, weight, steps, moments) * (1 + 1e-9))


def test_of_uncorrelated_inputs_the_nearest_are_the_best():
    weight, steps, _ = problem(0, columns=6)
    found = round_together(weight, steps, np.diag([3.0, 1, 2, 5, 4, 6]), 127)
    assert np.array_equal(found, np.rint(weight / steps[:, None]))

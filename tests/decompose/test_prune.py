"""Backward elimination of input maps against closed forms and brute force, and beside the LASSO of He 2017."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlowrank.decompose.metric import Metric, frobenius
from onnxlowrank.decompose.prune import eliminate, without_others


def problem(seed: int, filters: int, maps: int, taps: int) -> tuple[np.ndarray, Metric]:
    """Return a kernel and the metric of patches whose maps are mixtures of few sources, as those of networks are."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((maps, max(maps // 2, 1))) * rng.uniform(0.3, 2, (maps, 1))
    near = 0.6 ** np.abs(np.subtract.outer(np.arange(taps), np.arange(taps)))
    covariance = np.kron(mixing @ mixing.T, near)
    own = rng.standard_normal((maps * taps, maps * taps)) * 0.4
    covariance += own @ own.T / taps
    whole = Metric(np.ones(filters), np.eye(maps), np.eye(taps), covariance=covariance)
    return rng.standard_normal((filters, maps, taps)), whole


def separable(seed: int, filters: int, maps: int, taps: int) -> tuple[np.ndarray, Metric]:
    """Return the like with a separable metric."""
    kernel, one = problem(seed, filters, maps, 1)
    near = 0.6 ** np.abs(np.subtract.outer(np.arange(taps), np.arange(taps)))
    kernel = np.random.default_rng(seed).standard_normal((filters, maps, taps))
    return kernel, Metric(np.ones(filters), one.covariance, near)


def lost_without(kernel: np.ndarray, kept: tuple[int, ...], metric: Metric) -> float:
    """Return what the best kernel on ``kept`` loses, by a least-squares problem solved from scratch in float64."""
    filters, _, taps = kernel.shape
    covariance = np.kron(metric.inputs, metric.taps) if metric.covariance is None else metric.covariance
    root = np.linalg.cholesky(covariance).T  # rows are samples of just that covariance
    columns = (np.array(kept, int)[:, None] * taps + np.arange(taps)).ravel()
    target = root @ kernel.reshape(filters, -1).T
    found = np.linalg.lstsq(root[:, columns], target, rcond=None)[0]
    return float(((target - root[:, columns] @ found) ** 2).sum())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_losses_are_those_of_least_squares(seed: int, filters: int, maps: int, taps: int, exact: bool) -> None:
    kernel, metric = (problem if exact else separable)(seed, filters, maps, taps)
    found = eliminate(kernel, metric)
    assert sorted(found.order) == list(range(maps))
    assert found.lost[maps] == 0
    whole = metric.norm2(kernel)
    assert found.lost[0] == pytest.approx(whole, rel=1e-7)
    for count in range(1, maps + 1):
        kept = found.kept(count)
        rest = np.zeros_like(kernel)
        rest[:, kept] = without_others(kernel, kept, metric)
        assert metric.norm2(kernel - rest) == pytest.approx(found.lost[count], rel=1e-6, abs=1e-9 * whole)
        assert lost_without(kernel, tuple(kept), metric) == pytest.approx(found.lost[count], rel=1e-6, abs=1e-9 * whole)


def test_each_map_that_goes_is_the_one_missed_least() -> None:
    kernel, metric = problem(3, 4, 6, 2)
    order = eliminate(kernel, metric).order
    for step in range(5):
        left = [one for one in range(6) if one not in order[:step]]
        lost = {one: lost_without(kernel, tuple(set(left) - {one}), metric) for one in left}
        assert order[step] == min(lost, key=lost.get)


def lasso(kernel: np.ndarray, metric: Metric, count: int) -> tuple[int, ...]:
    """Return the maps that a growing L1 penalty on one factor a map leaves (He 2017, Sec. 3.1, step i)."""
    maps, taps = kernel.shape[1:]
    blocks = metric.covariance.reshape(maps, taps, maps, taps)
    gram = np.einsum("fas,asbt,fbt->ab", kernel, blocks, kernel)
    cross, factors = gram.sum(axis=1), np.ones(maps)
    for penalty in np.geomspace(1e-3, 1.0, 120) * cross.max():
        for _ in range(60):
            for one in range(maps):
                rest = cross[one] - gram[one] @ factors + gram[one, one] * factors[one]
                factors[one] = np.sign(rest) * max(abs(rest) - penalty, 0) / gram[one, one]
        if np.count_nonzero(factors) <= count:
            break
    return tuple(np.argsort(-np.abs(factors))[:count])


def test_choices_are_near_the_best_and_nearer_than_those_of_the_lasso() -> None:
    excess, by_lasso = [], []
    for seed in range(12):
        kernel, metric = problem(seed, 6, 8, 2)
        backward = eliminate(kernel, metric)
        for count in (3, 4, 5):
            best = min(lost_without(kernel, kept, metric) for kept in combinations(range(8), count))
            excess.append(backward.lost[count] / best - 1)
            by_lasso.append(lost_without(kernel, lasso(kernel, metric, count), metric) / best - 1)
    assert min(excess) >= -1e-9
    assert np.mean(excess) < 0.05
    assert np.mean(excess) < 0.5 * np.mean(by_lasso)


def test_white_inputs_keep_the_largest_maps() -> None:
    kernel = np.random.default_rng(1).standard_normal((5, 7, 3)) * np.arange(1, 8)[:, None]
    found = eliminate(kernel, frobenius(5, 7, 3))
    sizes = (kernel**2).sum(axis=(0, 2))
    assert list(found.order) == list(np.argsort(sizes))
    assert found.lost[3] == pytest.approx(np.sort(sizes)[:4].sum() * frobenius(5, 7, 3).norm2(kernel) / sizes.sum())
    assert np.allclose(without_others(kernel, found.kept(3), frobenius(5, 7, 3)), kernel[:, found.kept(3)])

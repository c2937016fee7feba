"""Balanced subspace clusters against enumeration of all balanced partitions and SciPy's SVD."""

import itertools

import numpy as np
import pytest
import scipy.linalg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.cluster.vq import kmeans2

from onnxlowrank.decompose import clusters
from onnxlowrank.decompose.clusters import balanced_assignment, balanced_clusters, cluster_bases, group_size, slots


def balanced_partitions(n, count):
    for labels in itertools.product(range(count), repeat=n):
        sizes = np.bincount(labels, minlength=count)
        if sizes.max() - sizes.min() <= 1:
            yield np.array(labels)


def cost_of(vectors, labels, dimension=1):
    """The objective by full SVDs: what is left behind the leading directions of each cluster's columns."""
    lost = 0.0
    for k in np.unique(labels):
        columns = np.concatenate(
            list(vectors[labels == k].reshape(-1, *vectors.shape[1:], *[1] * (3 - vectors.ndim))), 1
        )
        lost += (scipy.linalg.svdvals(columns)[dimension:] ** 2).sum()
    return lost


def planted(rng, n, p, count, q=1, dimension=1, noise=0.0):
    """Items ``[n, p, q]`` of norms 0.5 to 2 within ``count`` random subspaces that take turns, and their labels."""
    labels = np.arange(n) % count
    spans = [scipy.linalg.orth(rng.normal(size=(p, dimension))) for _ in range(count)]
    items = np.stack([spans[k] @ rng.normal(size=(dimension, q)) for k in labels])
    items *= (rng.uniform(0.5, 2, n) / np.linalg.norm(items, axis=(1, 2)))[:, None, None]
    return items + noise / np.sqrt(p * q) * rng.normal(size=items.shape), labels


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.booleans(), st.integers(0, 2**31))
def test_assignment_is_the_best_balanced_partition(n, count, ties, seed):
    count = min(n, count if n < 7 else 3)
    rng = np.random.default_rng(seed)
    captured = rng.integers(0, 3, (n, count)).astype(float) if ties else rng.exponential(size=(n, count))
    labels = balanced_assignment(captured)
    sizes = np.bincount(labels, minlength=count)
    assert sizes.max() - sizes.min() <= 1
    best = max(captured[np.arange(n), each].sum() for each in balanced_partitions(n, count))
    assert captured[np.arange(n), labels].sum() == pytest.approx(best)


def test_the_assignment_decides_who_gets_the_surplus():
    captured = np.array([[0, 1, 5], [0, 1, 5], [0, 1, 5], [1, 0, 0], [0, 1, 0], [0, 3, 4], [9, 8, 0]], float)
    np.testing.assert_array_equal(balanced_assignment(captured), [2, 2, 2, 0, 1, 1, 0])


@pytest.mark.parametrize(
    ("n", "p", "count", "q", "dimension", "noise"),
    [
        *[(6, 3, 2, 1, 1, noise) for noise in (0.05, 1)],
        *[(7, 4, 3, 2, 1, noise) for noise in (0.05, 1)],
        *[(4, 20, 2, 3, 1, noise) for noise in (0.05, 1)],
        (7, 5, 2, 1, 2, 0.05),
        (4, 40, 2, 8, 4, 1),
    ],
)
@pytest.mark.parametrize("seed", range(8))
def test_global_optimum_of_small_sets(n, p, count, q, dimension, noise, seed):
    items, _ = planted(np.random.default_rng(seed), n, p, count, q, dimension, noise)
    found = balanced_clusters(items, count, dimension=dimension, restarts=20)
    best = min(cost_of(items, each, dimension) for each in balanced_partitions(n, count))
    assert cost_of(items, found, dimension) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize(("p", "q", "dimension"), [(10, 1, 1), (3, 25, 1), (40, 1, 3), (200, 1, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_planted_clusters_are_recovered(p, q, dimension, seed):
    items, labels = planted(np.random.default_rng(seed), 48, p, 6, q, dimension, noise=0.05)
    found = balanced_clusters(items, 6, dimension=dimension, restarts=5)
    np.testing.assert_array_equal(found, labels)
    assert cost_of(items, found, dimension) < 0.01 * (items**2).sum()


def test_signs_and_a_common_scale_do_not_count():
    rng = np.random.default_rng(1)
    items = rng.normal(size=(48, 5, 1))
    found = balanced_clusters(items, 6)
    flipped = items * rng.choice([-1, 1], 48)[:, None, None]
    np.testing.assert_array_equal(balanced_clusters(flipped, 6), found)
    np.testing.assert_array_equal(balanced_clusters(2.0**-40 * items, 6), found)
    np.testing.assert_array_equal(balanced_clusters(items[..., 0], 6), found)


def test_euclidean_k_means_takes_opposite_items_apart():
    rng = np.random.default_rng(2)
    labels = np.arange(20) % 2
    items = np.eye(3)[labels] * rng.choice([-1, 1], 20)[:, None] + 0.05 * rng.normal(size=(20, 3))
    np.testing.assert_array_equal(balanced_clusters(items, 2), labels)
    _, euclidean = kmeans2(items, 2, minit="++", seed=0)
    assert 0 < np.mean(euclidean == labels) < 1


def test_heavy_items_draw_the_line():
    items = np.array([[10, 1], [1, 10.0], [0.1, 0], [0, 0.1]])
    np.testing.assert_array_equal(balanced_clusters(items, 2), [0, 1, 0, 1])
    bases = cluster_bases(items, np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(np.abs(bases[:, :, 0]), [[np.sqrt(0.5)] * 2, [0, 1]], atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 40), st.integers(2, 8), st.integers(1, 3), st.integers(1, 6), st.integers(0, 2**31))
@example(40, 2, 1, 5, 0)
def test_cost_never_rises(n, p, q, count, seed):
    items = np.random.default_rng(seed).normal(size=(n, p, q))
    dimension = 1 + seed % 2
    costs = []
    with pytest.MonkeyPatch.context() as patch:
        for iterations in range(1, 7):
            patch.setattr(clusters, "ITERATIONS", iterations)
            labels = balanced_clusters(items, min(count, n), seed, restarts=1, dimension=dimension)
            costs.append(cost_of(items, labels, dimension))
    assert np.all(np.diff(costs) <= 1e-9 * (items**2).sum())


def test_iterations_and_restarts_pay(monkeypatch):
    items = np.random.default_rng(4).normal(size=(60, 4))
    one, many = (cost_of(items, balanced_clusters(items, 5, restarts=restarts)) for restarts in (1, 20))
    monkeypatch.setattr(clusters, "ITERATIONS", 1)
    hasty = cost_of(items, balanced_clusters(items, 5, restarts=1))
    assert many < one < hasty


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 25), st.integers(1, 25), st.integers(1, 6), st.integers(0, 2**31))
def test_labels_are_balanced_canonical_and_repeatable(n, count, p, seed):
    count = min(n, count)
    items = np.random.default_rng(seed).normal(size=(n, p)).astype(np.float32)
    labels = balanced_clusters(items, count, seed, dimension=min(p, 2))
    sizes = np.bincount(labels, minlength=count)
    assert len(sizes) == count
    assert sizes.max() - sizes.min() <= 1
    _, first = np.unique(labels, return_index=True)
    assert np.all(np.diff(first) > 0)
    np.testing.assert_array_equal(balanced_clusters(items, count, seed, dimension=min(p, 2)), labels)


def test_one_cluster_or_one_each_or_nothing_at_all():
    items = np.random.default_rng(5).normal(size=(6, 4))
    np.testing.assert_array_equal(balanced_clusters(items, 1), np.zeros(6))
    np.testing.assert_array_equal(balanced_clusters(items, 6), np.arange(6))
    np.testing.assert_array_equal(np.bincount(balanced_clusters(np.zeros((7, 4)), 3)), [3, 2, 2])
    items[[1, 4]] = 0
    labels = balanced_clusters(items, 3, dimension=4)
    np.testing.assert_array_equal(np.bincount(labels), [2, 2, 2])


@pytest.mark.parametrize(("shape", "dimension"), [((9, 4, 5), 2), ((9, 40), 3), ((9, 40), 8), ((9, 4), 4)])
@pytest.mark.parametrize("rank", [1, 30])
def test_bases_are_orthonormal_and_the_best_of_their_dimension(shape, dimension, rank):
    rng = np.random.default_rng(6)
    items = rng.normal(size=shape)
    if rank == 1:
        items = items[:1] * rng.normal(size=(9, *[1] * (len(shape) - 1)))
    labels = np.arange(9) % 2
    bases = cluster_bases(items, labels, dimension)
    assert bases.shape == (2, shape[1], dimension)
    left = 0.0
    for k, basis in enumerate(bases):
        np.testing.assert_allclose(basis.T @ basis, np.eye(dimension), atol=1e-10)
        members = items[labels == k].reshape(-1, *shape[1:], *[1] * (3 - len(shape)))
        left += ((members - basis @ (basis.T @ members)) ** 2).sum()
        held = ((basis.T @ members) ** 2).sum((0, 2))
        assert np.all(np.diff(held) <= 1e-9 * held[0])
    assert left == pytest.approx(cost_of(items, labels, dimension), abs=1e-9)


def test_slots_stand_cluster_by_cluster():
    labels = np.array([1, 0, 2, 1, 0, 0])
    assert group_size(labels) == 3
    np.testing.assert_array_equal(slots(labels), [3, 0, 6, 4, 1, 2])
    np.testing.assert_array_equal(slots(np.zeros(100, np.intp)), np.arange(100))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 3), {"count": 0}, "0 clusters of 4"),
        ((4, 3), {"count": 5}, "5 clusters of 4"),
        ((4, 3), {"count": 2, "restarts": 0}, "restarts"),
        ((4, 3), {"count": 2, "dimension": 0}, "dimension 0"),
        ((4, 3), {"count": 2, "dimension": 4}, "dimension 4"),
        ((4,), {"count": 2}, "of shape"),
    ],
)
def test_arguments_out_of_bounds_are_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        balanced_clusters(np.ones(shape), **options)


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        balanced_clusters(np.array([[1, np.nan], [1, 0]]), 2)

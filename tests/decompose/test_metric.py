"""Metrics and patch moments against NumPy, and refinement against SciPy's best and closed forms, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlowrank.decompose import patches
from onnxlowrank.decompose.metric import Metric, data_covariance, element_weights, frobenius
from onnxlowrank.decompose.patches import PatchMoments
from onnxlowrank.decompose.refine import refine

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
SEEDS = st.integers(0, 2**31)


def moments_of(rows, channels, taps):
    moments = PatchMoments(channels, taps)
    for chunk in np.array_split(rows.astype(np.float32), 3):
        moments.add(chunk)
    return moments


def random_patches(rng, n, size):
    return (rng.normal(size=(n, size)) @ rng.normal(size=(size, size)) + rng.normal(size=size)).astype(np.float32)


def random_metrics(rng, outputs, inputs, taps):
    """Return one metric of every kind."""
    rows = random_patches(rng, 200, inputs * taps)
    data = data_covariance(moments_of(rows, inputs, taps), outputs)
    return {
        "frobenius": frobenius(outputs, inputs, taps),
        "separable": replace(data, outputs=rng.uniform(0.5, 2, outputs), covariance=None),
        "data": replace(data, outputs=rng.uniform(0.5, 2, outputs)),
        "weights": element_weights(np.exp(rng.normal(size=(outputs, inputs, taps)))),
    }


KINDS = ("frobenius", "separable", "data", "weights")
METRICS = random_metrics(np.random.default_rng(3), 4, 3, 6)


def dense(metric):
    """Return the exact form as a matrix over errors, flat."""
    if metric.weights is not None:
        return np.diag(metric.weights.reshape(-1))
    covariance = np.kron(metric.inputs, metric.taps) if metric.covariance is None else metric.covariance
    return np.kron(np.diag(metric.outputs), covariance)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), SEEDS)
def test_patch_moments_are_numpys(channels, taps, seed):
    rows = random_patches(np.random.default_rng(seed), 50, channels * taps)
    moments = moments_of(rows, channels, taps)
    whole = np.cov(rows.T.astype(np.float64), bias=True).reshape(channels, taps, channels, taps)
    scale = np.abs(rows).max() ** 2
    assert moments.count == 50
    np.testing.assert_allclose(moments.covariance.reshape(whole.shape), whole, atol=1e-5 * scale)
    np.testing.assert_allclose(moments.inputs, np.einsum("ctdt->cd", whole), atol=1e-5 * scale * taps)
    np.testing.assert_allclose(moments.taps, np.einsum("ctcs->ts", whole), atol=1e-5 * scale * channels)


def test_long_patches_have_no_whole_covariance(monkeypatch):
    monkeypatch.setattr(patches, "LARGEST_COVARIANCE", 5)
    rows = random_patches(np.random.default_rng(0), 40, 6)
    moments = moments_of(rows, 2, 3)
    assert moments.covariance is None
    assert moments_of(rows[:, :5], 1, 5).covariance is not None
    metric = data_covariance(moments, 4)
    assert metric.is_separable
    assert np.trace(metric.inputs) * np.trace(metric.taps) == pytest.approx(np.var(rows, axis=0).sum(), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(SHAPES, SEEDS)
def test_data_norm_is_what_the_responses_lose(shape, seed):
    outputs, inputs, kh, kw = shape
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(50_000, inputs * kh * kw)) * rng.uniform(0.5, 2, inputs * kh * kw) + 1
    error = rng.normal(size=(outputs, inputs, kh * kw))
    metric = data_covariance(moments_of(rows, inputs, kh * kw), outputs)
    lost = rows @ error.reshape(outputs, -1).T
    assert metric.norm2(error) == pytest.approx(((lost - lost.mean(0)) ** 2).sum(1).mean(), rel=1e-2)
    traces = np.trace(metric.inputs) * np.trace(metric.taps)
    assert traces == pytest.approx(rows.var(axis=0).sum(), rel=1e-4)
    if metric.covariance is not None:
        assert traces == pytest.approx(np.trace(metric.covariance), rel=1e-4)


def test_separable_patches_have_the_separable_form():
    rng = np.random.default_rng(4)
    by_input, by_tap = (root.T @ root for root in (rng.normal(size=(3, 3)), rng.normal(size=(4, 4))))
    roots = [np.linalg.cholesky(part) for part in (by_input, by_tap)]
    drawn = np.einsum("ij,njk,lk->nil", roots[0], rng.normal(size=(100_000, 3, 4)), roots[1]).reshape(-1, 12)
    metric = data_covariance(moments_of(drawn, 3, 4), 2)
    np.testing.assert_allclose(np.kron(metric.inputs, metric.taps), np.kron(by_input, by_tap), atol=0.3)
    np.testing.assert_allclose(np.kron(metric.inputs, metric.taps), metric.covariance, atol=0.3)


def test_few_patches_are_shrunk_to_the_true_covariance():
    rng = np.random.default_rng(0)
    truth = np.diag(rng.uniform(0.5, 1.5, 60))
    rows = rng.normal(size=(40, 60)) @ np.sqrt(truth)
    metric = data_covariance(moments_of(rows, 10, 6), 1)
    assert np.linalg.eigvalsh(metric.covariance)[0] > 0.3
    sample = np.cov(rows.T, bias=True)
    assert np.linalg.norm(metric.covariance - truth) < 0.5 * np.linalg.norm(sample - truth)
    assert np.trace(metric.covariance) == pytest.approx(np.trace(sample), rel=1e-5)
    many = data_covariance(moments_of(np.tile(rows, (500, 1)), 10, 6), 1)
    np.testing.assert_allclose(many.covariance, sample, atol=1e-2)


@pytest.mark.parametrize("value", [0, 3])
def test_inputs_that_do_not_vary(value):
    metric = data_covariance(moments_of(np.full((16, 6), value), 2, 3), 4)
    np.testing.assert_array_equal(dense(metric), np.eye(24))


def test_dead_inputs_leave_the_forms_positive():
    rows = np.zeros((30_000, 12))
    rows[:, :4] = random_patches(np.random.default_rng(1), 30_000, 4)
    rows[:, 3] = rows[:, 2]
    metric = data_covariance(moments_of(rows, 3, 4), 2)
    for form in (metric.inputs, metric.taps, metric.covariance):
        assert np.linalg.eigvalsh(form)[0] > 0
    kernel = np.random.default_rng(2).normal(size=(2, 3, 4))
    np.testing.assert_allclose(metric.unwhiten(metric.whiten(kernel)), kernel, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(SHAPES, SEEDS, st.sampled_from(KINDS))
def test_whitening(shape, seed, kind):
    outputs, inputs, kh, kw = shape
    rng = np.random.default_rng(seed)
    whole = random_metrics(rng, outputs, inputs, kh * kw)[kind]
    kernel = rng.normal(size=(outputs, inputs, kh * kw))
    terms = [rng.normal(size=(size, 3)) for size in shape]
    for metric in (whole, whole.with_separable_taps(kh, kw)):
        whitened = metric.whiten(kernel)
        np.testing.assert_allclose(metric.unwhiten(whitened), kernel, atol=1e-6)
        separable = Metric(metric.outputs, metric.inputs, metric.taps)
        assert (whitened**2).sum() == pytest.approx(separable.norm2(kernel), rel=1e-9)
        a, b, taps = metric.unwhiten_outputs(terms[0]), metric.unwhiten_inputs(terms[1]), rng.normal(size=(kh * kw, 3))
        expected = metric.unwhiten(np.einsum("fk,ck,tk->fct", *terms[:2], taps))
        unwhitened = np.einsum("fk,ck,tk->fct", a, b, metric.unwhiten_taps(taps))
        np.testing.assert_allclose(unwhitened, expected, atol=1e-9 * np.abs(expected).max())
    expected = metric.unwhiten(np.einsum("fk,ck,ik,jk->fcij", *terms).reshape(kernel.shape))
    spatial = metric.unwhiten_rows(terms[2]), metric.unwhiten_columns(terms[3])
    unwhitened = np.einsum("fk,ck,ik,jk->fcij", a, b, *spatial).reshape(kernel.shape)
    np.testing.assert_allclose(unwhitened, expected, atol=1e-9 * np.abs(expected).max())


def test_taps_that_are_separable_stay():
    rng = np.random.default_rng(2)
    rows, columns = (root.T @ root for root in (rng.normal(size=(2, 2)), rng.normal(size=(3, 3))))
    metric = replace(METRICS["data"], taps=np.kron(rows, columns))
    split = metric.with_separable_taps(2, 3)
    np.testing.assert_allclose(split.taps, metric.taps, atol=1e-12)
    np.testing.assert_allclose(split.rows / np.trace(split.rows), rows / np.trace(rows), atol=1e-12)
    np.testing.assert_allclose(split.columns, columns / np.trace(columns), atol=1e-12)
    assert split.covariance is metric.covariance
    assert np.trace(METRICS["data"].with_separable_taps(2, 3).taps) == pytest.approx(np.trace(METRICS["data"].taps))


@pytest.mark.parametrize("kind", KINDS)
def test_norm_and_gradient(kind):
    metric, rng = METRICS[kind], np.random.default_rng(6)
    error, direction = rng.normal(size=(2, 4, 3, 6))
    flat = error.reshape(-1)
    assert metric.norm2(error) == pytest.approx(flat @ dense(metric) @ flat)
    difference = (metric.norm2(error + 1e-4 * direction) - metric.norm2(error - 1e-4 * direction)) / 2e-4
    assert 2 * np.vdot(metric.gradient(error), direction) == pytest.approx(difference, rel=1e-6)
    root = metric.whiten(error)
    assert np.vdot(root, metric.relative_gradient(root)) == pytest.approx(metric.norm2(error))
    change = metric.whiten(direction)
    assert np.vdot(change, metric.relative_gradient(root)) == pytest.approx(np.vdot(direction, metric.gradient(error)))


@pytest.mark.parametrize("kind", KINDS)
def test_block(kind):
    metric, rng = METRICS[kind], np.random.default_rng(7)
    outputs, inputs = np.array([3, 0]), np.array([2, 1])
    part = rng.normal(size=(2, 2, 6))
    whole = np.zeros((4, 3, 6))
    whole[np.ix_(outputs, inputs)] = part
    block = metric.block(outputs, inputs)
    assert block.norm2(part) == pytest.approx(metric.norm2(whole))
    separable = Metric(metric.outputs, metric.inputs, metric.taps)
    assert (block.whiten(part) ** 2).sum() == pytest.approx(separable.norm2(whole))
    assert metric.with_separable_taps(2, 3).block(outputs, inputs).rows.shape == (2, 2)


def test_weights_that_are_separable_have_that_form():
    rng = np.random.default_rng(8)
    alpha2 = np.einsum("f,c,t->fct", *(rng.uniform(0.5, 2, n) for n in (4, 3, 5)))
    metric = element_weights(alpha2)
    separable = np.einsum("f,c,t->fct", metric.outputs, np.diag(metric.inputs), np.diag(metric.taps))
    np.testing.assert_allclose(separable, alpha2)
    np.testing.assert_array_equal(metric.weights, alpha2)


def test_weights_are_floored():
    alpha2 = np.ones((2, 3, 4))
    alpha2[0, 0, 0] = 0
    alpha2[1] = 0
    metric = element_weights(alpha2)
    assert metric.weights.min() == pytest.approx(1e-3 * alpha2.mean())
    assert min(metric.outputs.min(), np.diag(metric.inputs).min(), np.diag(metric.taps).min()) > 0
    np.testing.assert_array_equal(element_weights(np.zeros((2, 3, 4))).weights, np.ones((2, 3, 4)))


def truncated_svd(rank):
    """Return a solver for matrices ``[F, C * T]`` of a rank, the composition of its factors and all it composed."""
    composed = []

    def solve(target, previous):
        u, s, vt = scipy.linalg.svd(target.reshape(len(target), -1), full_matrices=False)
        return u[:, :rank] * s[:rank], vt[:rank].reshape(-1, *target.shape[1:])

    def compose(factors):
        composed.append(np.tensordot(*factors, axes=1))
        return composed[-1]

    return solve, compose, composed


def refined(metric, kernel, rank, **options):
    """Return the exact norm of what refinement loses, and of what each solution it judged on the way lost."""
    solve, compose, composed = truncated_svd(rank)
    factors = refine(metric, kernel, solve, compose, **options)
    lost = [metric.norm2(kernel - metric.unwhiten(one)) for one in composed]
    return metric.norm2(kernel - metric.unwhiten(compose(factors))), lost


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_refinement_is_the_best_weighted_low_rank_approximation(seed, rank):
    rng = np.random.default_rng(seed)
    matrix, weights = rng.normal(size=(6, 5)), np.exp(rng.normal(size=(6, 5)))

    def residuals(flat):
        left, right = np.split(flat, [6 * rank])
        return (np.sqrt(weights) * (matrix - left.reshape(6, rank) @ right.reshape(rank, 5))).reshape(-1)

    starts = rng.normal(size=(8, 11 * rank))
    best = min(2 * scipy.optimize.least_squares(residuals, start).cost for start in starts)
    metric = element_weights(weights[..., None])
    found, lost = refined(metric, matrix[..., None], rank, iterations=2000, tolerance=1e-9)
    assert found == pytest.approx(best, rel=1e-3)
    assert lost[0] > 1.02 * best  # the paper's recipe alone


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_refinement_under_the_data_covariance_is_the_svd_of_whitened_weights(rank):
    rng = np.random.default_rng(5)
    rows = random_patches(rng, 400, 12)
    metric, kernel = data_covariance(moments_of(rows, 3, 4), 6), rng.normal(size=(6, 3, 4))
    best = (scipy.linalg.svdvals(kernel.reshape(6, 12) @ scipy.linalg.sqrtm(metric.covariance))[rank:] ** 2).sum()
    found, lost = refined(metric, kernel, rank, iterations=500, tolerance=1e-9)
    assert found == pytest.approx(best, rel=1e-3)
    assert lost[0] > 1.02 * best


@settings(max_examples=25, deadline=None)
@given(SHAPES, SEEDS, st.sampled_from(("data", "weights")), st.integers(1, 3), st.integers(0, 12))
def test_refinement_returns_the_best_it_saw(shape, seed, kind, rank, iterations):
    outputs, inputs, kh, kw = shape
    rng = np.random.default_rng(seed)
    metric = random_metrics(rng, outputs, inputs, kh * kw)[kind]
    kernel = rng.normal(size=(outputs, inputs, kh * kw))
    found, lost = refined(metric, kernel, rank, iterations=iterations, tolerance=0)
    if metric.is_separable:  # one tap: nothing to refine
        assert not lost
        return
    assert len(lost) <= iterations + 1
    assert found <= min(lost) + 1e-9 * metric.norm2(kernel)


@pytest.mark.parametrize("kind", ["frobenius", "separable"])
def test_under_a_separable_metric_the_first_solution_is_the_only_one(kind):
    kernel = np.random.default_rng(5).normal(size=(4, 3, 6))
    found, lost = refined(METRICS[kind], kernel, 2)
    assert not lost
    assert found == pytest.approx((scipy.linalg.svdvals(METRICS[kind].whiten(kernel).reshape(4, 18))[2:] ** 2).sum())


def test_refinement_starts_each_solution_from_the_best_so_far():
    rng = np.random.default_rng(6)
    solve, compose, _ = truncated_svd(2)
    given_factors = []

    def watched(target, previous):
        given_factors.append(previous)
        return solve(target, previous)

    refine(METRICS["weights"], rng.normal(size=(4, 3, 6)), watched, compose, iterations=3)
    assert given_factors[0] is None
    assert all(factors is not None for factors in given_factors[1:])


def test_refinement_stops_when_nothing_is_lost_or_gained():
    rng = np.random.default_rng(7)
    solve, compose, composed = truncated_svd(2)
    refine(METRICS["weights"], np.zeros((4, 3, 6)), solve, compose)
    assert len(composed) == 1
    _, lost = refined(METRICS["weights"], rng.normal(size=(4, 3, 6)), 2, iterations=1000, tolerance=1e-3)
    assert len(lost) < 50

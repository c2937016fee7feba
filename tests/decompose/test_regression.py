"""Solvers against closed forms and SciPy in float64."""

import numpy as np
import pytest
import scipy.linalg
from helpers.models import normal
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlowrank.decompose import regression
from onnxlowrank.decompose.activation import IDENTITY, RELU, Smooth, leaky_relu
from onnxlowrank.decompose.moments import Moments
from onnxlowrank.decompose.regression import Samples, fit_low_rank
from onnxlowrank.decompose.spatial import _RIDGE, spatial_energy, spatial_factors
from onnxlowrank.decompose.spectrum import as_checked, cumulative_energy, principal_axes

RNG = np.random.default_rng(7)


def low_rank_data(n=600, p=12, outputs=9, noise=0.3):
    rng = np.random.default_rng(11)
    features = rng.normal(size=(n, p)) @ rng.normal(size=(p, p)) + rng.normal(size=p)
    responses = features @ rng.normal(size=(p, 3)) @ rng.normal(size=(3, outputs)) / 4
    return features.astype(np.float32), (responses + noise * rng.normal(size=(n, outputs))).astype(np.float32)


def squared_error(one, other):
    return float(((one.astype(np.float64) - other) ** 2).sum())


@pytest.mark.parametrize("chunks", [1, 7, 1500])
def test_moments_equal_numpy_whatever_the_chunks(chunks):
    rows = RNG.normal(3, 2, (3000, 6)).astype(np.float32)
    moments = Moments(6)
    for number, chunk in enumerate(np.array_split(rows, chunks), 1):
        moments.add(chunk)
        if number in (1, chunks // 2, chunks):  # reading them early changes nothing
            seen = rows[: moments.count].astype(np.float64)
            np.testing.assert_allclose(moments.covariance, np.cov(seen.T, bias=True), atol=1e-4)
            np.testing.assert_allclose(moments.mean, seen.mean(0), rtol=1e-5)
    assert moments.count == len(rows)


def test_variance_of_one_row_more_is_spread():
    rows, white = normal(RNG, 8, 5), np.diag([4.0, 3.0, 2.0, 1.0, 0.0])
    moments = Moments(5)
    moments.add(rows)
    mean, before = moments.mean, moments.covariance
    moments.spread(white)
    np.testing.assert_allclose(moments.covariance, before + np.trace(before) / 8 * white / 10, atol=1e-6)
    np.testing.assert_array_equal(moments.mean, mean)
    moments.spread(np.zeros((5, 5)))
    assert np.isfinite(moments.covariance).all()


def test_cumulative_energy_is_the_share_of_squared_singular_values():
    rows = RNG.normal(size=(50, 5)) * [5, 3, 2, 1, 0.1]
    rows -= rows.mean(0)
    squares = scipy.linalg.svdvals(rows) ** 2
    np.testing.assert_allclose(
        cumulative_energy(rows.T @ rows), np.concatenate([[0], np.cumsum(squares) / squares.sum()]), atol=1e-12
    )


def test_energy_of_nothing_is_all():
    np.testing.assert_array_equal(cumulative_energy(np.zeros((3, 3))), np.ones(4))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 2**31))
def test_spatial_factors_are_the_best_of_their_rank(outputs, inputs, kh, kw, weighed, seed):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(outputs, inputs, kh, kw))
    folded = kernel.transpose(1, 2, 3, 0).reshape(inputs * kh, kw * outputs)
    root = rng.normal(size=(inputs * kh, inputs * kh)) if weighed else np.eye(inputs * kh)
    covariance = root.T @ root
    if weighed:  # the covariance counts with a little ridge, which matters where it is nearly singular
        root = scipy.linalg.cholesky(covariance + _RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(root)))
    tail = scipy.linalg.svdvals(root @ folded) ** 2
    energy = spatial_energy(kernel, covariance if weighed else None)
    for rank in range(1, min(folded.shape) + 1):
        v, h = spatial_factors(kernel, rank, covariance if weighed else None)
        assert v.shape == (rank, inputs, kh, 1)
        assert h.shape == (outputs, rank, 1, kw)
        rebuilt = np.einsum("kci,fkj->fcij", v[..., 0].astype(np.float64), h[:, :, 0])
        lost = root @ (rebuilt - kernel).transpose(1, 2, 3, 0).reshape(folded.shape)
        assert (lost**2).sum() == pytest.approx(tail[rank:].sum(), rel=1e-4, abs=1e-5 * tail.sum())
        assert 1 - energy[rank] == pytest.approx(tail[rank:].sum() / tail.sum(), abs=1e-6)


def paper_gsvd(y, z, rank):
    """Zhang 2015, Sec. 3.2 (i), as printed: GSVD of the least-squares map under the metric of the features."""
    yc, zc = y - y.mean(0), z - z.mean(0)
    least_squares = zc.T @ yc @ np.linalg.inv(yc.T @ yc)
    root = scipy.linalg.sqrtm(yc.T @ yc).real
    u, s, vt = scipy.linalg.svd(least_squares @ root)
    v = np.linalg.inv(root) @ vt.T  # V' (Y Y') V = I
    np.testing.assert_allclose(v.T @ yc.T @ yc @ v, np.eye(len(v)), atol=1e-6)
    m = u[:, :rank] * s[:rank] @ v[:, :rank].T
    return m, z.mean(0) - m @ y.mean(0)


@pytest.mark.parametrize("rank", [1, 3, 9])
def test_linear_fit_is_the_papers_gsvd(rank):
    features, target = low_rank_data()
    features = features[:, :9]
    fitted = fit_low_rank(Samples(features, target), rank, ridge=1e-12)
    m, b = paper_gsvd(features.astype(np.float64), target.astype(np.float64), rank)
    np.testing.assert_allclose(fitted.left @ fitted.right.T, m, atol=2e-3)
    np.testing.assert_allclose(fitted(features), features @ m.T + b, atol=2e-3)


def test_linear_fit_of_responses_on_themselves_is_pca():
    _, target = low_rank_data()
    fitted = fit_low_rank(Samples(target, target), 3, ridge=1e-12)
    _, axes = principal_axes(np.cov(target.T.astype(np.float64)), 3)
    np.testing.assert_allclose(fitted.left @ fitted.right.T, axes @ axes.T, atol=1e-3)
    np.testing.assert_allclose(fitted.bias, target.mean(0) - axes @ axes.T @ target.mean(0), atol=1e-3)


def test_a_ridge_pulls_as_far_as_features_spread():
    """Fewer samples than features: as the regression on the samples and on rows of the spread's root, that give T0."""
    features, target = normal(RNG, 5, 9), normal(RNG, 5, 4)
    root, towards = normal(RNG, 9, 9).astype(float), normal(RNG, 9, 4).astype(float)
    fitted = fit_low_rank(Samples(features, target), 4, towards, ridge=0.3, spread=7 * root.T @ root)
    x, y = features - features.mean(axis=0), target - target.mean(axis=0)
    rows = root * np.sqrt(0.3 * (x**2).sum() / (root**2).sum())
    expected = scipy.linalg.lstsq(np.concatenate([x, rows]), np.concatenate([y, rows @ towards]))[0]
    np.testing.assert_allclose(fitted.right @ fitted.left.T, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("activation", [RELU, leaky_relu(0.1), Smooth("silu")], ids=lambda a: a.name)
@pytest.mark.parametrize("with_shortcut", [False, True])
def test_nonlinear_fit_lowers_the_error_behind_the_activation(activation, with_shortcut):
    features, target = low_rank_data(noise=1.0)
    target -= 1.5
    shortcut = RNG.normal(size=target.shape).astype(np.float32) if with_shortcut else None
    samples = Samples(features, target if shortcut is None else target + shortcut, shortcut, activation)

    def error(fitted):
        predicted = fitted(features) + (0 if shortcut is None else shortcut)
        return squared_error(activation(predicted), activation(samples.target))

    linear = error(fit_low_rank(samples, 2, ridge=1e-6, nonlinear=False))
    nonlinear = error(fit_low_rank(samples, 2, ridge=1e-6))
    assert nonlinear < 0.99 * linear


def test_nonlinear_fit_with_the_identity_is_the_linear_one():
    features, target = low_rank_data()
    one, other = (fit_low_rank(Samples(features, target, None, IDENTITY), 3, nonlinear=on) for on in (True, False))
    np.testing.assert_array_equal(one.left @ one.right.T, other.left @ other.right.T)


def test_planted_map_is_recovered_through_relu(monkeypatch):
    monkeypatch.setattr(regression, "PENALTIES", (0.01,) * 25 + (1.0,) * 25)  # the paper's, to convergence
    rng = np.random.default_rng(3)
    features = rng.normal(size=(4000, 10)).astype(np.float32)
    planted = rng.normal(size=(10, 2)) @ rng.normal(size=(2, 8))
    target = (features @ planted - 0.5).astype(np.float32)
    hidden = target.copy()
    hidden[hidden < 0] = -7  # what lies below zero is invisible behind the activation
    fitted = fit_low_rank(Samples(features, hidden, None, RELU), 2, ridge=1e-6)
    linear = fit_low_rank(Samples(features, hidden, None, RELU), 2, ridge=1e-6, nonlinear=False)
    seen = RELU(target)
    assert squared_error(RELU(fitted(features)), seen) < 0.05 * squared_error(RELU(linear(features)), seen)


def test_shortcut_errors_are_made_up_for():
    """What the rewritten shortcut lacks, the layer supplies where it can (Eq. 12 with a residual Add)."""
    rng = np.random.default_rng(5)
    features = rng.normal(size=(2000, 6)).astype(np.float32)
    response = (features @ rng.normal(size=(6, 6))).astype(np.float32)
    true_shortcut = rng.normal(size=response.shape).astype(np.float32)
    shortcut = true_shortcut - (features @ rng.normal(size=(6, 6))).astype(np.float32)
    fitted = fit_low_rank(Samples(features, response + true_shortcut, shortcut), 6, ridge=1e-10)
    np.testing.assert_allclose(fitted(features) + shortcut, response + true_shortcut, atol=1e-2)


def test_ridge_draws_to_the_prior_where_samples_say_nothing():
    rng = np.random.default_rng(1)
    features = np.zeros((50, 6), np.float32)
    features[:, :2] = rng.normal(size=(50, 2))
    prior = rng.normal(size=(6, 4))
    target = (features @ prior).astype(np.float32)
    fitted = fit_low_rank(Samples(features, target), 4, prior=prior, ridge=1e-4)
    np.testing.assert_allclose((fitted.left @ fitted.right.T).T, prior, atol=1e-2)


def test_what_was_checked_corrects_what_was_predicted():
    predicted = np.array([1.0, 0.5, 0.2, 0.1, 0.05, 0.01, 0.0])
    np.testing.assert_array_equal(as_checked(predicted, {}), predicted)
    np.testing.assert_array_equal(as_checked(predicted, {0.0: 0.1, 1.0: 1.0, 0.3: 0.0}), predicted)  # tell nothing
    np.testing.assert_allclose(as_checked(predicted, {0.1: 0.01}), predicted**2, atol=1e-15)
    twice = as_checked(predicted, {0.05: 0.05**3, 0.2: 0.2**2})
    np.testing.assert_allclose(twice[[0, 1, 2, 4, 5]], [1, 0.5**2, 0.2**2, 0.05**3, 0.01**3])
    assert 0.1**3 < twice[3] < 0.1**2
    assert (np.diff(twice) < 0).all()


def test_a_start_on_a_part_of_many_rows_leads_to_nearly_the_same():
    """Behind ReLU, on rows the fit has not seen; where rows are few, all of them are in every iteration."""
    features, target = low_rank_data(n=24_000, p=24, outputs=16, noise=1.0)
    target -= 1.0
    seen, unseen = slice(0, 12_000), slice(12_000, None)

    def error(fitted):
        return squared_error(RELU(fitted(features[unseen])), RELU(target[unseen]))

    samples = Samples(features[seen], target[seen], None, RELU)
    on_part, on_all = fit_low_rank(samples, 4), regression._fit(samples, 4, None, 1e-2, None, regression.PENALTIES)
    assert not np.array_equal(on_part.left, on_all.left)
    assert error(on_part) < 1.005 * error(on_all)
    few = Samples(features[:2000], target[:2000], None, RELU)
    in_all = regression._fit(few, 4, None, 1e-2, None, regression.PENALTIES)
    assert np.array_equal(fit_low_rank(few, 4).left, in_all.left)

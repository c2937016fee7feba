"""Moments of what a matrix makes of rows: as those of the rows behind it, without anything of their size."""

import numpy as np
import pytest

from onnxlowrank.decompose.moments import ImageMoments, Moments
from onnxlowrank.decompose.regression import Samples, fit_low_rank
from onnxlowrank.decompose.spectrum import left_axes, principal_axes

RNG = np.random.default_rng(4)
WEIGHT, BIAS = RNG.normal(size=(30, 7)) * np.arange(1, 8), RNG.normal(size=30)
ROWS = (RNG.normal(size=(500, 7)) @ RNG.normal(size=(7, 7)) + RNG.normal(size=7)).astype(np.float32)


def both():
    """Return the moments of the same rows, by themselves and as images."""
    behind, images = Moments(30), ImageMoments(WEIGHT, BIAS)
    for part in np.array_split(ROWS, 3):
        behind.add((part @ WEIGHT.T + BIAS).astype(np.float32))
        images.add(part)
    return behind, images


@pytest.mark.parametrize("spread", [False, True])
def test_they_are_those_of_the_images(spread):
    behind, images = both()
    if spread:
        behind.spread(WEIGHT @ WEIGHT.T)
        images.spread_white()
    assert images.count == behind.count
    scale = np.abs(behind.covariance).max()
    np.testing.assert_allclose(images.mean, behind.mean, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(images.covariance, behind.covariance, atol=1e-4 * scale)
    for rank in (1, 4, 7):
        (few, axes), (expected, behind_axes) = images.principal_axes(rank), behind.principal_axes(rank)
        np.testing.assert_allclose(few, expected, rtol=1e-2)
        np.testing.assert_allclose(axes @ axes.T, behind_axes @ behind_axes.T, atol=1e-2)
        np.testing.assert_allclose(images.along(axes), few, rtol=1e-3)
    assert len(images.principal_axes()[0]) == 7


def test_those_of_some_channels():
    behind, images = both()
    columns = np.array([3, 17, 4])
    part = images.part(columns)
    np.testing.assert_allclose(part.covariance, behind.part(columns).covariance, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(part.mean, behind.mean[columns], rtol=1e-3, atol=1e-3)
    before = images.covariance
    part.spread_white()
    np.testing.assert_array_equal(images.covariance, before)


def test_nothing_is_spread_by_a_weight_of_zeros():
    images = ImageMoments(np.zeros((5, 3)))
    images.add(ROWS[:, :3])
    images.spread_white()
    np.testing.assert_array_equal(images.covariance, 0)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (6, 6)])
@pytest.mark.parametrize("rank", [1, 5, None])
def test_axes_of_a_factor_are_those_of_its_product(shape, rank):
    factor = RNG.normal(size=shape)
    values, axes = left_axes(factor, rank)
    expected, expected_axes = principal_axes(factor @ factor.T, rank or 6)
    np.testing.assert_allclose(values, expected, rtol=1e-8)
    np.testing.assert_allclose(axes @ axes.T, expected_axes @ expected_axes.T, atol=1e-7)
    np.testing.assert_allclose(axes.T @ axes, np.eye(len(values)), atol=1e-10)


def test_further_axes_are_orthonormal_too():
    values, axes = left_axes(RNG.normal(size=(40, 6)), 9)
    np.testing.assert_allclose(values[6:], 0, atol=1e-10 * values[0])
    np.testing.assert_allclose(axes.T @ axes, np.eye(9), atol=1e-10)


def test_axes_of_a_factor_of_less_rank_are_orthonormal():
    factor = RNG.normal(size=(40, 1)) @ RNG.normal(size=(1, 6))
    values, axes = left_axes(factor, 4)
    np.testing.assert_allclose(values[1:], 0, atol=1e-10 * values[0])
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(axes[:, :1] @ axes[:, :1].T @ factor, factor, atol=1e-10)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_regression_of_more_responses_than_features(rank):
    """As the best of its rank, which the singular values of what the whole regression predicts tell."""
    features = ROWS.astype(np.float64)
    target = features @ WEIGHT.T + BIAS + RNG.normal(size=(500, 30))
    fitted = fit_low_rank(Samples(features, target), rank, ridge=1e-12)
    x, y = features - features.mean(axis=0), target - target.mean(axis=0)
    predicted = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    singular = np.linalg.svd(predicted, compute_uv=False)
    best = ((y - predicted) ** 2).sum() + (singular[rank:] ** 2).sum()
    assert fitted.left.shape == (30, rank)
    np.testing.assert_allclose(((fitted(features) - target) ** 2).sum(), best, rtol=1e-6)

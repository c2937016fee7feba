"""Cholesky factors of matrices that rounding has made indefinite."""

import numpy as np
import pytest

from onnxlowrank.decompose.cholesky import lower_cholesky
from onnxlowrank.decompose.regression import Samples, fit_low_rank

RNG = np.random.default_rng(11)


def test_a_positive_definite_matrix_has_its_own_factor():
    root = RNG.standard_normal((9, 7))
    gram = root.T @ root
    assert np.array_equal(lower_cholesky(gram), np.linalg.cholesky(gram))


@pytest.mark.parametrize("below", [1e-12, 1e-7, 1e-4])
def test_what_rounding_took_is_added(below):
    vectors, _ = np.linalg.qr(RNG.standard_normal((6, 6)))
    gram = vectors @ np.diag([4.0, 2.0, 1.0, 1e-9, 0.0, -below]) @ vectors.T
    factor = lower_cholesky((gram + gram.T) / 2)
    added = np.diag(factor @ factor.T - gram)
    assert np.allclose(factor @ factor.T - np.diag(added), gram, atol=1e-12)
    assert below <= added.max() <= max(5 * below, 1e-6)


def test_a_matrix_that_is_not_finite_has_none():
    with pytest.raises(ValueError, match="infs or NaNs"):
        lower_cholesky(np.full((2, 2), np.nan))


def test_features_that_nearly_depend_on_each_other_are_fitted():
    """Of 1500 features with few sources, the ridge of those that do not vary is below what float32 can tell."""
    sources = RNG.standard_normal((4000, 3)).astype(np.float32)
    features = sources @ RNG.standard_normal((3, 1500)).astype(np.float32) + np.float32(100)
    target = sources @ RNG.standard_normal((3, 5)).astype(np.float32)
    spread = np.zeros((1500, 1500))
    spread[0, 0] = 1.0
    fitted = fit_low_rank(Samples(features, target), 3, spread=spread, ridge=1e-4)
    assert np.linalg.norm(fitted(features) - target) < 0.02 * np.linalg.norm(target)

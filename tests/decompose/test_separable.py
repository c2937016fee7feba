"""Separable kernels of single maps against closed forms and minimisation from many starts, in float64."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize

from onnxlowrank.decompose.moments import Moments
from onnxlowrank.decompose.separable import separable_energy, separable_terms

RNG = np.random.default_rng(4)


def covariances(maps, taps):
    roots = RNG.standard_normal((maps, taps, taps))
    return roots @ roots.swapaxes(1, 2) / taps


def lost(kernels, weights, vertical, horizontal):
    errors = (kernels - np.einsum("mki,mkj->mij", vertical, horizontal)).reshape(len(kernels), -1)
    return np.einsum("ms,mst,mt->m", errors, weights, errors)


@pytest.mark.parametrize(("kh", "kw"), [(5, 5), (3, 4), (7, 2)])
def test_under_products_of_covariances_it_is_the_svd_of_the_whitened_kernel(kh, kw):
    kernels, rows, columns = RNG.standard_normal((6, kh, kw)), covariances(6, kh), covariances(6, kw)
    weights = np.einsum("mik,mjl->mijkl", rows, columns).reshape(6, kh * kw, kh * kw)
    roots = [np.array([scipy.linalg.sqrtm(one).real for one in side]) for side in (rows, columns)]
    singular = np.linalg.svd(roots[0] @ kernels @ roots[1], compute_uv=False) ** 2
    energy = separable_energy(kernels, weights)
    for terms in range(1, min(kh, kw) + 1):
        found = lost(kernels, weights, *separable_terms(kernels, weights, terms))
        np.testing.assert_allclose(found, singular[:, terms:].sum(1), atol=1e-4 * singular.sum())
        assert energy[terms] == pytest.approx(singular[:, :terms].sum() / singular.sum(), abs=1e-4)
    assert energy[0] == 0


@pytest.mark.parametrize("terms", [1, 2])
def test_no_start_finds_anything_better_under_any_covariance(terms):
    kernels, weights = RNG.standard_normal((4, 3, 4)), covariances(4, 12)
    found = lost(kernels, weights, *separable_terms(kernels, weights, terms))
    for kernel, weight, its_loss in zip(kernels, weights, found, strict=True):

        def loss(values, kernel=kernel, weight=weight):
            v, h = np.split(values, [3 * terms])
            error = (kernel - v.reshape(terms, 3).T @ h.reshape(terms, 4)).ravel()
            return error @ weight @ error

        best = min(scipy.optimize.minimize(loss, RNG.standard_normal(7 * terms)).fun for _ in range(12))
        total = kernel.ravel() @ weight @ kernel.ravel()
        assert its_loss <= best + 0.03 * total  # in turns from one start: a local minimum


def test_maps_that_hold_nothing_are_taken_apart_by_their_weights():
    kernels, nothing = RNG.standard_normal((2, 4, 4)), np.zeros((2, 16, 16))
    vertical, horizontal = separable_terms(kernels, nothing, 1)
    u, s, vt = np.linalg.svd(kernels)
    best = s[:, :1, None] * u[:, :, :1] @ vt[:, :1]
    np.testing.assert_allclose(np.einsum("mki,mkj->mij", vertical, horizontal), best, atol=1e-4)
    zeros = separable_terms(np.zeros((2, 4, 4)), nothing, 2)
    assert not zeros[0].any() or not zeros[1].any()
    assert np.isfinite(separable_energy(np.zeros((2, 4, 4)), nothing)).all()


def test_moments_of_groups_are_those_of_each_alone():
    rows = RNG.normal(2, 3, (2500, 12)).astype(np.float32)
    moments = Moments(12, groups=4)
    for chunk in np.array_split(rows, 9):
        moments.add(chunk)
    assert moments.covariances.shape == (4, 3, 3)
    for group, found in enumerate(moments.covariances):
        np.testing.assert_allclose(found, np.cov(rows[:, 3 * group : 3 * group + 3].T, bias=True), atol=1e-4)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-5)

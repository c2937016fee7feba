"""The kernel of a single map as a sum of vertical times horizontal filters, weighed by what the map holds.

A kernel ``w [kh, kw]`` becomes ``sum_k v_k h_k'``. With ``S`` the covariance of the map's patches, the response loses

    |w - sum_k v_k h_k'|_S^2,    |e|_S^2 = vec(e)' S vec(e)

Where ``S`` is a product ``R x C`` of a covariance of rows and one of columns, the minimum is closed form: the SVD of
``R^(1/2)' w C^(1/2)``, its factors whitened back. The products of the partial traces are near ``S``, so that is the
start; then the ``v_k`` and the ``h_k`` are solved for in turn under ``S`` itself, which never loses more. All maps are
computed at once: they are many, and their systems small.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.decompose.spectrum import Float64Array

_RIDGE = 1e-6
"""Share of the identity in a covariance: where no sample says anything, the weights alone decide."""
_SINGULAR = 1e-12
_TINY = 2.0**-330  # variance of patches that do not vary
_SWEEPS = 10


def separable_terms(
    kernels: NDArray[np.floating], covariances: Float64Array, terms: int
) -> tuple[Float64Array, Float64Array]:
    """Return vertical filters ``[M, K, kh]`` and horizontal ones ``[M, K, kw]`` of ``M`` maps, ``K`` = ``terms``.

    Args:
        kernels: ``[M, kh, kw]``.
        covariances: ``[M, kh * kw, kh * kw]`` of the patches of every map.
        terms: At most ``min(kh, kw)``.
    """
    exact, weights = kernels.astype(np.float64), _regular(covariances)
    vertical, horizontal = _closed_form(exact, weights, terms)
    for _ in range(_SWEEPS):
        vertical = _solved(exact, weights, horizontal)
        turned = weights.reshape(-1, *exact.shape[1:] * 2).transpose(0, 2, 1, 4, 3).reshape(weights.shape)
        horizontal = _solved(exact.swapaxes(1, 2), turned, vertical)
        sizes = np.linalg.norm(vertical, axis=2), np.linalg.norm(horizontal, axis=2)
        even = np.sqrt(np.divide(sizes[1], sizes[0], out=np.ones_like(sizes[0]), where=sizes[0] * sizes[1] > 0))
        vertical, horizontal = vertical * even[..., None], horizontal / even[..., None]
    return vertical, horizontal


def separable_energy(kernels: NDArray[np.floating], covariances: Float64Array) -> Float64Array:
    """Return ``[min(kh, kw) + 1]`` shares of the variance of all responses that so many terms a map keep."""
    exact, weights = kernels.astype(np.float64), _regular(covariances)
    total = _variance(exact, weights)
    kept = [0.0]
    for terms in range(1, min(exact.shape[1:]) + 1):
        vertical, horizontal = separable_terms(exact, covariances, terms)
        lost = _variance(exact - vertical.swapaxes(1, 2) @ horizontal, weights)
        kept.append(max(1 - lost / total, kept[-1]) if total > 0 else 1.0)
    return np.array(kept) if total > 0 else np.ones(len(kept))


def _regular(covariances: Float64Array) -> Float64Array:
    """Return covariances with a small share of the identity; what rounding made negative is zero before."""
    values, vectors = np.linalg.eigh(covariances)
    means = np.maximum(values, 0).mean(axis=1, keepdims=True)
    raised = np.maximum(values, 0) + np.where(means > _TINY, _RIDGE * means, 1.0)
    regular: Float64Array = (vectors * raised[:, None]) @ vectors.swapaxes(1, 2)
    return regular


def _variance(errors: Float64Array, weights: Float64Array) -> float:
    flat = errors.reshape(len(errors), -1)
    return float(np.einsum("ms,mst,mt->", flat, weights, flat, optimize=True))


def _closed_form(kernels: Float64Array, weights: Float64Array, terms: int) -> tuple[Float64Array, Float64Array]:
    """Return the best factors under the products of the partial traces."""
    by_tap = weights.reshape(-1, *kernels.shape[1:] * 2)
    rows, columns = np.einsum("mikjk->mij", by_tap), np.einsum("mkikj->mij", by_tap)
    left, right = np.linalg.cholesky(rows), np.linalg.cholesky(columns)
    u, s, vt = np.linalg.svd(left.swapaxes(1, 2) @ kernels @ right)
    root = np.sqrt(s[:, None, :terms])
    vertical = np.linalg.solve(left.swapaxes(1, 2), u[:, :, :terms] * root)
    horizontal = np.linalg.solve(right.swapaxes(1, 2), vt.swapaxes(1, 2)[:, :, :terms] * root)
    return vertical.swapaxes(1, 2), horizontal.swapaxes(1, 2)


def _solved(kernels: Float64Array, weights: Float64Array, others: Float64Array) -> Float64Array:
    """Return the factors ``[M, K, n]`` of kernels ``[M, n, m]`` that are best beside the others ``[M, K, m]``."""
    maps, n, m = kernels.shape
    terms = others.shape[1]
    design = np.einsum("mkj,ia->mijka", others, np.eye(n)).reshape(maps, n * m, terms * n)
    weighed = design.swapaxes(1, 2) @ weights
    system = weighed @ design
    size = np.trace(system, axis1=1, axis2=2) / (terms * n)
    system += np.where(size > 0, _SINGULAR * size, 1.0)[:, None, None] * np.eye(terms * n)
    found = np.linalg.solve(system, weighed @ kernels.reshape(maps, n * m, 1))
    solved: Float64Array = found.reshape(maps, terms, n)
    return solved

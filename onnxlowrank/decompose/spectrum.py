"""Eigenvalues of covariances as "energy": the share of variance a rank keeps (Zhang 2015, Sec. 3.4)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

_SMALLEST = 1e-15


def principal_axes(covariance: Float64Array, rank: int | None = None) -> tuple[Float64Array, Float64Array]:
    """Return the largest ``rank`` eigenvalues ``[rank]``, descending, and their vectors ``[n, rank]`` (Eq. 4)."""
    n = len(covariance)
    rank = n if rank is None else rank
    values, vectors = scipy.linalg.eigh(covariance, subset_by_index=(n - rank, n - 1))
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def left_axes(factor: Float64Array, rank: int | None = None) -> tuple[Float64Array, Float64Array]:
    """Return the largest ``rank`` eigenvalues of ``A A'`` and their vectors ``[n, rank]``, for ``A`` of ``[n, p]``.

    They are found by whichever of ``A A'`` and ``A' A`` is smaller. There are ``min(n, p)``, if nothing is said; of
    further ones the eigenvalues are 0, and the vectors orthonormal to the others.
    """
    n, p = factor.shape
    rank = min(n, p) if rank is None else rank
    if n <= p:
        return principal_axes(factor @ factor.T, rank)
    found, mixes = principal_axes(factor.T @ factor, min(rank, p))
    values, spanning = np.zeros(rank), np.zeros((n, rank))
    values[: len(found)], spanning[:, : len(found)] = found, factor @ mixes
    return values, np.linalg.qr(spanning)[0]  # orthonormal even where the factor spans less than that


def cumulative_energy(covariance: Float64Array) -> Float64Array:
    """Return ``[n + 1]`` shares of the total variance: entry ``d`` is what the ``d`` largest eigenvalues hold."""
    return shares(scipy.linalg.eigvalsh(covariance)[::-1])


def shares(variances: Float64Array) -> Float64Array:
    """Return ``[n + 1]``: entry ``d`` is the share that the first ``d`` variances have in the sum of all."""
    values = np.maximum(variances, 0)
    total = values.sum()
    if total <= 0:
        return np.ones(len(values) + 1)
    return np.concatenate([[0.0], np.minimum(np.cumsum(values) / total, 1.0)])


def as_checked(predicted: Float64Array, checked: Mapping[float, float]) -> Float64Array:
    """Return what is lost in truth where so much is predicted to be, in shares of the total variance.

    Prediction and truth are both 1 where nothing is kept, and in between one is about a power of the other, whose
    exponent changes slowly.

    Args:
        predicted: Any shape.
        checked: What is lost in truth, by what is predicted; what is not between 0 and 1 tells nothing.
    """
    known = {one: np.log(lost) / np.log(one) for one, lost in sorted(checked.items()) if 0 < one < 1 and 0 < lost < 1}
    if not known:
        return predicted
    logs = np.log(np.clip(predicted, _SMALLEST, 1.0))
    found: Float64Array = np.exp(logs * np.interp(logs, np.log(list(known)), list(known.values())))
    return found

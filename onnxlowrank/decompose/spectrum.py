"""Eigenvalues of covariances as "energy": the share of variance a rank keeps (Zhang 2015, Sec. 3.4)."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


def principal_axes(covariance: Float64Array, rank: int | None = None) -> tuple[Float64Array, Float64Array]:
    """Return the largest ``rank`` eigenvalues ``[rank]``, descending, and their vectors ``[n, rank]`` (Eq. 4)."""
    n = len(covariance)
    rank = n if rank is None else rank
    values, vectors = scipy.linalg.eigh(covariance, subset_by_index=(n - rank, n - 1))
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def cumulative_energy(covariance: Float64Array) -> Float64Array:
    """Return ``[n + 1]`` shares of the total variance: entry ``d`` is what the ``d`` largest eigenvalues hold."""
    values = np.maximum(scipy.linalg.eigvalsh(covariance)[::-1], 0)
    total = values.sum()
    if total <= 0:
        return np.ones(len(values) + 1)
    return np.concatenate([[0.0], np.minimum(np.cumsum(values) / total, 1.0)])

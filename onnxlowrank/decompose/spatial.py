"""Vertical and horizontal filters for a spatial kernel (Jaderberg 2014, scheme 2), as one eigenvalue problem.

Fold the kernel into ``A [C * kh, kw * F]``. A pair of a ``kh x 1`` convolution with ``K`` filters ``V [C * kh, K]`` and
a ``1 x kw`` convolution ``H [K, kw * F]`` has the kernel ``V H``: a matrix of rank ``K``. "Filter reconstruction"
minimises ``|A - V H|``, solved by the SVD. When ``S`` is the covariance of the input's vertical patches, what the
responses lose is ``|S^(1/2) (A - V H)|`` (horizontal neighbours taken as independent); its minimum has the rows of
``H`` on the leading eigenvectors of ``A' S A`` and ``V = A H'``, so ``S`` is never inverted. ``S = I`` is the SVD.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.decompose.spectrum import Float64Array, cumulative_energy, principal_axes

_RIDGE = 1e-6
"""Share of the identity in a covariance: where no sample says anything, the weights alone decide."""


def spatial_energy(kernel: NDArray[np.floating], columns: Float64Array | None = None) -> Float64Array:
    """Return ``[min(C * kh, kw * F) + 1]`` shares of the response's variance that ``K`` vertical filters keep.

    Args:
        kernel: ``[F, C, kh, kw]``.
        columns: Covariance ``[C * kh, C * kh]`` of the vertical input patches, or None for the identity.
    """
    folded = _fold(kernel)
    energy = cumulative_energy(_response_gram(folded, columns))
    return energy[: min(folded.shape) + 1]


def spatial_variance(kernel: NDArray[np.floating], columns: Float64Array | None = None) -> float:
    """Return the variance that :func:`spatial_energy` tells shares of, summed over the responses."""
    return float(np.trace(_response_gram(_fold(kernel), columns)))


def spatial_factors(
    kernel: NDArray[np.floating], rank: int, columns: Float64Array | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the vertical filters ``[K, C, kh, 1]`` and the horizontal ones ``[F, K, 1, kw]`` of rank ``K``.

    Args:
        kernel: ``[F, C, kh, kw]``.
        rank: ``K``, at most ``min(C * kh, kw * F)``.
        columns: Covariance ``[C * kh, C * kh]`` of the vertical input patches, or None for the identity.
    """
    outputs, inputs, kh, kw = kernel.shape
    folded = _fold(kernel)
    _, axes = principal_axes(_response_gram(folded, columns), rank)  # [kw * F, K]
    vertical = folded @ axes
    scale = np.sqrt(np.maximum(np.linalg.norm(vertical, axis=0), np.finfo(np.float32).tiny))
    vertical, axes = vertical / scale, axes * scale  # the two factors share the singular values
    v = vertical.T.reshape(rank, inputs, kh, 1)
    h = axes.reshape(kw, outputs, rank).transpose(1, 2, 0).reshape(outputs, rank, 1, kw)
    return np.ascontiguousarray(v, np.float32), np.ascontiguousarray(h, np.float32)


def _fold(kernel: NDArray[np.floating]) -> Float64Array:
    outputs, inputs, kh, kw = kernel.shape
    return kernel.astype(np.float64).transpose(1, 2, 3, 0).reshape(inputs * kh, kw * outputs)


def _response_gram(folded: Float64Array, columns: Float64Array | None) -> Float64Array:
    gram: Float64Array = folded.T @ folded
    if columns is not None:
        gram = folded.T @ columns @ folded + _RIDGE * np.trace(columns) / len(columns) * gram
    return (gram + gram.T) / 2

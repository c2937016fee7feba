"""A kernel as a sum of ``K`` outer products ``f o c o t`` (Denton 2014, Sec. 3.2.3): 1x1, depthwise, 1x1.

``greedy_terms`` is the paper's: the best single term by alternating least squares, again and again on what is left
(Eq. 4-5). One term at a time is slow for hundreds of them; ``slice_terms`` finds all in closed form: in the principal
axes of the taps, the terms of the slices' SVDs are orthogonal, so the largest are the best choice among them.
``joint_als`` then improves all terms at once, from either start.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.decompose._als import Terms, joint_als
from onnxlowrank.decompose.spectrum import Float64Array, principal_axes

FloatArray = NDArray[np.floating]

__all__ = ["Terms", "greedy_terms", "joint_als", "slice_energy", "slice_terms"]

_PAIRED = 4
"""Principal axes of the taps whose sums and differences are starts of a term, besides all axes themselves."""

_ROUNDS = {4: 8, 12: 1}
"""Starts that are left after so many updates."""


def slice_energy(tensor: FloatArray) -> Float64Array:
    """Return ``[T * min(F, C) + 1]`` shares of ``|tensor|^2`` that ``slice_terms`` of each rank keep.

    Args:
        tensor: ``[F, C, T]``, or ``[F, C, ...]`` with several tap modes.
    """
    slices, _ = _slices(tensor.astype(np.float64))
    squares = np.concatenate([np.linalg.eigvalsh(_small_gram(piece)) for piece in slices])
    kept = np.cumsum(np.sort(np.maximum(squares, 0))[::-1])
    if kept[-1] <= 0:
        return np.ones(len(kept) + 1)
    return np.concatenate([[0.0], np.minimum(kept / kept[-1], 1.0)])


def slice_terms(tensor: FloatArray, rank: int) -> Terms:
    """Return the ``rank`` largest terms of the SVDs of the slices ``[F, C]`` in the principal axes of the tap modes.

    The terms are orthogonal and nested: the first ``k`` are the result for rank ``k``.

    Args:
        tensor: ``[F, C, T]``, or ``[F, C, ...]`` with several tap modes.
        rank: At most ``T * min(F, C)``.
    """
    slices, taps = _slices(tensor.astype(np.float64))
    wide = tensor.shape[0] < tensor.shape[1]
    one, other, patterns = [], [], []
    for pattern, piece in enumerate(slices):
        axes = principal_axes(_small_gram(piece))[1]  # one factor exact from the other: full rank is exact
        one.append((piece.T if wide else piece) @ axes)
        other.append(axes)
        patterns.append(np.full(axes.shape[1], pattern))
    scaled, axes = np.concatenate(one, 1), np.concatenate(other, 1)
    order = np.argsort(-(scaled**2).sum(0), kind="stable")[:rank]
    scaled, axes = scaled[:, order], axes[:, order]
    chosen = np.unravel_index(np.concatenate(patterns)[order], tensor.shape[2:])
    tapped = tuple(axis[:, index] for axis, index in zip(taps, chosen, strict=True))
    return Terms((axes, scaled, *tapped) if wide else (scaled, axes, *tapped)).balanced()


def greedy_terms(
    tensor: FloatArray, rank: int, start: Terms | None = None, sweeps: int = 50, tolerance: float = 1e-4
) -> Terms:
    """Return ``rank`` terms, each the best single one for what the former leave (Eq. 4-5).

    The terms are nested: the first ``k`` are the result for rank ``k``.

    Args:
        tensor: ``[F, C, T]``.
        rank: Number of terms ``K``.
        start: Terms of a similar tensor: one more start for each term.
        sweeps: Most updates of each term.
        tolerance: Stop a term when a sweep adds less than this share to its squared norm.
    """
    residual = np.array(tensor.transpose(0, 2, 1), np.float64, order="C")  # [F, T, C], a copy
    _, exponent = np.frexp(np.abs(residual).max(initial=0))
    found = []
    for k in range(rank):
        # Enough to choose a term by, its scale aside; its last update is in double precision.
        rough = np.ldexp(residual, -exponent).astype(np.float32)
        inputs, taps = _guesses(rough)
        if start is not None and k < start.rank:
            inputs = np.column_stack([inputs, np.ldexp(start.factors[1][:, k], -exponent)])
            taps = np.column_stack([taps, start.factors[2][:, k]])
        inputs, taps = _best_of(rough, inputs.astype(np.float32), taps.astype(np.float32), sweeps, tolerance)
        updated = _updated(residual, inputs.astype(np.float64), taps.astype(np.float64))
        found.append([factor.astype(np.float64) for factor in updated])
        residual -= Terms((found[-1][0], found[-1][2], found[-1][1])).dense()
    return Terms(tuple(np.concatenate(mode, 1) for mode in zip(*found, strict=True))).balanced()


def _slices(tensor: Float64Array) -> tuple[Float64Array, list[Float64Array]]:
    """Return the slices ``[T, F, C]`` in the principal axes of each tap mode, and the axes ``[n_m, n_m]``."""
    axes = []
    for mode in range(2, tensor.ndim):
        unfolded = np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)
        axes.append(principal_axes(unfolded @ unfolded.T)[1])
        tensor = np.moveaxis(np.tensordot(tensor, axes[-1], (mode, 0)), -1, mode)
    cube = tensor.reshape(*tensor.shape[:2], -1)
    return np.ascontiguousarray(cube.transpose(2, 0, 1)), axes


def _small_gram(matrix: Float64Array) -> Float64Array:
    gram: Float64Array = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    return gram


def _guesses(residual: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return starts ``[C, S]`` and ``[T, S]`` of a term: the largest row of the slice at each of S tap patterns."""
    unfolded = residual.transpose(1, 0, 2).reshape(residual.shape[1], -1)
    axes = principal_axes((unfolded @ unfolded.T).astype(np.float64))[1].astype(unfolded.dtype)
    pairs = combinations(axes.T[:_PAIRED], 2)
    patterns = np.column_stack([axes, *(one + sign * other for one, other in pairs for sign in (1, -1))])
    slices = (patterns.T @ unfolded).reshape(-1, residual.shape[0], residual.shape[2])  # [S, F, C]
    largest = np.einsum("sfc,sfc->sf", slices, slices).argmax(1)
    return slices[np.arange(len(slices)), largest].T, patterns


def _best_of(
    residual: FloatArray, inputs: FloatArray, taps: FloatArray, sweeps: int, tolerance: float
) -> tuple[FloatArray, FloatArray]:
    """Update S starts ``[C, S]`` and ``[T, S]`` of a term, fewer and fewer of them; return the largest ``[., 1]``."""
    squares = np.zeros(inputs.shape[1])
    for sweep in range(1, sweeps + 1):
        _, inputs, taps = _updated(residual, inputs, taps)
        before, squares = squares.max(), (inputs**2).sum(0)
        if sweep in _ROUNDS:
            kept = np.argsort(-squares)[: _ROUNDS[sweep]]
            inputs, taps, squares = inputs[:, kept], taps[:, kept], squares[kept]
        if len(squares) == 1 and squares[0] <= (1 + tolerance) * before:
            break
    best = [squares.argmax()]
    return inputs[:, best], taps[:, best]


def _updated(residual: FloatArray, inputs: FloatArray, taps: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Update S separate terms once: outputs ``[F, S]`` and taps ``[T, S]`` of norm 1, inputs ``[C, S]``."""
    rows, count, columns = residual.shape
    contracted = (residual.reshape(-1, columns) @ inputs).reshape(rows, count, -1)
    outputs = _unit((contracted * taps).sum(1))
    taps = _unit((contracted * outputs[:, None]).sum(0))
    contracted = (residual.reshape(rows, -1).T @ outputs).reshape(count, columns, -1)
    return outputs, (contracted * taps[:, None]).sum(0), taps


def _unit(columns: FloatArray) -> FloatArray:
    norms = np.linalg.norm(columns, axis=0)
    return columns / np.where(norms > 0, norms, 1)

"""CP decomposition of a kernel over all four modes (Lebedev 2015): 1x1, ``kh x 1``, ``1 x kw`` and 1x1 convolutions.

``kernel[f, c, i, j] ~ sum_r outputs[f, r] inputs[c, r] rows[i, r] columns[j, r]``: least squares over all terms at
once, the norms of the terms bounded. From the closed-form start alone, a kernel of exactly rank ``R`` is often missed.
So other starts compete where terms are few: one from generalised eigenvectors, exact for ``R <= min(F, C)``, and
random ones. Levenberg-Marquardt steps follow where unknowns are few: they go straight where alternating updates crawl.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxlowrank.decompose._als import GROWTH, Terms, joint_als, khatri_rao
from onnxlowrank.decompose.outer_product import slice_energy, slice_terms
from onnxlowrank.decompose.spectrum import Float64Array, principal_axes
from onnxlowrank.decompose.tucker import two_svds

__all__ = ["Terms", "cp_energy", "cp_terms"]

_SMALL = 1200
"""Most unknowns for random starts."""

_FEWEST = 400
"""Most unknowns for Levenberg-Marquardt, whose normal equations are dense."""

_LONGER = 3
"""Times as many sweeps take the best of the starts further."""

_RANDOM_STARTS = 4

_FEW = 64
"""Most terms for the start by eigenvectors, a guess that noise soon spoils."""

_EXACT = 1e-20
"""Share of the kernel's squared norm that is not worth another step."""


def cp_energy(kernel: NDArray[np.floating]) -> Float64Array:
    """Return ``[kh * kw * min(F, C) + 1]`` shares of ``|kernel|^2`` that the closed-form starts of each rank keep.

    Args:
        kernel: ``[F, C, kh, kw]``.
    """
    return slice_energy(kernel)


def cp_terms(
    kernel: NDArray[np.floating], rank: int, start: Terms | None = None, sweeps: int = 100, tolerance: float = 1e-4
) -> Terms:
    """Return ``rank`` terms; a kernel of exactly that rank is recovered where ``R`` is small.

    Args:
        kernel: ``[F, C, kh, kw]``, or with any other number of tap modes.
        rank: ``R``, at most ``kh * kw * min(F, C)``.
        start: Where to begin; the result is no worse. None for the best of several.
        sweeps: Most updates of every factor.
        tolerance: Stop when sweeps take less than this share off the squared error.

    Returns:
        Factors ``[F, R]``, ``[C, R]``, ``[kh, R]``, ``[kw, R]``, balanced.
    """
    exact = kernel.astype(np.float64)
    starts = _starts(exact, rank) if start is None else [start]
    found = [joint_als(exact, begin, sweeps, tolerance) for begin in starts]
    best = min(found, key=lambda terms: terms.squared_error(exact))
    if len(found) > 1:
        best = joint_als(exact, best, _LONGER * sweeps, tolerance)
    return _polished(exact, best, sweeps, tolerance) if rank * sum(exact.shape) <= _FEWEST else best


def _starts(kernel: Float64Array, rank: int) -> list[Terms]:
    guesses = []
    if rank <= min(*kernel.shape[:2], _FEW) and np.prod(kernel.shape[2:]) > 1:
        guesses.append(_pencil_terms(kernel, rank))
    if rank * sum(kernel.shape) <= _SMALL:
        rng = np.random.default_rng(rank)
        for _ in range(_RANDOM_STARTS):
            guesses.append(Terms(tuple(rng.normal(size=(length, rank)) for length in kernel.shape)))
    return [slice_terms(kernel, rank), *(_scaled(terms, kernel) for terms in guesses)]


def _pencil_terms(kernel: Float64Array, rank: int) -> Terms:
    """Return the terms of a kernel of exactly rank ``R <= min(F, C)``, else something near it.

    In the subspaces of two SVDs each slice is ``A diag(.) B'`` with square ``A`` and ``B``, so the columns of the
    inverse of ``B'`` are the generalised eigenvectors of any two slices.
    """
    outputs, inputs, *taps = kernel.shape
    tucker = two_svds(kernel.reshape(outputs, inputs, -1), rank, rank)
    axes = principal_axes(np.tensordot(tucker.core, tucker.core, ((0, 1), (0, 1))), 2)[1]
    one, other = np.moveaxis(tucker.core @ axes, 2, 0)
    vectors = scipy.linalg.eig(one, other)[1]
    vectors = vectors.real + vectors.imag  # the same span for a conjugate pair
    left, right = one @ vectors, np.linalg.pinv(vectors).T
    pairs = khatri_rao((left, right))
    tapped = np.linalg.lstsq(pairs, tucker.core.reshape(rank * rank, -1))[0].reshape(rank, *taps)
    unfolded = [np.moveaxis(tapped, mode, 1).reshape(rank, tapped.shape[mode], -1) for mode in range(1, tapped.ndim)]
    small = [np.linalg.svd(mode, full_matrices=False)[0][:, :, 0].T for mode in unfolded]
    return Terms((tucker.outputs @ left, tucker.inputs @ right, *small))


def _scaled(terms: Terms, kernel: Float64Array) -> Terms:
    """Return terms of equal norms whose squares sum to the kernel's."""
    norms = [np.linalg.norm(factor, axis=0) for factor in terms.factors]
    even = (float((kernel**2).sum()) / terms.rank) ** (0.5 / kernel.ndim)
    return Terms(
        tuple(even * factor / np.where(norm > 0, norm, 1) for factor, norm in zip(terms.factors, norms, strict=True))
    )


def _polished(kernel: Float64Array, terms: Terms, sweeps: int, tolerance: float) -> Terms:
    """Levenberg-Marquardt over all factors at once, within the bound on the terms' norms."""
    total = float((kernel**2).sum())
    limit = max(GROWTH * total, terms.size)
    error, damping = terms.squared_error(kernel), 1e-3
    splits = np.cumsum([factor.size for factor in terms.factors])[:-1]
    for _ in range(sweeps):
        if error <= _EXACT * total:
            break
        hessian, gradient = _normal_equations(kernel, terms)
        diagonal = hessian.diagonal().mean()
        before = error
        while damping < 1e6:
            damped = hessian + damping * diagonal * np.eye(len(hessian))
            step = scipy.linalg.solve(damped, gradient, assume_a="pos")
            moved = zip(terms.factors, np.split(step, splits), strict=True)
            candidate = Terms(tuple(factor + change.reshape(factor.shape) for factor, change in moved)).balanced()
            squared = candidate.squared_error(kernel)
            if squared < error and candidate.size <= limit:
                terms, error, damping = candidate, squared, max(damping / 10, 1e-10)
                break
            damping *= 4
        if before - error <= tolerance * before:
            break
    return terms


def _normal_equations(kernel: Float64Array, terms: Terms) -> tuple[Float64Array, Float64Array]:
    """Gauss-Newton matrix and negative gradient of half the squared error, unknowns ordered as the raveled factors."""
    factors = terms.factors
    modes = range(len(factors))
    grams = np.array([factor.T @ factor for factor in factors])
    residual = kernel - terms.dense()
    blocks: list[list[Float64Array]] = []
    gradient = []
    for mode in modes:
        others = tuple(factors[other] for other in modes if other != mode)
        unfolded = np.moveaxis(residual, mode, 0).reshape(len(factors[mode]), -1)
        gradient.append((unfolded @ khatri_rao(others)).ravel())
        blocks.append([])
        for other in modes:
            rest = grams[[m for m in modes if m not in (mode, other)]].prod(0)
            if mode == other:
                blocks[mode].append(np.kron(np.eye(len(factors[mode])), rest))
            else:
                block = np.einsum("is,jr,rs->irjs", factors[mode], factors[other], rest)
                blocks[mode].append(block.reshape(factors[mode].size, factors[other].size))
    return np.block(blocks), np.concatenate(gradient)

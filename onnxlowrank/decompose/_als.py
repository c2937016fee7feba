"""Sums of outer products of vectors, and alternating least squares over all of them at once.

With the other modes fixed, the best factor of one mode solves ``A_m G = M``: ``G`` is the entrywise product of the
other modes' Gram matrices, ``M`` the unfolded tensor times the other modes' Khatri-Rao product. Two devices on top:

* Extrapolation with restarts (Ang, Cohen, Gillis 2019): every mode sees the others a step ahead in the direction they
  are moving; the step is taken back when the error rises. It halves the number of sweeps.
* A bound on ``sum_r |term_r|^2``. A tensor often has no best sum of ``K`` terms: the error falls forever while terms
  grow and cancel. The penalty ``ridge * sum_r |term_r|^2`` adds ``ridge * diag(G)`` to ``G`` in every mode alike; it is
  zero until the bound is passed, and no sum beyond the bound is returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxlowrank.decompose.precision import squarable
from onnxlowrank.decompose.spectrum import Float64Array

GROWTH = 10.0
"""Most that the squared norms of the terms may sum to, in units of the tensor's (1 for orthogonal terms)."""

_RESOLUTION = 1e-14
"""Share of the tensor's squared norm below which an error out of Gram matrices is rounding."""

_PROXIMAL = 1e-9
"""Pull towards the last iterate, relative to ``diag(G)``: the minimiser stays, singular systems become regular."""

_LARGE = 2**18
"""Elements from which on products with the tensor are in float32: they take half the time, and what they round, a part
in a million of the tensor, matters to no approximation of one so large. Systems are solved in float64."""

_PATIENCE = 5
"""Sweeps without progress before the end: extrapolation and ridge need a few to settle."""


@dataclass(frozen=True)
class Terms:
    """``sum_r a_r o b_r o ...``: one matrix ``[n_m, rank]`` per mode, one column per term."""

    factors: tuple[Float64Array, ...]

    @property
    def rank(self) -> int:
        """Number of terms."""
        return int(self.factors[0].shape[1])

    @property
    def size(self) -> float:
        """Sum of the terms' squared norms."""
        norms = reduce(np.multiply, [(factor**2).sum(0) for factor in self.factors])
        return float(norms.sum())

    def dense(self) -> Float64Array:
        """Return the sum ``[n_1, n_2, ...]``."""
        return (self.factors[0] @ khatri_rao(self.factors[1:]).T).reshape([len(factor) for factor in self.factors])

    def first(self, rank: int) -> Terms:
        """Return the first ``rank`` terms."""
        return Terms(tuple(factor[:, :rank] for factor in self.factors))

    def balanced(self) -> Terms:
        """Return the same terms with the norm of each spread evenly over the modes."""
        norms = np.array([np.linalg.norm(factor, axis=0) for factor in self.factors])
        even = np.exp(np.log(np.maximum(norms, np.finfo(np.float64).tiny)).mean(0)) * (norms.min(0) > 0)
        scales = np.divide(even, norms, out=np.zeros_like(norms), where=norms > 0)
        return Terms(tuple(factor * scale for factor, scale in zip(self.factors, scales, strict=True)))

    def squared_error(self, tensor: NDArray[np.floating]) -> float:
        """Return ``|tensor - dense()|^2``."""
        return float(((tensor - self.dense()) ** 2).sum())


def khatri_rao(factors: tuple[Float64Array, ...]) -> Float64Array:
    """Return the columnwise Kronecker product ``[n_1 * n_2 * ..., rank]``, the last mode running fastest."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, None] * factor[None]).reshape(-1, factor.shape[1])
    return product


def joint_als(tensor: NDArray[np.floating], start: Terms, sweeps: int = 10, tolerance: float = 1e-4) -> Terms:
    """Improve all terms at once; never worse than the start, and never worse for more sweeps.

    A sweep costs two products of the tensor with a factor, whatever the number of modes.

    Args:
        tensor: ``[F, C, ...]``, the first two modes the large ones.
        start: Where to begin, of any scaling.
        sweeps: Most updates of every factor.
        tolerance: Stop when the squared error fell by less than this share, several sweeps in a row.

    Returns:
        The best sum met whose size is at most ``GROWTH |tensor|^2`` (or the start's, if larger), balanced.
    """
    total = float((tensor.astype(np.float64) ** 2).sum())
    limit = max(GROWTH * total, start.size)
    state = _State(tensor.astype(np.float64), start)
    best, lowest, stalled = start, start.squared_error(tensor), 0
    previous = np.inf
    for _ in range(sweeps):
        error = max(state.sweep() + total, _RESOLUTION * total)
        candidate = Terms(tuple(state.ahead))
        grown = candidate.size > limit
        if not grown:
            stalled = stalled + 1 if error >= (1 - tolerance) * lowest else 0
            best, lowest = (candidate, error) if error < lowest else (best, lowest)
        if stalled == _PATIENCE:
            break
        state.move(accept=error <= previous, grown=grown)
        previous = error
    return best.balanced()


class _State:
    """Factors, where they are heading, and the step sizes of one run."""

    def __init__(self, tensor: Float64Array, start: Terms) -> None:
        outputs, inputs, *self.taps = tensor.shape
        cube = tensor.reshape(outputs, inputs, -1)
        self.by_input = _rounded(cube.transpose(0, 2, 1).reshape(-1, inputs))  # [F * T, C]
        self.by_output = _rounded(cube.transpose(1, 2, 0).reshape(-1, outputs))  # [C * T, F]
        self.factors = list(start.balanced().factors)
        self.ahead = list(self.factors)
        self.grams = [factor.T @ factor for factor in self.ahead]
        self.step, self.longest, self.ridge = 0.5, 1.0, 0.0

    def sweep(self) -> float:
        """Update every factor; return the squared error of ``ahead`` less the tensor's squared norm."""
        outputs, inputs, *taps = self.ahead
        rank = inputs.shape[1]
        contracted = _product(self.by_input, inputs).reshape(len(outputs), -1, rank)  # [F, T, K]
        self._update(0, (contracted * khatri_rao(tuple(taps))).sum(1), self.step)
        shared = (contracted * self.ahead[0][:, None]).sum(0).reshape(*self.taps, rank)
        for mode in range(2, len(self.ahead)):
            rest = shared
            for other in range(2, len(self.ahead)):
                if other != mode:
                    axis = other - 2
                    shape = [1] * axis + [-1] + [1] * (len(self.taps) - axis - 1) + [rank]
                    rest = (rest * self.ahead[other].reshape(shape)).sum(axis, keepdims=True)
            self._update(mode, rest.reshape(-1, rank), self.step)
        contracted = _product(self.by_output, self.ahead[0]).reshape(len(inputs), -1, rank)  # [C, T, K]
        product = (contracted * khatri_rao(tuple(self.ahead[2:]))).sum(1)
        self.last_inputs = self.factors[1]
        self._update(1, product, 0.0)
        return float(reduce(np.multiply, self.grams).sum() - 2 * (product * self.ahead[1]).sum())

    def move(self, accept: bool, grown: bool) -> None:
        """Look further ahead after a good sweep, go back to the factors after a bad one; adapt the ridge."""
        if accept:
            self.ahead[1] = self.factors[1] + self.step * (self.factors[1] - self.last_inputs)
            self.longest = min(1.0, 1.01 * self.longest)
            self.step = min(self.longest, 1.05 * self.step)
        else:
            self.ahead = list(self.factors)
            self.longest, self.step = self.step, self.step / 1.5
        self.grams = [factor.T @ factor for factor in self.ahead]
        self.ridge = max(4 * self.ridge, 1e-4) if grown else self.ridge / 2

    def _update(self, mode: int, product: Float64Array, step: float) -> None:
        """Solve for one factor ``[n, K]`` given the unfolded tensor times the others ``[n, K]``."""
        gram = reduce(np.multiply, [gram for other, gram in enumerate(self.grams) if other != mode])
        scale = np.sqrt(gram.diagonal())
        scale[scale == 0] = 1.0
        gram = gram / np.outer(scale, scale)  # unit diagonal: the ridges are relative
        gram[np.diag_indices_from(gram)] += _PROXIMAL + self.ridge
        target = product / scale + _PROXIMAL * self.ahead[mode] * scale
        factor = scipy.linalg.solve(gram, target.T, assume_a="pos", overwrite_a=True, overwrite_b=True).T / scale
        self.ahead[mode] = factor + step * (factor - self.factors[mode])
        self.factors[mode] = factor
        self.grams[mode] = self.ahead[mode].T @ self.ahead[mode]


def _rounded(matrix: Float64Array) -> NDArray[np.floating]:
    """Return a matrix in float32 if it is large, and its products stay within float32's range."""
    rounded = matrix.astype(np.float32) if matrix.size >= _LARGE else matrix
    return rounded if rounded.dtype == np.float32 and squarable(rounded) is rounded else matrix


def _product(matrix: NDArray[np.floating], factor: Float64Array) -> Float64Array:
    """Return a product in float64, computed in the precision of the matrix."""
    product: Float64Array = (matrix @ factor.astype(matrix.dtype)).astype(np.float64, copy=False)
    return product

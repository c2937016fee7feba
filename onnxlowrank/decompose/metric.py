"""What an error of a kernel costs (Denton 2014, Sec. 3.1): quadratic forms, exact and separable.

A metric maps an error ``E [F, C, T]`` of a layer's kernel (``F`` filters, ``C`` input maps, ``T`` taps) to
``|E|^2 = <E, M E>``. The three of the paper:

* Frobenius: ``M = I``;
* data covariance (Eq. 3): ``|E|^2 = sum_f o_f e_f' S e_f``, what the responses lose when ``S [C * T, C * T]`` is the
  covariance of the input patches;
* approximate Mahalanobis (Eq. 2): ``|E|^2 = sum_p alpha_p^2 E_p^2``, from gradients of the loss.

The paper applies the root of ``M`` to ``W``, approximates the result in the Frobenius norm and undoes the root. For a
layer that is cheap to compute this needs a root that acts on each axis of ``W`` by itself: ``alpha^-1 .* W~'`` has
the low ranks of ``W~'`` only when ``alpha_fct = o_f i_c t_t``, and likewise for ``S``. Read literally, the recipe gives
no cheap layer. So a metric here also has a *separable* form ``diag(outputs) x inputs x taps``, with which the recipe
works as printed, and :mod:`onnxlowrank.decompose.refine` goes from there to the exact form without leaving the
low-rank set.

The separable form is the product of the partial traces of the exact one (for a diagonal form, of its marginal sums),
scaled to the same trace: of all products the nearest in relative entropy, and positive definite like the exact form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxlowrank.decompose.patches import PatchMoments
from onnxlowrank.decompose.spectrum import Float64Array

Kernel = NDArray[np.floating]
Indices = NDArray[np.integer]

_FLOOR = 1e-3
"""Share of the mean below which no element's weight falls: what no sample depended on is not free to change."""
_LARGE = 2**20
"""Elements of a covariance from which on products with it are in float32, which takes half the time."""


@dataclass(frozen=True, eq=False)
class Metric:
    """A quadratic form on errors ``E [F, C, T]``.

    ``outputs``, ``inputs`` and ``taps`` are its separable form ``<E, (diag(outputs) x inputs x taps) E>``. This is
    the exact form too unless ``covariance`` or ``weights``, at most one of them, is given.

    Attributes:
        outputs: ``[F]``, positive.
        inputs: ``[C, C]``, symmetric positive definite.
        taps: ``[T, T]``, symmetric positive definite.
        covariance: ``S [C * T, C * T]`` of the exact form ``sum_f outputs_f e_f' S e_f`` (Eq. 3), or None.
        weights: ``alpha^2 [F, C, T]`` of the exact form ``sum_p alpha_p^2 E_p^2`` (Eq. 2), or None.
    """

    outputs: Float64Array
    inputs: Float64Array
    taps: Float64Array
    covariance: Float64Array | None = None
    weights: Float64Array | None = None

    @property
    def is_separable(self) -> bool:
        """Whether the separable form is the exact one."""
        return self.covariance is None and self.weights is None

    def gradient(self, error: Kernel) -> Float64Array:
        """Return ``M E [F, C, T]``, with the exact ``M``: half the derivative of :meth:`norm2`."""
        scaled = error * self.outputs[:, None, None]
        gradient: Float64Array
        if self.weights is not None:
            gradient = self.weights * error
        elif self.covariance is not None:
            gradient = self._times(self.covariance, scaled.reshape(len(scaled), -1)).reshape(error.shape)
        else:
            gradient = self.inputs @ scaled @ self.taps
        return gradient

    def norm2(self, error: Kernel) -> float:
        """Return ``|E|^2 = <E, M E>``, in the exact form."""
        return float(np.vdot(error, self.gradient(error)))

    def whiten(self, kernel: Kernel) -> Float64Array:
        """Return the kernel whose Frobenius norm is the separable norm of ``kernel [F, C, T]``."""
        outputs, inputs, taps = self._roots
        whitened: Float64Array = inputs.T @ (kernel * outputs[:, None, None]) @ taps
        return whitened

    def unwhiten(self, kernel: Kernel) -> Float64Array:
        """Undo :meth:`whiten`."""
        outputs, inputs, taps = self._inverse_roots
        unwhitened: Float64Array = inputs.T @ (kernel * outputs[:, None, None]) @ taps
        return unwhitened

    def unwhiten_outputs(self, factors: Kernel) -> Float64Array:
        """Map factors ``[F, K]`` of a whitened kernel to those of the kernel."""
        unwhitened: Float64Array = self._inverse_roots[0][:, None] * factors
        return unwhitened

    def unwhiten_inputs(self, factors: Kernel) -> Float64Array:
        """Map factors ``[C, K]`` of a whitened kernel to those of the kernel."""
        unwhitened: Float64Array = self._inverse_roots[1].T @ factors
        return unwhitened

    def unwhiten_taps(self, factors: Kernel) -> Float64Array:
        """Map factors ``[T, K]`` of a whitened kernel to those of the kernel."""
        unwhitened: Float64Array = self._inverse_roots[2].T @ factors
        return unwhitened

    def relative_gradient(self, error: Kernel) -> Float64Array:
        """Return ``N E`` for the error of a whitened kernel: ``N`` is the exact ``M`` as whitening transforms it."""
        outputs, inputs, taps = self._inverse_roots
        gradient: Float64Array = inputs @ (self.gradient(self.unwhiten(error)) * outputs[:, None, None]) @ taps.T
        return gradient

    def block(self, outputs: Indices, inputs: Indices) -> Self:
        """Return the metric of errors that are zero outside the given filters and input maps."""
        covariance, weights = self.covariance, self.weights
        if covariance is not None:
            taps = len(self.taps)
            columns = (inputs[:, None] * taps + np.arange(taps)).reshape(-1)
            covariance = covariance[np.ix_(columns, columns)]
        if weights is not None:
            weights = weights[np.ix_(outputs, inputs)]
        return replace(
            self,
            outputs=self.outputs[outputs],
            inputs=self.inputs[np.ix_(inputs, inputs)],
            covariance=covariance,
            weights=weights,
        )

    def with_separable_taps(self, kh: int, kw: int) -> SpatialMetric:
        """Return the metric with ``taps`` split as ``rows x columns``, for factors along all four axes of a kernel.

        The exact form stays, but a metric that has none but the separable one changes.
        """
        taps = self.taps.reshape(kh, kw, kh, kw)
        rows, columns = np.einsum("ikjk->ij", taps), np.einsum("kikj->ij", taps)
        columns = columns / np.trace(columns)
        return SpatialMetric(
            self.outputs, self.inputs, np.kron(rows, columns), self.covariance, self.weights, rows=rows, columns=columns
        )

    def _times(self, covariance: Float64Array, errors: Kernel) -> Float64Array:
        """Return ``errors [F, C * T]`` times the covariance: in float32, both scaled to 1, where that is large."""
        size = float(np.abs(errors).max(initial=0))
        if covariance.size < _LARGE or not 0 < size < np.inf:
            product: Float64Array = errors @ covariance
            return product
        rounded, scale = self._rounded
        return ((errors / size).astype(np.float32) @ rounded).astype(np.float64) * (scale * size)

    @cached_property
    def _rounded(self) -> tuple[NDArray[np.float32], float]:
        """The covariance over its largest element, and that element."""
        assert self.covariance is not None
        scale = float(np.abs(self.covariance).max()) or 1.0
        return (self.covariance / scale).astype(np.float32), scale

    @cached_property
    def _roots(self) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Lower triangular ``L`` with ``L L'`` the matrix of each axis; for the outputs its diagonal."""
        return np.sqrt(self.outputs), _cholesky(self.inputs), _cholesky(self.taps)

    @cached_property
    def _inverse_roots(self) -> tuple[Float64Array, Float64Array, Float64Array]:
        outputs, inputs, taps = self._roots
        return 1 / outputs, _inverse(inputs), _inverse(taps)


@dataclass(frozen=True, eq=False, kw_only=True)
class SpatialMetric(Metric):
    """A metric whose ``taps`` are ``rows [kh, kh] x columns [kw, kw]``.

    The Cholesky factor of such a product is the product of the Cholesky factors, so :meth:`whiten` acts along each
    of the four axes of a kernel ``[F, C, kh, kw]``.
    """

    rows: Float64Array
    columns: Float64Array

    def unwhiten_rows(self, factors: Kernel) -> Float64Array:
        """Map factors ``[kh, K]`` of a whitened kernel to those of the kernel."""
        return _unwhitened(self.rows, factors)

    def unwhiten_columns(self, factors: Kernel) -> Float64Array:
        """Map factors ``[kw, K]`` of a whitened kernel to those of the kernel."""
        return _unwhitened(self.columns, factors)


def frobenius(outputs: int, inputs: int, taps: int) -> Metric:
    """Return the Frobenius norm of errors ``[F, C, T]``."""
    return Metric(np.ones(outputs), np.eye(inputs), np.eye(taps))


def data_covariance(moments: PatchMoments, outputs: int) -> Metric:
    """Return the metric of what the responses lose (Denton 2014, Eq. 3).

    The covariances are shrunk towards multiples of the identity, the more, the fewer patches there are for their
    size: by the share that minimises the expected error for normal patches ("oracle approximating shrinkage", Chen et
    al. 2010, Eq. 23), and at least by what rounding may have taken from the smallest eigenvalues. Where patches are
    longer than ``patches.LARGEST_COVARIANCE``, the separable form is all there is; with a single tap it is exact.

    Args:
        moments: Of the layer's input patches; where these do not vary at all, the metric is the Frobenius norm.
        outputs: Number ``F`` of filters; all count the same.
    """
    by_input, by_tap = moments.inputs, moments.taps
    if not moments.vary:
        return frobenius(outputs, len(by_input), len(by_tap))
    by_tap = _shrunk(by_tap, moments.count)
    covariance = None if len(by_tap) == 1 else moments.covariance
    return Metric(
        np.ones(outputs),
        _shrunk(by_input, moments.count),
        by_tap / np.trace(by_tap),
        covariance=None if covariance is None else _shrunk(covariance, moments.count),
    )


def element_weights(alpha2: Kernel) -> Metric:
    """Return the approximate Mahalanobis distance (Denton 2014, Eq. 2).

    Args:
        alpha2: ``alpha^2 [F, C, T]``. What is less than a thousandth of the mean is raised to that: an element that
            no sample depended on is not free to change.
    """
    mean = float(np.mean(alpha2, dtype=np.float64))
    weights = np.maximum(alpha2.astype(np.float64), _FLOOR * mean) if mean > 0 else np.ones(alpha2.shape)
    outputs, inputs, taps = weights.sum(axis=(1, 2)), weights.sum(axis=(0, 2)), weights.sum(axis=(0, 1))
    total = weights.sum()
    return Metric(outputs, np.diag(inputs / total), np.diag(taps / total), weights=weights)


def _cholesky(matrix: Float64Array) -> Float64Array:
    factor: Float64Array = scipy.linalg.cholesky(matrix, lower=True)
    return factor


def _inverse(triangular: Float64Array) -> Float64Array:
    inverse: Float64Array = scipy.linalg.solve_triangular(triangular, np.eye(len(triangular)), lower=True)
    return inverse


def _unwhitened(matrix: Float64Array, factors: Kernel) -> Float64Array:
    unwhitened: Float64Array = scipy.linalg.solve_triangular(_cholesky(matrix), factors, lower=True, trans="T")
    return unwhitened


def _shrunk(covariance: Float64Array, samples: int) -> Float64Array:
    """Return the covariance ``[p, p]`` of ``samples`` rows shrunk towards ``trace / p`` times the identity."""
    p, trace = len(covariance), float(np.trace(covariance))
    square = float(np.vdot(covariance, covariance))  # tr(S^2)
    excess = (samples + 1 - 2 / p) * (square - trace**2 / p)
    share = ((1 - 2 / p) * square + trace**2) / excess if excess > 0 else 1.0
    share = min(max(share, p * float(np.finfo(np.float32).eps)), 1.0)
    shrunk = (1 - share) * covariance
    shrunk[np.diag_indices(p)] += share * trace / p
    return shrunk

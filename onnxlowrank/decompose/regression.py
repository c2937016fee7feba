"""Low-rank regression of responses on features, linear and through an activation (Zhang 2015, Sec. 3.1-3.3).

The responses ``y [n, F]`` of a layer are to be predicted from features ``f [n, p]`` (the layer's own responses, or
those of the first links of a chain) by ``P Q' f + b`` with ``Q [p, d']`` and ``P [F, d']``:

    min  sum_i | r(y_i + s_i) - r(P Q' f_i + b + s_i) |^2  +  ridge * | (P Q' - T0) R |^2        (Eq. 5 and 12)

with ``s`` the shortcut of a residual Add, when there is one, ``T0`` the map the ridge draws to, and ``R R'`` the
covariance features are thought to have before any was seen: the identity, if nothing is known. When ``f`` comes
from the rewritten prefix and ``y`` from the original network, the reconstruction is the asymmetric one (Eq. 12).

*Linear* (``r`` the identity): reduced-rank regression (Eq. 7-8). With the Cholesky factor ``L L' = f'f + ridge R R'``
and ``S = L^-1 (f'y + ridge R R' T0)``, the solution is ``P`` = the leading eigenvectors of ``S'S`` and
``Q = L^-T S P``; this is the GSVD of the paper, and for ``f = y`` it is PCA (Eq. 4).

*Nonlinear*: auxiliary responses ``z`` take the place of ``y`` (Eq. 6). Alternate the regression of ``z`` on ``f``
with the exact one-dimensional solutions for ``z`` (Eq. 9-11), 5 times with penalty 0.01 and 5 times with penalty 1;
the paper's 25 and 25 lower the error on the samples a little more and that on other inputs hardly any further
(``benchmarks/solver.py``). Only ``f'z`` changes from one iteration to the next: ``L`` is computed once, and ``z``
exists for one block of rows at a time. Where rows are many, a part of them goes through all iterations but the last:
what it hands on is a start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxlowrank.decompose.activation import IDENTITY, Activation
from onnxlowrank.decompose.cholesky import lower_cholesky
from onnxlowrank.decompose.precision import squarable
from onnxlowrank.decompose.spectrum import Float64Array, left_axes
from onnxlowrank.parallel import in_parallel

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.intp]

PENALTIES = (0.01,) * 5 + (1.0,) * 5
_LAST = 5
"""How many of the iterations see all rows, where a part of them is enough for those before."""
_PART, _ENOUGH = 4, 24
"""One row of so many is such a part, if that leaves so many rows a feature."""
_FLOOR = 1e-3  # of what the ridge weighs on average, where by ``spread`` features do not vary
TINY = 2.0**-330
"""Variance of features that do not vary."""
_ROWS = 1024  # rows of one block: z, its prediction and costs stay in the cache
_PARTS = 8  # that may be computed at once; always as many, so that sums do not depend on the number of cores


@dataclass(frozen=True, eq=False)
class LowRankMap:
    """The map ``f -> P Q' f + b``: ``left`` is P ``[F, d']``, ``right`` is Q ``[p, d']``, ``bias`` is b ``[F]``."""

    left: Float64Array
    right: Float64Array
    bias: Float64Array

    def __call__(self, features: FloatArray) -> FloatArray:
        """Return the predictions ``[n, F]`` for features ``[n, p]``."""
        right, left, bias = (part.astype(features.dtype) for part in (self.right, self.left, self.bias))
        predicted: FloatArray = features @ right @ left.T + bias
        return predicted


@dataclass(frozen=True, eq=False)
class Samples:
    """What a layer is fitted on.

    Attributes:
        features: ``[n, p]``, at the sampled positions.
        target: ``[n, F]``, the original network's preactivation there (shortcut included).
        shortcut: ``[n, F]``, the other operand of the residual Add as the rewritten network computes it, or None.
        activation: ``r(.)``.
    """

    features: FloatArray
    target: FloatArray
    shortcut: FloatArray | None = None
    activation: Activation = IDENTITY

    def squarable(self) -> Samples:
        """Return the samples, all in float64 where float32 cannot hold products of some."""
        given = [one for one in (self.features, self.target, self.shortcut) if one is not None]
        if all(squarable(one) is one for one in given):
            return self
        shortcut = None if self.shortcut is None else self.shortcut.astype(np.float64)
        return Samples(self.features.astype(np.float64), self.target.astype(np.float64), shortcut, self.activation)

    def every(self, step: int) -> Samples:
        """Return every so many-th row."""
        shortcut = None if self.shortcut is None else self.shortcut[::step]
        return Samples(self.features[::step], self.target[::step], shortcut, self.activation)

    def part(self, columns: IntArray, outputs: IntArray) -> Samples:
        """Return the samples of some features and some responses."""
        shortcut = None if self.shortcut is None else self.shortcut[:, outputs]
        return Samples(self.features[:, columns], self.target[:, outputs], shortcut, self.activation)


def fit_low_rank(
    samples: Samples,
    rank: int,
    prior: Float64Array | None = None,
    ridge: float = 1e-2,
    nonlinear: bool = True,
    spread: Float64Array | None = None,
) -> LowRankMap:
    """Fit ``P``, ``Q`` and ``b`` of rank ``d' = rank`` (Zhang 2015, Eq. 5-12).

    Args:
        samples: Features, targets, shortcut and activation.
        rank: ``d'``, at most ``min(p, F)``.
        prior: The map ``T0 [p, F]`` the ridge draws to; zero when None.
        ridge: Weight of that pull, relative to the mean variance of the features. Behind an activation it counts for
            more, since responses that are cut off do not pull the other way: the prior should be a good one.
        nonlinear: Whether ``r`` is taken into account; without, responses are compared before it (Eq. 4, 7).
        spread: ``R R' [p, p]`` up to a factor; the identity when None.
    """
    samples = samples.squarable()
    about = rank, prior, ridge, spread
    if not nonlinear or samples.activation is IDENTITY:
        return _fit(samples, *about)
    if len(samples.features) < _PART * _ENOUGH * samples.features.shape[1]:
        return _fit(samples, *about, PENALTIES)
    return _fit(samples, *about, PENALTIES[-_LAST:], _fit(samples.every(_PART), *about, PENALTIES[:-_LAST]))


def _fit(
    samples: Samples,
    rank: int,
    prior: Float64Array | None,
    ridge: float,
    spread: Float64Array | None,
    penalties: Sequence[float] = (),
    start: LowRankMap | None = None,
) -> LowRankMap:
    """Return the linear solution, or one from elsewhere, improved by one iteration a penalty."""
    mean = samples.features.mean(axis=0, dtype=np.float64)
    centred = samples.features - mean.astype(samples.features.dtype)
    regression = _Regression(centred, prior, ridge, spread)
    if start is None:
        fitted = regression.solve(*_linear_cross(centred, samples), rank)
    else:
        fitted = replace(start, bias=start.bias + start.left @ (start.right.T @ mean))
    value = samples.activation(samples.target) if penalties else samples.target
    for penalty in penalties:
        fitted = regression.solve(*_nonlinear_cross(centred, samples, value, fitted, penalty), rank, fitted.left)
    return replace(fitted, bias=fitted.bias - fitted.left @ (fitted.right.T @ mean))


class _Regression:
    """Reduced-rank regression on one set of centred features; the factorisation of their Gram matrix is kept."""

    def __init__(
        self, centred: FloatArray, prior: Float64Array | None, ridge: float, spread: Float64Array | None
    ) -> None:
        features = centred.shape[1]
        gram = np.zeros((features, features))
        for rows in _blocks(len(centred)):
            gram += centred[rows].T @ centred[rows]
        scale = max(float(np.trace(gram)) / features, TINY)
        if spread is None or not np.trace(spread) > 0:
            gram[np.diag_indices(features)] += ridge * scale
        else:
            weights = spread * (features / np.trace(spread)) + _FLOOR * np.eye(features)
            gram += ridge * scale * weights
            prior = None if prior is None else weights @ prior
        self._cholesky = lower_cholesky(gram)
        self._pull = 0.0 if prior is None else ridge * scale * prior

    def solve(
        self, cross: Float64Array, offset: Float64Array, rank: int, start: Float64Array | None = None
    ) -> LowRankMap:
        """Return the best map of the given rank for ``f'z = cross [p, F]`` and mean ``z = offset [F]``.

        With ``start``, the ``P`` of the iteration before, its subspace is improved by two steps of orthogonal
        iteration; an eigendecomposition of every iteration's problem would cost more than the rest of the iteration.
        """
        whitened = scipy.linalg.solve_triangular(self._cholesky, cross + self._pull, lower=True, check_finite=False)
        outputs = whitened.shape[1]
        if rank >= outputs:
            left = np.eye(outputs)
        elif start is None:
            _, left = left_axes(whitened.T, rank)
        else:
            left = start
            for _ in range(2):
                left, _ = np.linalg.qr(whitened.T @ (whitened @ left))
        right = scipy.linalg.solve_triangular(self._cholesky, whitened @ left, lower=True, trans="T")
        return LowRankMap(left, right, offset)


def _linear_cross(centred: FloatArray, samples: Samples) -> tuple[Float64Array, Float64Array]:
    """Return ``f'y [p, F]`` and the mean of ``y [F]``, the shortcut taken off the target."""
    cross = np.zeros((centred.shape[1], samples.target.shape[1]))
    total = np.zeros(samples.target.shape[1])
    for rows in _blocks(len(centred)):
        y = samples.target[rows] if samples.shortcut is None else samples.target[rows] - samples.shortcut[rows]
        cross += centred[rows].T @ y
        total += y.sum(axis=0, dtype=np.float64)
    return cross, total / len(centred)


def _nonlinear_cross(
    centred: FloatArray, samples: Samples, value: FloatArray, fitted: LowRankMap, penalty: float
) -> tuple[Float64Array, Float64Array]:
    """Return ``f'z [p, F]`` and the mean of ``z [F]``, with the ``z`` that solve Eq. 9 around the current fit."""

    def part(blocks: Sequence[slice]) -> tuple[Float64Array, Float64Array]:
        cross = np.zeros((centred.shape[1], value.shape[1]))
        total = np.zeros(value.shape[1])
        for rows in blocks:
            prediction = fitted(centred[rows])
            if samples.shortcut is not None:
                prediction += samples.shortcut[rows]
            z = samples.activation.nearest(value[rows], prediction, penalty)
            if samples.shortcut is not None:
                z -= samples.shortcut[rows]
            cross += centred[rows].T @ z
            total += z.sum(axis=0, dtype=np.float64)
        return cross, total

    blocks = list(_blocks(len(centred)))
    cross, total = np.zeros((centred.shape[1], value.shape[1])), np.zeros(value.shape[1])
    for its_cross, its_total in in_parallel(part, [blocks[first::_PARTS] for first in range(_PARTS)]):
        cross += its_cross
        total += its_total
    return cross, total / len(centred)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, n, _ROWS))

"""Which input maps of a kernel can be left out: backward elimination, each step of it exact (He 2017, Eq. 1).

A kernel ``W [F, C, T]`` sees patches of covariance ``S [C T, C T]``. Without the maps ``R``, the best weights for the
kept ones ``K`` take over what these tell of the others, and what the responses lose is a Schur complement:

    V = W_K + W_R S_RK S_KK^-1,    |W_R (S_RR - S_RK S_KK^-1 S_KR) W_R'|

Maps go one by one, always the one whose loss is least. With ``P`` the inverse of the covariance of those that are left
and ``V`` their weights, the loss of a map ``B`` and what becomes of the others are ("optimal brain surgeon", by blocks)

    tr V_B P_BB^-1 V_B',    V - V_B P_BB^-1 P_B,    P - P_B' P_BB^-1 P_B

so losses add up, all numbers of kept maps come from one elimination, and no least-squares problem is solved anew. He et
al. choose by a LASSO on one factor a map, which keeps the old weights while it chooses, and loses more. Where the
covariance is separable, ``inputs x taps``, the taps only weigh the kernel, and maps are chosen and weights found as for
a kernel of one tap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxlowrank.decompose.metric import Metric
from onnxlowrank.decompose.spectrum import Float64Array

IntArray = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Elimination:
    """Input maps in the order in which they go.

    Attributes:
        order: The maps, that which goes first in front ``[C]``.
        lost: What the responses lose with so many maps left, ``[C + 1]``: ``lost[C]`` is 0.
    """

    order: IntArray
    lost: Float64Array

    def kept(self, count: int) -> IntArray:
        """Return the ``count`` maps that go last, in the order of the maps."""
        return np.sort(self.order[len(self.order) - count :])


def eliminate(kernel: NDArray[np.floating], metric: Metric) -> Elimination:
    """Return the input maps of ``kernel [F, C, T]`` in the order in which they are missed least.

    Args:
        kernel: Of a layer, or of one of its groups.
        metric: Of the errors of its responses, with a covariance or separable; all outputs count alike.
    """
    weight, covariance, taps = _problem(kernel, metric)
    maps = kernel.shape[1]
    left, lost = np.arange(maps), np.zeros(maps + 1)
    inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(covariance, lower=True), np.eye(len(covariance)))
    for count in range(maps, 0, -1):  # the maps that are left are the first ones of all arrays
        blocks = inverse.reshape(maps, taps, maps, taps)[np.arange(count), :, np.arange(count)]
        parts = weight[:, : count * taps].reshape(len(weight), count, taps).transpose(1, 2, 0)
        cost = np.trace(np.linalg.solve(blocks, parts @ parts.transpose(0, 2, 1)), axis1=1, axis2=2)
        gone = int(np.argmin(cost))
        lost[count - 1] = lost[count] + max(float(cost[gone]), 0.0)
        left[[gone, count - 1]] = left[[count - 1, gone]]
        one, last = (slice(i * taps, (i + 1) * taps) for i in (gone, count - 1))
        for array in (inverse, inverse.T, weight.T):
            array[one], array[last] = array[last].copy(), array[one].copy()
        stay = slice(0, last.start)
        taking_over = np.linalg.solve(inverse[last, last], inverse[last, stay])
        weight[:, stay] -= weight[:, last] @ taking_over
        inverse[stay, stay] -= inverse[stay, last] @ taking_over
    return Elimination(left[::-1], lost)


def without_others(kernel: NDArray[np.floating], kept: IntArray, metric: Metric) -> Float64Array:
    """Return the kernel ``[F, C', T]`` on the maps ``kept`` alone whose responses are nearest to those of ``kernel``.

    Args:
        kernel: ``[F, C, T]``.
        kept: Input maps.
        metric: As for :func:`eliminate`.
    """
    filters, maps, taps = kernel.shape
    exact = metric.covariance
    covariance, length = (metric.inputs, 1) if exact is None else (exact, taps)
    columns = (kept[:, None] * length + np.arange(length)).ravel()
    weight = kernel.astype(np.float64)
    if exact is None:
        weight = weight.transpose(0, 2, 1)
    cross = weight.reshape(-1, maps * length) @ covariance[:, columns]
    factor = scipy.linalg.cho_factor(covariance[np.ix_(columns, columns)], lower=True)
    found: Float64Array = scipy.linalg.cho_solve(factor, cross.T).T
    if exact is None:
        return found.reshape(filters, taps, len(kept)).transpose(0, 2, 1)
    return found.reshape(filters, len(kept), taps)


def _problem(kernel: NDArray[np.floating], metric: Metric) -> tuple[Float64Array, Float64Array, int]:
    """Return weights ``[n, C t]``, the covariance of what they see ``[C t, C t]`` and ``t``, the taps they have."""
    filters, maps, taps = kernel.shape
    if metric.covariance is not None:
        return kernel.reshape(filters, -1).astype(np.float64, copy=True), metric.covariance, taps
    root = scipy.linalg.cholesky(metric.taps, lower=True)
    weighed = (kernel.astype(np.float64) @ root).transpose(0, 2, 1)
    return np.array(weighed.reshape(filters * taps, maps)), metric.inputs, 1

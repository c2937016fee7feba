"""What to add to the responses of a layer so that the mean behind its activation is what it was.

Rounding moves the responses ``y_i`` of a map to ``z_i``, and a bias ``b`` can take back what they share. Where an
activation ``r`` is behind, what it hides is to have no say: with a ReLU, large errors of responses far below zero,
which nothing reads, would move those above it. So ``b`` solves

    sum_i r(z_i + b) = sum_i r(y_i)

which for the identity is the difference of the means. The left side is monotonic for all monotonic ``r``, and bisection
finds ``b``; where no ``b`` up to twice the largest error does, the one of these that comes closest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.decompose.activation import Activation

_HALVINGS = 24


def bias_shift(activation: Activation, wanted: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ``b``, ``[F]``.

    Args:
        activation: ``r``.
        wanted: Responses ``y``, ``[n, F]``.
        found: Responses ``z`` in their place.
    """
    goal = activation(wanted).mean(axis=0, dtype=np.float64)
    farthest = 2 * np.abs(wanted - found).max(axis=0).astype(np.float64)

    def missing(shift: NDArray[np.float64]) -> NDArray[np.float64]:
        given = activation(found + shift.astype(np.float32))
        return np.asarray(goal - given.mean(axis=0, dtype=np.float64))

    low, high, still = -farthest, farthest, np.zeros_like(farthest)
    best, least = still, np.abs(missing(still))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        left = missing(middle)
        better = np.abs(left) < least
        best, least = np.where(better, middle, best), np.where(better, np.abs(left), least)
        low, high = np.where(left > 0, middle, low), np.where(left > 0, high, middle)
    return np.asarray(best)

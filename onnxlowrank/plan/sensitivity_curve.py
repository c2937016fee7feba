"""What a layer's lost energy does to the outputs of the network, as power laws from measurement to measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from onnxlowrank.decompose.spectrum import Float64Array

_SMALLEST, _LARGEST = 1e-9, 1e6


_NEAR = 2.0
"""Ratio of two shares that lie too close to tell a slope."""
_STEEPEST = 0.5
"""How fast harm may grow beyond the outermost measurements: they are few, on a few inputs, and of several passes."""


@dataclass(frozen=True, eq=False)
class SensitivityCurve:
    """What a layer's lost energy does to the outputs of the network: power laws from measurement to measurement.

    Attributes:
        lost: Logarithms of shares of the response's variance, ascending.
        harm: Logarithms of the network's loss over these shares, not descending.
        slopes: How fast harm grows up to the first share, and from the last one on.
    """

    lost: Float64Array
    harm: Float64Array
    slopes: tuple[float, float]

    def loss(self, lost: float) -> float:
        """Return what the network loses when the layer loses this share of its response's variance."""
        if lost <= 0:
            return 0.0
        x = np.log(lost)
        nearest = np.clip(x, self.lost[0], self.lost[-1])
        beyond = self.slopes[int(x > nearest)] * (x - nearest)
        return float(np.exp(x + np.interp(nearest, self.lost, self.harm) + beyond))


def fit_sensitivity_curve(lost: Sequence[float], losses: Sequence[float]) -> SensitivityCurve:
    """Return the curve through measured losses.

    A share of the energy does as much harm or more where more is lost. What was measured otherwise is levelled: the
    loss over the share is regressed isotonically, in logarithms.

    Args:
        lost: Shares of the response's variance, in (0, 1].
        losses: Of the network.
    """
    order = np.argsort(lost, kind="stable")
    x = np.log(np.asarray(lost, float)[order])
    y = np.log(np.clip(np.nan_to_num(np.asarray(losses, float)[order], nan=_LARGEST), _SMALLEST, _LARGEST))
    harm: Float64Array = scipy.optimize.isotonic_regression(y - x).x
    slopes = np.minimum(np.diff(harm) / np.maximum(np.diff(x), np.log(_NEAR)), _STEEPEST)
    return SensitivityCurve(x, harm, (float(slopes[0]), float(slopes[-1])) if len(slopes) else (0.0, 0.0))

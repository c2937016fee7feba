"""Confidence intervals of what is counted or averaged over samples: 95 %, two-sided."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import scipy
from numpy.typing import NDArray

Interval = tuple[float, float]
_Floats = NDArray[np.float64]

COVERAGE = 0.95
_Z = NormalDist().inv_cdf((1 + COVERAGE) / 2)
_RESAMPLES = 1000


def share_interval(count: int, samples: int) -> Interval:
    """Return the exact interval of a share, ``count`` of ``samples`` (Clopper & Pearson 1934)."""
    tail = (1 - COVERAGE) / 2
    low = 0.0 if count == 0 else float(scipy.special.betaincinv(count, samples - count + 1, tail))
    high = 1.0 if count == samples else float(scipy.special.betaincinv(count + 1, samples - count, 1 - tail))
    return low, high


def paired_interval(lost: int, won: int, samples: int) -> Interval:
    """Return the interval of the difference of two paired shares, ``(lost - won) / samples``.

    That is the score interval of Tango 1998 (Statistics in Medicine 17): it holds where few pairs differ, or none.

    Args:
        lost: Samples that only the first network gets right.
        won: Samples that only the second one gets right.
        samples: All samples, > 0.
    """

    def score(delta: float) -> float:
        a = 2 * samples
        b = (2 * samples - lost + won) * delta - lost - won
        c = -won * delta * (1 - delta)
        share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        deviation = math.sqrt(max(samples * (2 * share + delta * (1 - delta)), 1e-300))
        return (lost - won - samples * delta) / deviation

    middle, least = (lost - won) / samples, 1e-12
    low, high = -1 + least, 1 - least
    below = (
        low if score(low) <= _Z else float(scipy.optimize.brentq(lambda delta: score(delta) - _Z, low, middle + least))
    )
    above = (
        high
        if score(high) >= -_Z
        else float(scipy.optimize.brentq(lambda delta: score(delta) + _Z, middle - least, high))
    )
    return below, above


def bootstrap_interval(
    statistic: Callable[[NDArray[np.intp]], _Floats | float], samples: int, resamples: int = _RESAMPLES, seed: int = 0
) -> Interval:
    """Return the percentile interval of a statistic of samples drawn anew (Efron 1979).

    Args:
        statistic: Takes indices ``[samples]``.
        samples: How many there are.
        resamples: How often they are drawn.
        seed: Of the drawing.
    """
    rng = np.random.default_rng(seed)
    drawn = [float(statistic(rng.integers(samples, size=samples))) for _ in range(resamples)]
    tail = 100 * (1 - COVERAGE) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)


def samples_to_confirm(share: float) -> int:
    """Return how many samples it takes at least until a difference of paired shares is known to be at most ``share``.

    With fewer the interval of :func:`paired_interval` is wider than that even where no pair differs.
    """
    return math.ceil(_Z**2 * (1 - share) / share)

"""Ranges of numbers that come in parts: how far they reach, and where a grid of 256 steps had better end.

Of every tensor a histogram is kept, whose memory does not grow with the numbers it has seen. Its bins are as wide as a
power of two and begin at multiples of their width. When numbers come that are beyond it, bins become twice as wide,
pairs of them are added up, and no number leaves the bin of its value: the histogram is exactly that of all numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BINS = 4096
"""That zero is one edge of; a histogram has half of them at least, unless all numbers are alike."""
LEVELS = 255
"""Steps of a range."""
_SHARES = np.linspace(0.2, 1.0, 41).tolist()
"""Of the whole range: the clips that are tried."""
_TURNS = 4
_TAIL = 1e-5
"""Of the numbers, clipped at either end by a percentile."""


@dataclass(frozen=True)
class Range:
    """What an activation is quantised to: from ``low`` to ``high``."""

    low: float
    high: float

    @property
    def is_usable(self) -> bool:
        """Whether numbers can be told apart in it: it is finite, and neither empty nor nothing."""
        wide = max(self.high, 0.0) - min(self.low, 0.0)
        return math.isfinite(self.low) and math.isfinite(self.high) and wide >= float(np.finfo(np.float32).tiny) * 2**16


class Histogram:
    """Counts numbers.

    Attributes:
        low: The least of them; NaN if one of them was.
        high: The largest of them; likewise.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self._exponent = -126  # of the width of a bin, the least that leaves float32 numbers some accuracy
        self._first = 0  # edge of the first bin, in widths
        self._counts: NDArray[np.int64] = np.zeros(0, np.int64)

    def add(self, values: NDArray[np.floating], every: int = 1) -> None:
        """Take in numbers; those that are no finite ones only count for the ends.

        Args:
            values: Of any shape.
            every: One in so many is counted; all count for the ends.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        self.low, self.high = float(np.minimum(self.low, low)), float(np.maximum(self.high, high))
        counted = values.ravel()[::every].astype(np.float64)
        if not (math.isfinite(low) and math.isfinite(high)):
            counted = counted[np.isfinite(counted)]
            if not counted.size:
                return
        self._reach(float(counted.min()), float(counted.max()))
        bins = np.floor(np.ldexp(counted, -self._exponent)).astype(np.int64) - self._first
        self._counts += np.bincount(bins, minlength=len(self._counts))

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middles of the bins."""
        middles: NDArray[np.float64] = np.ldexp(np.arange(len(self._counts)) + self._first + 0.5, self._exponent)
        return middles

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many numbers there are in each bin."""
        return self._counts

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self._exponent)

    def quantile(self, share: float) -> float:
        """Return a number that ``share`` of all are no larger than, to the width of a bin."""
        below = np.append(0, np.cumsum(self._counts))
        position = share * below[-1]
        index = min(max(int(np.searchsorted(below, position, side="right")) - 1, 0), len(self._counts) - 1)
        inside = (position - below[index]) / max(int(self._counts[index]), 1)
        return min(max(math.ldexp(self._first + index + inside, self._exponent), self.low), self.high)

    def _reach(self, low: float, high: float) -> None:
        """Make the bins hold numbers from ``low`` to ``high``."""
        exponent = max(self._exponent, math.frexp(max(abs(low), abs(high)))[1] - int(math.log2(_BINS)) + 1)
        for _ in range(exponent - self._exponent if len(self._counts) else 0):
            ahead = self._first % 2
            padded = np.pad(self._counts, (ahead, (len(self._counts) + ahead) % 2))
            self._counts, self._first = padded.reshape(-1, 2).sum(axis=1), (self._first - ahead) // 2
        self._exponent = exponent
        first, last = (math.floor(math.ldexp(end, -exponent)) for end in (low, high))
        if not len(self._counts):
            self._first, self._counts = first, np.zeros(last - first + 1, np.int64)
            return
        before = max(self._first - first, 0)
        after = max(last + 1 - self._first - len(self._counts), 0)
        self._counts, self._first = np.pad(self._counts, (before, after)), self._first - before


Ranging = Callable[[Histogram], Range]
"""Chooses the range of what was counted."""


def whole(seen: Histogram) -> Range:
    """Return the range from the least number to the largest."""
    return Range(seen.low, seen.high)


def percentile(seen: Histogram, tail: float = _TAIL) -> Range:
    """Return the range without ``tail`` of the numbers at either end."""
    if not _is_counted(seen):
        return whole(seen)
    return Range(seen.quantile(tail), seen.quantile(1 - tail))


def least_squares(seen: Histogram) -> Range:
    """Return the range in which rounding and clipping together have the least mean square.

    Both ends are shortened to shares of the whole range, the one after the other, until that gains nothing.
    """
    if not _is_counted(seen):
        return whole(seen)
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    found = Range(low, high)
    best = rounding_error(seen, found)
    for _ in range(_TURNS):
        before = best
        shorter = [Range(found.low, share * high) for share in _SHARES if high]
        shorter += [Range(share * low, found.high) for share in _SHARES if low]
        for one in shorter:
            lost = rounding_error(seen, one)
            if lost < best:
                found, best = one, lost
        if best == before:
            break
    return found


def rounding_error(seen: Histogram, ends: Range) -> float:
    """Return the mean square by which numbers are off that were rounded to 256 steps, as onnxruntime places them."""
    if not max(ends.high, 0.0) > min(ends.low, 0.0):
        return math.inf
    scale, zero = grid(ends)
    full = np.flatnonzero(seen.counts)
    values, counts = seen.centres[full], seen.counts[full]
    steps = np.clip(np.rint(values / scale) + zero, 0, LEVELS) - zero
    return float((steps * scale - values) ** 2 @ counts) / float(counts.sum())


def grid(ends: Range) -> tuple[float, int]:
    """Return the size of a step, and the number of steps below zero, of a range that is not empty.

    Zero is one of the 256 numbers, as onnxruntime has it.
    """
    low, high = min(ends.low, 0.0), max(ends.high, 0.0)
    scale = (high - low) / LEVELS
    return scale, round(-low / scale)


def _is_counted(seen: Histogram) -> bool:
    """Return whether all numbers are finite and there are some."""
    return math.isfinite(seen.low) and math.isfinite(seen.high) and bool(seen.counts.sum())

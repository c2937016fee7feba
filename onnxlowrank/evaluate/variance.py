"""The variance of a tensor over many feeds, a feed at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Variance:
    """Sums over the feeds of a tensor: squared distances from what it is on average.

    What counts is what the inputs change, not what is the same for all of them, like the place of an anchor that a
    detector adds to its boxes. So a tensor ``[N, C, ...]`` of several samples has a mean for every entry behind axis 0.
    Where these are not always as many it has one for every entry of axis 1, and any other tensor has one mean. So does
    one of a single sample without positions, and one whose maps are not always as many: then what varies is what
    differs between entries.
    """

    def __init__(self) -> None:
        self._of_entries, self._of_maps = _Moments(), _Moments()
        self._has_entries = self._has_maps = True
        self._count, self._total, self._squares = 0, 0.0, 0.0

    def add(self, array: NDArray[np.generic]) -> None:
        """Take in the tensor of one feed; entries that are not finite do not count."""
        values = np.asarray(array, np.float64)
        values = np.where(np.isfinite(values), values, 0.0)
        self._total += float(values.sum())
        self._squares += float((values**2).sum())
        self._count += values.size
        if not values.size:
            return
        entries = values.reshape(len(values), -1) if values.ndim > 2 else values.reshape(-1, 1)
        maps = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1).T if values.ndim > 1 else values.reshape(-1, 1)
        self._has_entries = self._has_entries and values.ndim > 2 and self._of_entries.add(entries)
        self._has_maps = self._has_maps and self._of_maps.add(maps)

    @property
    def squares(self) -> float:
        """Sum of the squared entries."""
        return self._squares

    @property
    def sum(self) -> float:
        """Sum of the squared distances from the means; 0 where the tensor never varies."""
        if self._has_entries and self._of_entries.count > 1:
            taken = self._of_entries.count - 1  # so few are left by a mean, which matters where samples are few
            return float(self._of_entries.squares.sum()) * self._of_entries.count / taken
        if self._has_maps and self._of_maps.count > 1:
            return float(self._of_maps.squares.sum())
        if not self._count:
            return 0.0
        return max(self._squares - self._total**2 / self._count, 0.0)


class _Moments:
    """Means of columns, and squared distances from these, of rows that come bit by bit."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = np.zeros(0)

    def add(self, rows: NDArray[np.float64]) -> bool:
        """Take in rows ``[n, p]``; return whether they fit those before."""
        if self.count and rows.shape[1] != len(self.mean):
            return False
        count, mean = len(rows), rows.mean(axis=0)
        squares = ((rows - mean) ** 2).sum(axis=0)
        if not self.count:
            self.mean = self.squares = np.zeros(rows.shape[1])
        whole = self.count + count  # Chan, Golub & LeVeque 1979
        delta = mean - self.mean
        self.squares = self.squares + squares + delta**2 * (self.count * count / whole)
        self.mean = self.mean + delta * (count / whole)
        self.count = whole
        return True

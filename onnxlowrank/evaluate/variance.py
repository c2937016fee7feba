"""The variance of a tensor over many feeds, a feed at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Variance:
    """Sums over the feeds of a tensor: squared distances from the means of its maps.

    A tensor ``[N, C, ...]`` has a mean for every entry of axis 1, any other one mean. So does one of a single sample
    without positions, and one whose maps are not always as many: then what varies is what differs between entries.
    """

    def __init__(self) -> None:
        self._count = 0
        self._entries, self._mean, self._squares = 0, np.zeros(1), np.zeros(1)
        self._total = self._total_squares = 0.0
        self._by_map = True

    def add(self, array: NDArray[np.generic]) -> None:
        """Take in the tensor of one feed; entries that are not finite do not count."""
        values = np.asarray(array, np.float64)
        values = np.where(np.isfinite(values), values, 0.0)
        self._total += float(values.sum())
        self._total_squares += float((values**2).sum())
        self._entries += values.size
        maps = values.shape[1] if values.ndim > 1 else 1
        if not values.size or (self._count and maps != len(self._mean)):
            self._by_map = self._by_map and not values.size
            return
        rows = np.moveaxis(values, 1, 0).reshape(maps, -1) if values.ndim > 1 else values.reshape(1, -1)
        count, mean = rows.shape[1], rows.mean(axis=1)
        squares = ((rows - mean[:, None]) ** 2).sum(axis=1)
        if self._count == 0:
            self._mean, self._squares = np.zeros(maps), np.zeros(maps)
        whole = self._count + count  # Chan, Golub & LeVeque 1979
        delta = mean - self._mean
        self._squares = self._squares + squares + delta**2 * (self._count * count / whole)
        self._mean = self._mean + delta * (count / whole)
        self._count = whole

    @property
    def sum(self) -> float:
        """Sum of the squared distances from the means; 0 where the tensor never varies."""
        if self._by_map and self._count > 1:
            return float(self._squares.sum())
        if not self._entries:
            return 0.0
        return max(self._total_squares - self._total**2 / self._entries, 0.0)

"""Running mean and covariance of a stream of row vectors, in memory independent of its length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Moments:
    """Accumulates count, sum and Gram matrix of rows ``[n, channels]``; products in float32, sums in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._sum = np.zeros(channels)
        self._gram = np.zeros((channels, channels))

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take in rows ``[n, channels]``."""
        self.count += len(rows)
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._gram += rows.T @ rows

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean row ``[channels]``."""
        return self._sum / max(self.count, 1)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Covariance ``[channels, channels]`` of the rows."""
        mean = self.mean
        covariance: NDArray[np.float64] = self._gram / max(self.count, 1) - np.outer(mean, mean)
        return covariance

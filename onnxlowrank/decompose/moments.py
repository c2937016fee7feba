"""Running mean and covariance of a stream of row vectors, in memory independent of its length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.decompose.precision import squarable

_BATCH = 1024  # rows taken in together: products of fewer are slow, and so is adding each to a large Gram matrix


class Moments:
    """Accumulates count, sum and Gram matrix of rows ``[n, channels]``; products in float32, sums in float64.

    Rows whose products float32 cannot hold are multiplied in float64. Where channels are in ``groups`` of equal size,
    one after the other, only products within a group are: there is a covariance of every group, and none of all.
    """

    def __init__(self, channels: int, groups: int = 1) -> None:
        self.count = 0
        self._waiting: list[NDArray[np.float32]] = []
        self._fill = 0
        self._sum = np.zeros(channels)
        self._grams = np.zeros((groups, channels // groups, channels // groups))

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take in rows ``[n, channels]``."""
        self.count += len(rows)
        self._fill += len(rows)
        self._waiting.append(rows)
        if self._fill >= _BATCH:
            self._flush()

    def spread(self, covariance: NDArray[np.float64]) -> None:
        """Take in as much variance as one row more would bring, distributed like ``covariance``; the mean stays.

        That is a prior where rows are few: next to it, they do not vary at all outside of the space they span.
        """
        trace = float(np.trace(covariance))
        if trace > 0:
            self._grams[0] += covariance * (float(np.trace(self.covariance)) / trace)

    def part(self, columns: NDArray[np.intp]) -> Moments:
        """Return the moments of some of the channels."""
        self._flush()
        part = Moments(len(columns))
        part.count, part._sum, part._grams = self.count, self._sum[columns], self._grams[:, columns[:, None], columns]
        return part

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = squarable(np.concatenate(self._waiting))
        self._waiting.clear()
        self._fill = 0
        self._sum += rows.sum(axis=0, dtype=np.float64)
        if len(self._grams) == 1:
            self._grams[0] += rows.T @ rows
        else:
            by_group = rows.reshape(len(rows), len(self._grams), -1).swapaxes(0, 1)
            self._grams += by_group.swapaxes(1, 2) @ by_group

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean row ``[channels]``."""
        self._flush()
        return self._sum / max(self.count, 1)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Covariance ``[channels, channels]`` of the rows, where they are in one group."""
        covariance: NDArray[np.float64]
        (covariance,) = self.covariances
        return covariance

    @property
    def covariances(self) -> NDArray[np.float64]:
        """Covariances ``[groups, channels / groups, channels / groups]`` of the groups of channels."""
        means = self.mean.reshape(len(self._grams), -1)  # flushes
        found: NDArray[np.float64] = self._grams / max(self.count, 1) - means[:, :, None] * means[:, None]
        return found

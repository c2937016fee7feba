"""Second moments of what the rows of a weight read, and of that with the responses they should give."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


class RowMoments:
    """Sums over rows that come in parts.

    They are of what is left when the mean of the first part is taken off: products of large means would hide what
    varies in float32.

    Attributes:
        rows: How many there were.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._shift: NDArray[np.float32] = np.zeros(0, np.float32)
        self._sum: Float64Array = np.zeros(0)
        self._second: Float64Array = np.zeros(0)
        self._response: Float64Array | None = None
        self._cross: Float64Array | None = None

    def add(self, read: NDArray[np.float32], responses: NDArray[np.float32] | None = None) -> None:
        """Add rows.

        Args:
            read: ``[n, group, D]``.
            responses: ``[n, F]``, always or never.
        """
        if not self.rows:
            _, groups, columns = read.shape
            self._shift = read.mean(axis=0, dtype=np.float64).astype(np.float32)
            self._sum, self._second = np.zeros((groups, columns)), np.zeros((groups, columns, columns))
            if responses is not None:
                self._response = np.zeros(responses.shape[1])
                self._cross = np.zeros((groups, responses.shape[1] // groups, columns))
        shifted = read - self._shift
        by_group = shifted.swapaxes(0, 1)  # [group, n, D]
        self.rows += len(read)
        self._sum += shifted.sum(axis=0, dtype=np.float64)
        self._second += by_group.swapaxes(1, 2) @ by_group
        if responses is not None and self._response is not None and self._cross is not None:
            self._response += responses.sum(axis=0, dtype=np.float64)
            parted = responses.reshape(len(responses), len(by_group), -1)
            self._cross += parted.transpose(1, 2, 0) @ by_group

    def second(self, group: int, centred: bool) -> Float64Array:
        """Return the mean of ``x x'`` ``[D, D]`` of a group, that of the means taken off if it is ``centred``."""
        mean = self._sum[group] / self.rows
        found: Float64Array = self._second[group] / self.rows - np.outer(mean, mean)
        if not centred:
            found += np.outer(mean + self._shift[group], mean + self._shift[group])
        return (found + found.T) / 2

    def cross(self, group: int, rows: slice) -> Float64Array | None:
        """Return the covariance ``[F/group, D]`` of a group's responses, the ``rows`` of all, with what it reads.

        None where no responses were given.
        """
        if self._cross is None or self._response is None:
            return None
        means = np.outer(self._response[rows] / self.rows, self._sum[group] / self.rows)
        found: Float64Array = self._cross[group] / self.rows - means
        return found

"""Running covariances of the input patches of a layer, whole and along each of their two axes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.decompose.precision import squarable

_BATCH = 1024  # rows taken in together: products of fewer are slow, and so is adding each to a large Gram matrix

LARGEST_COVARIANCE = 2400
"""Longest patch whose whole covariance is kept. It takes 46 MB then, and each product with it and the kernel of 256
filters 3 GFLOP; twice the length costs four times both. 256 input maps under a 3x3 kernel fit, 512 do not."""


class PatchMoments:
    """Accumulates the moments of patches ``x [n, C * T]``, where column ``c * T + t`` is tap ``t`` of input map ``c``.

    Products are in float32, or float64 where that cannot hold them; sums are in float64.
    """

    def __init__(self, channels: int, taps: int) -> None:
        size = channels * taps
        self.count = 0
        self._waiting: list[NDArray[np.float32]] = []
        self._sum = np.zeros((channels, taps))
        self._inputs = np.zeros((channels, channels))
        self._taps = np.zeros((taps, taps))
        self._gram = np.zeros((size, size)) if size <= LARGEST_COVARIANCE else None

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take in patches ``[n, C * T]``."""
        self.count += len(rows)
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows, channels, taps = squarable(np.concatenate(self._waiting)), *self._sum.shape
        self._waiting.clear()
        patches = rows.reshape(-1, channels, taps)
        by_input = patches.transpose(0, 2, 1).reshape(-1, channels)
        by_tap = patches.reshape(-1, taps)
        self._sum += patches.sum(axis=0, dtype=np.float64)
        self._inputs += by_input.T @ by_input
        self._taps += by_tap.T @ by_tap
        if self._gram is not None:
            self._gram += rows.T @ rows

    @property
    def vary(self) -> bool:
        """Whether the patches differ by more than the rounding of their products."""
        return bool(np.trace(self.inputs) * max(self.count, 1) > 1e-5 * np.trace(self._inputs))

    @property
    def inputs(self) -> NDArray[np.float64]:
        """Covariance ``[C, C]`` of the input maps, summed over the taps: a partial trace of the whole one."""
        self._flush()
        return self._centred(self._inputs, self._mean @ self._mean.T)

    @property
    def taps(self) -> NDArray[np.float64]:
        """Covariance ``[T, T]`` of the taps, summed over the input maps: the other partial trace."""
        self._flush()
        return self._centred(self._taps, self._mean.T @ self._mean)

    @property
    def covariance(self) -> NDArray[np.float64] | None:
        """Covariance ``[C * T, C * T]``, or None where that exceeds ``LARGEST_COVARIANCE``."""
        self._flush()
        mean = self._mean.reshape(-1)
        return None if self._gram is None else self._centred(self._gram, np.outer(mean, mean))

    @property
    def _mean(self) -> NDArray[np.float64]:
        return self._sum / max(self.count, 1)

    def _centred(self, gram: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64]:
        centred: NDArray[np.float64] = gram / max(self.count, 1) - means
        return centred

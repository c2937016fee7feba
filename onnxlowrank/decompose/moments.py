"""Running mean and covariance of a stream of row vectors, in memory independent of its length."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxlowrank.decompose.precision import squarable
from onnxlowrank.decompose.spectrum import Float64Array, left_axes, principal_axes

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

    def _moments(self) -> tuple[Float64Array, Float64Array]:
        """Return the mean ``[channels]`` and covariances of what was taken in."""
        self._flush()
        mean = self._sum / max(self.count, 1)
        means = mean.reshape(len(self._grams), -1)
        return mean, self._grams / max(self.count, 1) - means[:, :, None] * means[:, None]

    @property
    def mean(self) -> Float64Array:
        """Mean row ``[channels]``."""
        return self._moments()[0]

    @property
    def covariance(self) -> Float64Array:
        """Covariance ``[channels, channels]`` of the rows, where they are in one group."""
        covariance: Float64Array
        (covariance,) = self.covariances
        return covariance

    @property
    def covariances(self) -> Float64Array:
        """Covariances ``[groups, channels / groups, channels / groups]`` of the groups of channels."""
        return self._moments()[1]

    def principal_axes(self, rank: int | None = None) -> tuple[Float64Array, Float64Array]:
        """Return the largest ``rank`` variances, descending, and their axes ``[channels, rank]``."""
        return principal_axes(self.covariance, rank)

    def variances(self) -> Float64Array:
        """Return the variances along all principal axes, descending."""
        found: Float64Array = scipy.linalg.eigvalsh(self.covariance)[::-1]
        return found

    def along(self, axes: Float64Array) -> Float64Array:
        """Return the variances ``[rank]`` along axes ``[channels, rank]``."""
        found: Float64Array = np.einsum("fk,fk->k", axes, self.covariance @ axes)
        return found


class ImageMoments(Moments):
    """Moments of rows ``W x + b [F]``, of which the rows ``x [C]`` are taken in.

    Where ``C < F`` nothing as large as ``F^2`` is kept, and only :attr:`covariances` computes it.
    """

    def __init__(self, weight: NDArray[np.floating], bias: NDArray[np.floating] | None = None) -> None:
        super().__init__(weight.shape[1])
        self._weight = weight.astype(np.float64)
        self._bias = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)

    def spread_white(self) -> None:
        """Do what :meth:`spread` does for ``W W'``, the covariance where that of ``x`` is the identity."""
        variance = float(((self._weight @ self._moments()[1][0]) * self._weight).sum())
        trace = float((self._weight**2).sum())
        if trace > 0:
            self._grams[0] += np.eye(self._weight.shape[1]) * (variance / trace)

    def part(self, columns: NDArray[np.intp]) -> ImageMoments:
        """Return the moments of some of the channels."""
        self._flush()
        part = ImageMoments(self._weight[columns], self._bias[columns])
        part.count, part._sum, part._grams = self.count, self._sum.copy(), self._grams.copy()
        return part

    @property
    def mean(self) -> Float64Array:
        """Mean row ``[F]``."""
        found: Float64Array = self._weight @ self._moments()[0] + self._bias
        return found

    @property
    def covariances(self) -> Float64Array:
        """The one covariance, ``[1, F, F]``, computed whenever it is asked for."""
        return self._weight @ self._moments()[1] @ self._weight.T

    def principal_axes(self, rank: int | None = None) -> tuple[Float64Array, Float64Array]:
        """Return the largest ``rank`` variances, descending, and their axes ``[F, rank]``, of ``min(C, F)``."""
        variances, axes = scipy.linalg.eigh(self._moments()[1][0])
        return left_axes(self._weight @ (axes * np.sqrt(np.maximum(variances, 0))), rank)

    def variances(self) -> Float64Array:
        """Return the variances along the ``min(C, F)`` principal axes, descending."""
        return self.principal_axes()[0]

    def along(self, axes: Float64Array) -> Float64Array:
        """Return the variances ``[rank]`` along axes ``[F, rank]``."""
        back = self._weight.T @ axes
        found: Float64Array = np.einsum("ck,ck->k", back, self._moments()[1][0] @ back)
        return found

"""The sequence of feeds that calibration and evaluation iterate over."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.errors import UnfitInputsError
from onnxlowrank.inputs.specs import Feeds


class Inputs(Sequence[Feeds]):
    """Sample inputs: a sequence of feeds, each read when it is asked for and the same every time.

    Only what ``read`` needs is held, and at most as many decoded feeds as :meth:`held` is told, so memory does not grow
    with their number.

    Attributes:
        batch: Samples in one feed (in the first one, where feeds differ).
        samples: Samples in all feeds (``batch`` a feed, where a reader's feeds differ).
        labels: Class indices ``[len, batch]``, or None when the source has none.
        description: What the inputs are and where they come from, for the report.
    """

    def __init__(
        self,
        read: Callable[[int], Feeds],
        count: int,
        batch: int,
        description: str,
        labels: NDArray[np.int64] | None = None,
        keep: object = None,
        samples: int | None = None,
    ) -> None:
        self._read = read
        self._count = count
        self.batch = batch
        self.samples = count * batch if samples is None else samples
        self.description = description
        self.labels = labels
        self._keep = keep  # what must live as long as ``read`` is used: a temporary folder

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Feeds: ...

    @overload
    def __getitem__(self, index: slice) -> Inputs: ...

    def __getitem__(self, index: int | slice) -> Feeds | Inputs:
        if isinstance(index, slice):
            return self.subset(range(*index.indices(self._count)))
        return self._read(self._position(index))

    def subset(self, indices: Iterable[int]) -> Inputs:
        """Return the feeds at ``indices``, in that order, with their labels; nothing is read."""
        kept = [self._position(index) for index in indices]
        read = self._read
        labels = None if self.labels is None else self.labels[kept]
        description = (
            f"{len(kept)} of {self.description}"
            if self.batch == 1
            else (f"{len(kept)} batches of {self.batch} out of {self.description}")
        )
        return Inputs(lambda index: read(kept[index]), len(kept), self.batch, description, labels, self._keep)

    def held(self, size: int) -> Inputs:
        """Return the same feeds, the first ``size`` bytes of which stay in memory once they have been read."""
        kept: dict[int, Feeds] = {}
        room = size

        def read(index: int) -> Feeds:
            nonlocal room
            if index not in kept:
                feeds = self._read(index)
                if byte_count(feeds) > room:
                    return feeds
                room -= byte_count(feeds)
                kept[index] = feeds
            return {name: array.copy() for name, array in kept[index].items()}  # the caller may change its feeds

        return Inputs(read, self._count, self.batch, self.description, self.labels, self._keep, self.samples)

    def stacked(self, size: int) -> Inputs:
        """Return fewer and larger feeds, without labels: ``size`` of these joined along axis 0, in the last one fewer.

        All feeds must have the same shapes.
        """
        if size == 1:
            return self

        def read(index: int) -> Feeds:
            return joined([self._read(one) for one in range(index * size, min((index + 1) * size, self._count))])

        batch = self.batch * min(size, self._count)
        count = -(-self._count // size)
        return Inputs(read, count, batch, self.description, keep=self._keep, samples=self.samples)

    def _position(self, index: int) -> int:
        position = operator.index(index)
        if not -self._count <= position < self._count:
            raise IndexError(f"feed {position} of {self._count}")
        return position % self._count


def byte_count(feeds: Feeds) -> int:
    """Return how many bytes the arrays of one feed take."""
    return sum(array.nbytes for array in feeds.values())


def joined(feeds: Sequence[Feeds]) -> Feeds:
    """Return one feed with the arrays of all these, joined along axis 0."""
    return {name: np.concatenate([one[name] for one in feeds]) for name in feeds[0]}


def label_rows(labels: NDArray[np.generic], samples: int, feeds: int, batch: int, where: str) -> NDArray[np.int64]:
    """Return one class index a sample as ``[feeds, batch]``, the samples of a short last batch dropped.

    Raises:
        InputDataError: They are not integers, or not one for each of the ``samples``.
    """
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (samples,):
        raise UnfitInputsError(
            f"the array 'labels' of {where} is {labels.dtype} {list(labels.shape)}: give one integer class index for "
            f"each of its {samples} samples."
        )
    return labels[: feeds * batch].astype(np.int64).reshape(feeds, batch)

"""Sample inputs in batches: those that are learnt from, drawn at random, and those that are held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.inputs.feeds import Inputs, byte_count, joined
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.tune.augment import Augmentation

_HELD_BYTES = 2**29
_LARGEST_FEED = 4 * 2**20
"""Bytes of inputs that are run through at once."""


@dataclass(frozen=True)
class Part:
    """Samples that are run through at once.

    Attributes:
        feeds: Their inputs.
        labels: Their classes ``[n]``; None where there are none.
        share: Of the batch.
    """

    feeds: Feeds
    labels: NDArray[np.int64] | None
    share: float


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    Attributes:
        chosen: Numbers of feeds.
        seed: Of how they are changed.
    """

    chosen: tuple[int, ...]
    seed: int


class Samples:
    """Sample inputs."""

    def __init__(self, inputs: Inputs, joins: bool, augmentation: Augmentation | None = None) -> None:
        """Take in inputs.

        Args:
            inputs: One feed after the other.
            joins: Whether feeds may be joined along axis 0.
            augmentation: How inputs are changed whenever they are drawn.
        """
        self._inputs, self._augmentation = inputs.held(_HELD_BYTES), augmentation
        self._at_once = max(_LARGEST_FEED // max(byte_count(self._inputs[0]), 1), 1) if joins else 1

    def __len__(self) -> int:
        return len(self._inputs)

    def parts(self, chosen: Sequence[int], rng: np.random.Generator | None = None) -> Iterator[Part]:
        """Yield these feeds, changed at random where a generator is given."""
        for begin in range(0, len(chosen), self._at_once):
            some = [int(index) for index in chosen[begin : begin + self._at_once]]
            read = [self._inputs[index] for index in some]
            feeds = read[0] if len(read) == 1 else joined(read)
            if self._augmentation is not None and rng is not None:
                feeds = self._augmentation.apply(feeds, rng)
            labels = None if self._inputs.labels is None else self._inputs.labels[some].ravel()
            yield Part(feeds, labels, len(some) / len(chosen))

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield ``size`` feeds again and again, all of them once before any comes again."""
        waiting = np.zeros(0, np.intp)
        while True:
            while len(waiting) < size:
                waiting = np.concatenate([waiting, rng.permutation(len(self))])
            yield Batch(tuple(waiting[:size].tolist()), int(rng.integers(2**32)))
            waiting = waiting[size:]

"""What task metrics are given and give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.errors import OptionError, UnsupportedModelError

Array = NDArray[Any]
Floats = NDArray[np.float64]
Outputs = Sequence[Mapping[str, Array]]
"""Outputs of a network by their names, one mapping an input."""


@dataclass(frozen=True, eq=False)
class Given:
    """What a task metric knows before it sees the network that it judges.

    Attributes:
        original: Outputs of the original network, at least one.
        axes: The outputs that may be read, by name, with the axis of the classes where that is known.
        labels: ``[inputs, batch]``, or None.
        batch: Samples an input.
    """

    original: Outputs
    axes: Mapping[str, int | None]
    labels: NDArray[np.int64] | None = None
    batch: int = 1

    def only(self, metric: str, wanted: str, fits: Callable[[Array], bool]) -> str:
        """Return the name of the one output that fits.

        Args:
            metric: Name of the metric, for messages.
            wanted: What it reads, likewise.
            fits: Tells by an output of the first input.

        Raises:
            OptionError: If none fits, or several do.
        """
        found = [name for name in self.axes if fits(self.original[0][name])]
        if len(found) == 1:
            return found[0]
        if found:
            raise OptionError(
                f"--metric {metric} reads one output, and {', '.join(found)} fit: name one with --output NAME"
            )
        raise self.unfit(metric, wanted)

    def unfit(self, metric: str, wanted: str) -> OptionError:
        """Return the error of a network whose outputs are not what a metric reads."""
        there = ", ".join(f"{name} {described(self.original[0][name])}" for name in self.axes)
        return OptionError(
            f"--metric {metric} reads {wanted}, but the outputs are {there}: choose another metric, or name a function "
            "of your own as module:function"
        )


@dataclass(frozen=True, eq=False)
class Score:
    """What a metric makes of one network.

    Attributes:
        of: Returns it for chosen inputs (indices, some perhaps more than once).
        right: Which samples it gets right, where that is all that is counted.
    """

    of: Callable[[NDArray[np.intp]], float]
    right: NDArray[np.bool_] | None = None


class TaskMetric(Protocol):
    """A figure of merit that compares with the original network; more is better."""

    __name__: str

    def __call__(self, given: Given) -> Callable[[Outputs], Score]:
        """Return what scores outputs, which have the names of the original's.

        Raises:
            OptionError: If the outputs of the original network are not what the metric reads.
        """


def described(array: Array) -> str:
    """Return type and shape of an array, for messages."""
    return f"{array.dtype} {list(array.shape)}"


def is_float(array: Array) -> bool:
    """Return whether an array holds real numbers."""
    return bool(np.issubdtype(array.dtype, np.floating))


def same_shape(one: Array, other: Array, name: str) -> Array:
    """Return the second of two arrays that are compared entry by entry.

    Raises:
        UnsupportedModelError: If their shapes differ.
    """
    if one.shape != other.shape:
        raise UnsupportedModelError(
            f"the output {name} is {described(one)} of the first network and {described(other)} of the other: "
            "they cannot be compared by this metric"
        )
    return other


def average(values: Sequence[Floats]) -> Callable[[NDArray[np.intp]], float]:
    """Return what averages values, an array an input, over chosen inputs; in per cent."""
    sums, counts = np.array([one.sum() for one in values]), np.array([one.size for one in values])
    return lambda chosen: 100 * float(sums[chosen].sum() / max(counts[chosen].sum(), 1))

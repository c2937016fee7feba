"""What the differences of one output of two networks add up from, a feed at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.errors import ModelError
from onnxlowrank.evaluate.classes import ClassSums
from onnxlowrank.evaluate.discrete import as_array, equal_entries, is_real, row_count
from onnxlowrank.evaluate.measures import CLASSES, Measure
from onnxlowrank.evaluate.variance import Variance


@dataclass(frozen=True)
class OutputDifference:
    """How far one output of two networks differs.

    Attributes:
        name: Of the output.
        largest: Largest absolute difference of any value; None where it holds no real numbers or was not compared.
        relative_error: ``|b - a| / |a|``, Frobenius norms; None likewise.
        equal: Share of equal entries of what holds no real numbers.
        rows: Number of rows in either network, where the data decide it.
        why_not: Why it could not be compared; empty where it was.
    """

    name: str
    largest: float | None = None
    relative_error: float | None = None
    equal: float | None = None
    rows: tuple[int, int] | None = None
    why_not: str = ""


@dataclass(frozen=True)
class JudgedDifference:
    """How far a tensor that outputs are judged by differs.

    Attributes:
        tensor: Its name.
        outputs: The outputs it stands for.
        measure: ``classes`` or ``values``.
        loss: Mean Kullback-Leibler divergence in nats, or squared error over variance; None where it could not be
            compared, or never varies.
        largest: Largest absolute difference.
        relative_error: ``|b - a| / |a|``, Frobenius norms.
    """

    tensor: str
    outputs: tuple[str, ...]
    measure: str
    loss: float | None
    largest: float | None
    relative_error: float | None


class OutputSums:
    """What the differences of an output add up from."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._largest = self._difference = self._norm = 0.0
        self._equal = self._entries = 0
        self._rows = np.zeros(2, int)
        self._real = self._sized = False
        self._why_not = "it is never run"

    def add(self, one: object, other: object, source: str) -> None:
        """Take in the output of one feed in either network.

        Raises:
            ModelError: If it is not finite in the second network where it is in the first.
        """
        a, b = as_array(one), as_array(other)
        if a is None or b is None:
            self._why_not = f"it is a {type(one).__name__}, not a tensor"
            return
        self._why_not = ""
        self._real = is_real(a)
        self._rows += row_count(a), row_count(b)
        if a.shape != b.shape:
            self._sized = True
        if not self._real:
            equal, entries = equal_entries(a, b)
            self._equal, self._entries = self._equal + equal, self._entries + entries
        elif a.shape == b.shape:
            if not np.isfinite(b[np.isfinite(a)]).all():
                raise ModelError(f"output {self._name} of the optimised model is not finite on {source}")
            known = np.isfinite(a)
            delta = np.abs(b[known].astype(np.float64) - a[known])
            self._largest = max(self._largest, float(delta.max(initial=0)))
            self._difference += float((delta**2).sum())
            self._norm += float((a[known].astype(np.float64) ** 2).sum())
        else:
            self._why_not = f"its shape is {list(a.shape)} in one network and {list(b.shape)} in the other"

    def result(self) -> OutputDifference:
        """Return the sums as a difference."""
        compared = self._real and not self._why_not
        error = (self._difference / self._norm) ** 0.5 if self._norm else 0.0
        return OutputDifference(
            self._name,
            self._largest if compared else None,
            error if compared else None,
            self._equal / self._entries if self._entries else None,
            (int(self._rows[0]), int(self._rows[1])) if self._sized else None,
            self._why_not,
        )


class JudgedSums:
    """What the differences of a tensor that outputs are judged by add up from.

    Attributes:
        parts: Number of feeds.
        largest: Largest absolute difference.
        classes: Sums of class scores, where it holds some.
    """

    def __init__(self, measure: Measure, batch: int) -> None:
        self._measure, self._batch = measure, batch
        self._squares: list[NDArray[np.float64]] = []
        self._variance = Variance()
        self.parts, self.largest = 0, 0.0
        self.classes = ClassSums(measure.axis) if measure.kind == CLASSES else None

    def add(self, one: object, other: object) -> None:
        """Take in the tensor of one feed in either network."""
        a, b = as_array(one), as_array(other)
        if a is None or b is None or a.shape != b.shape or not is_real(a):
            return
        known = np.isfinite(a) & np.isfinite(b)
        first, second = (np.where(known, array, 0).astype(np.float64) for array in (a, b))
        delta = np.abs(second - first)
        self.parts += 1
        self.largest = max(self.largest, float(delta.max(initial=0)))
        shape = (self._batch, -1) if a.ndim and len(a) == self._batch and a.size else (1, -1)
        self._squares.append(np.stack([(part.reshape(shape) ** 2).sum(axis=1) for part in (delta, first)], axis=1))
        self._variance.add(first)
        if self.classes is not None:
            self.classes.add(a, b)

    @property
    def squares(self) -> NDArray[np.float64]:
        """Squared difference and squared norm of every sample, or of every feed: ``[n, 2]``."""
        return np.concatenate(self._squares)

    def result(self) -> JudgedDifference:
        """Return the sums as a difference."""
        loss = None
        if self.parts and self.classes is not None:
            loss = self.classes.divergence
        elif self.parts and self._variance.sum:
            loss = float(self.squares[:, 0].sum()) / self._variance.sum
        return JudgedDifference(
            self._measure.tensor,
            self._measure.outputs,
            self._measure.kind,
            loss,
            self.largest if self.parts else None,
            relative_error_of(self.squares) if self.parts else None,
        )


def relative_error_of(squares: NDArray[np.float64]) -> float:
    """Return ``|b - a| / |a|`` of squared differences and squared norms ``[n, 2]``."""
    difference, norm = squares.sum(axis=0)
    return float((difference / norm) ** 0.5) if norm else 0.0

"""How far the outputs of two networks differ, and, for classifiers, how often they agree and are right."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxlowrank.errors import ModelError
from onnxlowrank.evaluate.classes import class_agreement, class_scores, divergence, is_scores
from onnxlowrank.graph.layer import FloatArray
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.sessions import all_threads, open_session, running
from onnxlowrank.progress import Advance


@dataclass(frozen=True)
class OutputDifference:
    """How far one output of two networks differs.

    Attributes:
        name: Of the output.
        largest: Largest absolute difference of any value.
        relative_error: ``|b - a| / |a|``, Frobenius norms.
    """

    name: str
    largest: float
    relative_error: float


@dataclass(frozen=True)
class Agreement:
    """Two networks on the same inputs.

    Attributes:
        inputs: Number of samples compared.
        source: Where they come from.
        largest_difference: Largest absolute difference of any output value.
        relative_error: ``|b - a| / |a|`` over all outputs, Frobenius norms.
        top1_agreement: Share of samples with the same largest class; None when the first output is no ``[N, classes]``.
        divergence: Mean Kullback-Leibler divergence of the class probabilities, ``KL(a, b)`` in nats; None likewise.
        accuracy: Top-1 accuracy of either network; None without labels.
        top5_agreement: Share of samples whose largest class is among the five largest of the second network; None where
            there are no more than five classes.
        top5_accuracy: Top-5 accuracy of either network; None likewise, and without labels.
        outputs: The outputs one by one.
    """

    inputs: int
    source: str
    largest_difference: float
    relative_error: float
    top1_agreement: float | None = None
    divergence: float | None = None
    accuracy: tuple[float, float] | None = None
    top5_agreement: float | None = None
    top5_accuracy: tuple[float, float] | None = None
    outputs: tuple[OutputDifference, ...] = ()

    @property
    def drop(self) -> float:
        """Points of accuracy that were lost; without labels, per cent of the samples whose class is another one now.

        It is not a number where the outputs are no classes.
        """
        if self.accuracy is not None:
            return 100 * (self.accuracy[0] - self.accuracy[1])
        return math.nan if self.top1_agreement is None else 100 * (1 - self.top1_agreement)


def compare_outputs(before: onnx.ModelProto, after: onnx.ModelProto, inputs: Inputs, advance: Advance) -> Agreement:
    """Run both networks over the inputs and compare their outputs.

    Raises:
        ModelError: If an output of the second network is not finite where the first one's is.
    """
    sessions = [open_session(model, all_threads()) for model in (before, after)]
    names = [value.name for value in sessions[0].get_outputs()]
    sums: dict[str, _Sums] = {}
    firsts: list[tuple[object, object]] = []
    for feeds in inputs:
        with running(feeds):
            a, b = (session.run(names, feeds) for session in sessions)
        for name, one, other in zip(names, a, b, strict=True):
            if not isinstance(one, np.ndarray) or not np.issubdtype(one.dtype, np.floating):
                continue
            if one.shape != other.shape:
                raise ModelError(f"output {name} became {other.shape} in the optimised model, it was {one.shape}")
            if not np.isfinite(other[np.isfinite(one)]).all():
                raise ModelError(f"output {name} of the optimised model is not finite on {inputs.description}")
            sums.setdefault(name, _Sums()).add(one, other)
        firsts.append((a[0], b[0]) if is_scores(a[0]) else (None, None))  # others may be large
        advance(1)
    everything = _Sums.of(sums.values())
    found = Agreement(
        len(inputs) * inputs.batch,
        inputs.description,
        everything.largest,
        everything.relative_error,
        outputs=tuple(OutputDifference(name, one.largest, one.relative_error) for name, one in sums.items()),
    )
    one, other = (class_scores([pair[side] for pair in firsts]) for side in (0, 1))
    if one is None or other is None:
        return found
    labels = inputs.labels.ravel() if inputs.labels is not None and inputs.labels.size == len(one) else None
    return replace(found, divergence=divergence(one, other), **class_agreement(one, other, labels))


@dataclass
class _Sums:
    """What the differences of an output add up from."""

    largest: float = 0.0
    difference: float = 0.0
    norm: float = 0.0

    def add(self, one: FloatArray, other: FloatArray) -> None:
        delta = np.abs(other.astype(np.float64) - one)
        self.largest = max(self.largest, float(delta.max(initial=0)))
        self.difference += float((delta**2).sum())
        self.norm += float((one.astype(np.float64) ** 2).sum())

    @property
    def relative_error(self) -> float:
        return float((self.difference / self.norm) ** 0.5) if self.norm else 0.0

    @classmethod
    def of(cls, parts: Collection[_Sums]) -> _Sums:
        largest = max((part.largest for part in parts), default=0.0)
        return cls(largest, sum(part.difference for part in parts), sum(part.norm for part in parts))

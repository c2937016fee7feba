"""How far the outputs of two networks differ, each in its own measure, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxlowrank.evaluate.differences import (
    JudgedDifference,
    JudgedSums,
    OutputDifference,
    OutputSums,
    relative_error_of,
)
from onnxlowrank.evaluate.figure_of_merit import Merit
from onnxlowrank.evaluate.intervals import Interval, bootstrap_interval
from onnxlowrank.evaluate.measures import Measure, measures_of
from onnxlowrank.graph.chance import random_nodes, with_seeds
from onnxlowrank.inputs.feeds import Inputs, joined
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.sessions import all_threads, open_session, running
from onnxlowrank.progress import Advance

_Inside = tuple[onnx.ModelProto, onnx.ModelProto]


@dataclass(frozen=True)
class Noise:
    """What a network that draws random numbers differs from itself by, run twice on the same inputs.

    Attributes:
        relative_error: ``|b - a| / |a|`` of the tensors it is judged by; None where it could not be compared.
        largest_difference: Of any of their values; None likewise.
        top1_agreement: Share of samples with the same largest class; None without class scores.
    """

    relative_error: float | None
    largest_difference: float | None
    top1_agreement: float | None


@dataclass(frozen=True)
class Agreement:
    """Two networks on the same inputs.

    Attributes:
        inputs: Number of samples compared.
        source: Where they come from.
        largest_difference: Largest absolute difference of any value the networks are judged by; None where nothing
            could be compared.
        relative_error: ``|b - a| / |a|`` over all of these, Frobenius norms; None likewise.
        error_interval: Of the relative error: 95 %, bootstrapped over the samples.
        top1_agreement: Share of samples with the same largest class; None without class scores.
        top1_interval: Of that share: 95 %, exact where a sample has one row of scores.
        divergence: Mean Kullback-Leibler divergence of the class probabilities, ``KL(a, b)`` in nats; None likewise.
        accuracy: Top-1 accuracy of either network; None without labels.
        drop_interval: Of what was lost of the classes: 95 %, paired.
        top5_agreement: Share of samples whose largest class is among the five largest of the second network; None where
            there are no more than five classes.
        top5_accuracy: Top-5 accuracy of either network; None likewise, and without labels.
        outputs: The outputs one by one.
        judged: What they are judged by.
        merit: What the user's metric makes of either network.
        noise: What the first network differs from itself by; None where it gives the same in every run.
        not_compared: Why nothing could be compared; empty where something was.
    """

    inputs: int
    source: str
    largest_difference: float | None
    relative_error: float | None
    error_interval: Interval | None = None
    top1_agreement: float | None = None
    top1_interval: Interval | None = None
    divergence: float | None = None
    accuracy: tuple[float, float] | None = None
    drop_interval: Interval | None = None
    top5_agreement: float | None = None
    top5_accuracy: tuple[float, float] | None = None
    outputs: tuple[OutputDifference, ...] = ()
    judged: tuple[JudgedDifference, ...] = ()
    merit: Merit | None = None
    noise: Noise | None = None
    not_compared: str = ""

    @property
    def drop(self) -> float:
        """What was lost: of the user's metric, or else points of accuracy, or without labels per cent of other classes.

        It is not a number where the outputs are no classes.
        """
        if self.merit is not None:
            return self.merit.before - self.merit.after
        if self.accuracy is not None:
            return 100 * (self.accuracy[0] - self.accuracy[1])
        return math.nan if self.top1_agreement is None else 100 * (1 - self.top1_agreement)

    @property
    def largest_drop(self) -> float:
        """The upper end of the interval of :attr:`drop`; not a number where there is none."""
        interval = self.drop_interval if self.merit is None else self.merit.drop_interval
        return math.nan if interval is None else interval[1]


def compare_outputs(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    inputs: Inputs,
    advance: Advance,
    measures: Sequence[Measure] | None = None,
    inside: _Inside | None = None,
    at_once: int = 1,
) -> Agreement:
    """Run both networks over the inputs and compare their outputs.

    Random numbers that the networks draw are independent, and the same whenever the same networks are compared.

    Args:
        before: The first network.
        after: The second one.
        inputs: Sample inputs of both.
        advance: Told of every feed.
        measures: How outputs are measured; None asks the first network.
        inside: Both networks with the measured tensors that are no outputs as outputs; without, these are not compared.
        at_once: How many feeds may be joined along axis 0, as the networks give the same for them, joined likewise.

    Raises:
        ModelError: If an output of the second network is not finite where the first one's is.
    """
    if measures is None:
        measures = measures_of(before, inputs.labels is not None)
    at_once = at_once if inside is None and inputs.batch == 1 else 1
    found = _compared(before, after, inputs, advance, measures, inside, at_once)
    if not random_nodes(before):
        return found
    alone = None if inside is None else (inside[0], inside[0])
    itself = _compared(before, before, inputs, lambda amount: None, measures, alone, at_once)
    noise = Noise(itself.relative_error, itself.largest_difference, itself.top1_agreement)
    return replace(found, noise=noise)


def _compared(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    inputs: Inputs,
    advance: Advance,
    measures: Sequence[Measure],
    inside: _Inside | None,
    at_once: int,
) -> Agreement:
    """Return how far the outputs of two networks differ, the noise of either included."""
    pairs = [_Pair(before, after)] + ([] if inside is None else [_Pair(*inside)])
    outputs = {name: OutputSums(name) for name in pairs[0].names}
    judged = {one.tensor: JudgedSums(one, inputs.batch) for one in measures}
    for found in _run(pairs, inputs, at_once):
        for name, (one, other) in found.items():
            if name in outputs:
                outputs[name].add(one, other, inputs.description)
            if name in judged:
                judged[name].add(one, other)
        advance(1)
    compared = [one for one in judged.values() if one.parts]
    differences = tuple(one.result() for one in judged.values())
    squares = np.concatenate([one.squares for one in compared]) if compared else np.zeros((0, 2))
    return Agreement(
        len(inputs) * inputs.batch,
        inputs.description,
        max((one.largest for one in compared), default=None),
        relative_error_of(squares) if compared else None,
        error_interval=_error_interval([one.squares for one in compared]),
        outputs=tuple(one.result() for one in outputs.values()),
        judged=differences,
        not_compared="" if compared else _why_nothing(judged, list(outputs)),
        **_classes(compared, inputs),
    )


def _classes(compared: Sequence[JudgedSums], inputs: Inputs) -> dict[str, Any]:
    """Return what there is to say of the first class scores."""
    scores = next((one.classes for one in compared if one.classes is not None), None)
    return {} if scores is None else scores.agreement(None if inputs.labels is None else inputs.labels.ravel())


def _why_nothing(judged: dict[str, JudgedSums], outputs: list[str]) -> str:
    if judged:
        return f"the second network has no tensor {', '.join(judged)}, which the outputs are judged by"
    return f"no tensor of real numbers decides the outputs {', '.join(outputs)}"


def _run(pairs: Sequence[_Pair], inputs: Inputs, at_once: int) -> Iterator[dict[str, tuple[object, object]]]:
    """Yield the outputs of all pairs, one feed after the other."""
    for _, group in groupby(enumerate(inputs), lambda numbered: (numbered[0] // at_once, _shapes(numbered[1]))):
        feeds = [one for _, one in group]
        with running(feeds[0]):
            together = [pair.run(feeds[0] if len(feeds) == 1 else joined(feeds)) for pair in pairs]
        for index in range(len(feeds)):
            found = {name: values for one in together for name, values in one.items()}
            yield found if len(feeds) == 1 else {name: _part(*both, index) for name, both in found.items()}


def _shapes(feeds: Feeds) -> list[tuple[int, ...]]:
    return [array.shape for array in feeds.values()]


def _part(one: Any, other: Any, index: int) -> tuple[object, object]:
    return one[index : index + 1], other[index : index + 1]


class _Pair:
    """The same outputs of two networks."""

    def __init__(self, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
        # onnxruntime draws the same numbers in all sessions of a process, if nodes stand at the same place of a graph
        drawn = (with_seeds(model, seed) for seed, model in enumerate((before, after)))
        self._sessions = [open_session(model, all_threads()) for model in drawn]
        self.names = [value.name for value in self._sessions[0].get_outputs()]
        self._wanted = [{value.name for value in session.get_inputs()} for session in self._sessions]

    def run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, tuple[object, object]]:
        one, other = (
            session.run(self.names, {name: value for name, value in feeds.items() if name in wanted})
            for session, wanted in zip(self._sessions, self._wanted, strict=True)
        )
        return {name: pair for name, *pair in zip(self.names, one, other, strict=True)}  # type: ignore[misc]


def _error_interval(parts: Sequence[NDArray[np.float64]]) -> Interval | None:
    """Return the interval of the relative error over all judged tensors, where they have the same samples."""
    if not parts or len({len(one) for one in parts}) > 1 or len(parts[0]) < 2:
        return None
    together = np.sum(parts, axis=0)
    return bootstrap_interval(lambda chosen: relative_error_of(together[chosen]), len(together))

"""How far the outputs of two networks differ, and, for classifiers, how often they agree and are right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxlowrank.calibrate.feeds import Inputs
from onnxlowrank.errors import ModelError
from onnxlowrank.progress import Advance
from onnxlowrank.runtime import all_threads, open_session, running


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
    """

    inputs: int
    source: str
    largest_difference: float
    relative_error: float
    top1_agreement: float | None = None
    divergence: float | None = None
    accuracy: tuple[float, float] | None = None

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
    largest = difference = norm = 0.0
    scores: tuple[list[NDArray[np.floating]], list[NDArray[np.floating]]] = ([], [])
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
            delta = np.abs(other.astype(np.float64) - one)
            largest = max(largest, float(delta.max(initial=0)))
            difference += float((delta**2).sum())
            norm += float((one.astype(np.float64) ** 2).sum())
        if is_classifier(a[0]):
            scores[0].append(a[0])
            scores[1].append(b[0])
        advance(1)
    relative = (difference / norm) ** 0.5 if norm else 0.0
    count = len(inputs) * inputs.batch
    if len({rows.shape[1] for rows in scores[0]}) != 1:  # none, or a width that changes: no classes
        return Agreement(count, inputs.description, largest, relative)
    one, other = (np.concatenate(part) for part in scores)
    top = one.argmax(axis=1), other.argmax(axis=1)
    labels = inputs.labels.ravel() if inputs.labels is not None and inputs.labels.size == len(one) else None
    return Agreement(
        count,
        inputs.description,
        largest,
        relative,
        top1_agreement=float((top[0] == top[1]).mean()),
        divergence=divergence(one, other),
        accuracy=None if labels is None else (float((top[0] == labels).mean()), float((top[1] == labels).mean())),
    )


def is_classifier(output: object) -> bool:
    """Return whether an output is a row of scores of two or more classes for every sample."""
    return isinstance(output, np.ndarray) and output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind == "f"


def divergence(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Return the mean ``KL(one, other)`` in nats of scores ``[N, classes]``, logits or probabilities."""
    p, q = (_log_probabilities(scores.astype(np.float64)) for scores in (one, other))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log probabilities of scores that are logits, or probabilities already."""
    if scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        return np.log(np.maximum(scores, 1e-12))
    shifted = scores - scores.max(axis=1, keepdims=True)
    logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs

"""Class scores: which outputs are some, and how far those of two networks diverge, agree and are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.graph.layer import FloatArray

_TOP = 5


def class_scores(firsts: Sequence[object]) -> FloatArray | None:
    """Return the scores ``[N, classes]`` in the first outputs of a classifier, or None of any other network's."""
    scores = [one for one in firsts if is_scores(one)]
    if len(scores) < len(firsts) or len({one.shape[1] for one in scores}) != 1:
        return None
    return np.concatenate(scores)


def is_scores(output: object) -> TypeGuard[FloatArray]:
    """Return whether an output is a row of scores of two or more classes for every sample."""
    return isinstance(output, np.ndarray) and output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind == "f"


def divergence(one: NDArray[np.floating], other: NDArray[np.floating], temperature: float = 1.0) -> float:
    """Return the mean ``KL(one, other)`` in nats of scores ``[N, classes]``, logits or probabilities.

    Args:
        one: Scores.
        other: Likewise.
        temperature: Logits are divided by it; the divergence then falls with its square.
    """
    p, q = (_tempered(scores, temperature) for scores in (one, other))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def confidence(scores: NDArray[np.floating], temperature: float = 1.0) -> float:
    """Return the mean probability of the most probable class, of scores ``[N, classes]``."""
    return float(np.exp(_tempered(scores, temperature).max(axis=1)).mean())


def _tempered(scores: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    return _log_probabilities(_log_probabilities(scores.astype(np.float64)) / temperature)


def _log_probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log probabilities of scores that are logits, or probabilities already."""
    if scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        return np.log(np.maximum(scores, 1e-12))
    shifted = scores - scores.max(axis=1, keepdims=True)
    logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def class_agreement(one: FloatArray, other: FloatArray, labels: NDArray[np.int64] | None) -> dict[str, Any]:
    """Return how often the largest classes of two networks agree with each other, and with the labels."""
    first, its_first = one.argmax(axis=1), other.argmax(axis=1)
    found: dict[str, Any] = {"top1_agreement": float((first == its_first).mean())}
    if labels is not None:
        found["accuracy"] = float((first == labels).mean()), float((its_first == labels).mean())
    if one.shape[1] > _TOP:
        found["top5_agreement"] = _among_top(other, first)
        if labels is not None:
            found["top5_accuracy"] = _among_top(one, labels), _among_top(other, labels)
    return found


def _among_top(scores: FloatArray, classes: NDArray[np.integer]) -> float:
    """Return the share of rows in which a class is among the five of the largest scores."""
    top = np.argpartition(-scores, _TOP - 1, axis=1)[:, :_TOP]
    return float((top == classes[:, None]).any(axis=1).mean())

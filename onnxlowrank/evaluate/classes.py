"""Class scores: which outputs are some, and how far those of two networks diverge, agree and are right."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.evaluate.intervals import bootstrap_interval, paired_interval, share_interval
from onnxlowrank.graph.layer import FloatArray

_TOP = 5


def class_rows(scores: NDArray[np.generic], axis: int) -> FloatArray:
    """Return class scores with their classes along ``axis`` as rows ``[n, classes]``."""
    moved: FloatArray = np.moveaxis(np.asarray(scores), axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def divergence(one: NDArray[np.floating], other: NDArray[np.floating], temperature: float = 1.0) -> float:
    """Return the mean ``KL(one, other)`` in nats of scores ``[N, classes]``, logits or probabilities.

    Args:
        one: Scores.
        other: Likewise.
        temperature: Logits are divided by it; the divergence then falls with its square.
    """
    return float(row_divergence(one, other, temperature).mean())


def row_divergence(
    one: NDArray[np.floating], other: NDArray[np.floating], temperature: float = 1.0
) -> NDArray[np.float64]:
    """Return ``KL(one, other)`` of every row, as :func:`divergence` averages it."""
    p, q = (_tempered(scores, temperature) for scores in (one, other))
    rows: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=1)
    return rows


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


class ClassSums:
    """Class scores of two networks, compared a feed at a time.

    Scores ``[N, classes]`` are one row a sample; of others, e.g. of pixels, a sample has as many as positions.
    """

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._divergence: list[NDArray[np.float64]] = []
        self._classes: list[NDArray[np.intp]] = []
        self._same: list[NDArray[np.float64]] = []
        self._tops: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
        self._dense = False

    def add(self, one: NDArray[np.generic], other: NDArray[np.generic]) -> None:
        """Take in the scores of one feed in either network."""
        a, b = class_rows(one, self._axis), class_rows(other, self._axis)
        if not a.size:
            return
        first, its_first = a.argmax(axis=1), b.argmax(axis=1)
        same = first == its_first
        if one.ndim == 2:
            self._classes.append(np.stack([first, its_first], axis=1))
            self._same.append(same.astype(float))
            if a.shape[1] > _TOP:
                self._tops.append((_top(a), _top(b)))
        else:
            self._dense = True
            self._same.append(same.reshape(len(one), -1).mean(axis=1))
        self._divergence.append(row_divergence(a, b))

    @property
    def divergence(self) -> float:
        """Mean Kullback-Leibler divergence in nats."""
        return float(np.concatenate(self._divergence).mean()) if self._divergence else 0.0

    def agreement(self, labels: NDArray[np.int64] | None) -> dict[str, Any]:
        """Return how often the largest classes agree with each other and with the labels, as Agreement has it."""
        if not self._same:
            return {}
        same = np.concatenate(self._same)
        found: dict[str, Any] = {"top1_agreement": float(same.mean()), "divergence": self.divergence}
        if self._dense:
            if len(same) > 1:
                low, high = bootstrap_interval(lambda chosen: same[chosen].mean(), len(same))
                found |= {"top1_interval": (low, high), "drop_interval": (100 * (1 - high), 100 * (1 - low))}
            return found
        low, high = share_interval(int(same.sum()), len(same))
        found |= {"top1_interval": (low, high), "drop_interval": (100 * (1 - high), 100 * (1 - low))}
        first, its_first = np.concatenate(self._classes).T
        known = labels is not None and labels.size == len(first)
        if labels is not None and known:
            right, its_right = first == labels, its_first == labels
            found["accuracy"] = float(right.mean()), float(its_right.mean())
            lost, won = int((right & ~its_right).sum()), int((its_right & ~right).sum())
            low, high = paired_interval(lost, won, len(first))
            found["drop_interval"] = 100 * low, 100 * high
        if len(self._tops) == len(self._classes):
            top, its_top = (np.concatenate([pair[side] for pair in self._tops]) for side in (0, 1))
            found["top5_agreement"] = float((its_top == first[:, None]).any(axis=1).mean())
            if labels is not None and known:
                both = (float((one == labels[:, None]).any(axis=1).mean()) for one in (top, its_top))
                found["top5_accuracy"] = tuple(both)
        return found


def _top(scores: FloatArray) -> NDArray[np.intp]:
    """Return the five classes of the largest scores, ``[n, 5]``."""
    return np.argpartition(-scores, _TOP - 1, axis=1)[:, :_TOP]

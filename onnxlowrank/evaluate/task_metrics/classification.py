"""``top1`` and ``top5``: how often the class, of the label or else of the original, has (one of) the largest scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from onnxlowrank.evaluate.task_metrics.base import Array, Given, Outputs, Score, average, is_float


def top1(given: Given) -> Callable[[Outputs], Score]:
    """Judge class scores ``[N, classes]`` by their largest."""
    return _top(given, "top1", 1)


def top5(given: Given) -> Callable[[Outputs], Score]:
    """Judge class scores ``[N, classes]``, of more than five classes, by their five largest."""
    return _top(given, "top5", 5)


def _top(given: Given, metric: str, k: int) -> Callable[[Outputs], Score]:
    name = given.only(
        metric,
        f"class scores [N, classes] of more than {k} class{'es' * (k > 1)}",
        lambda array: is_float(array) and array.ndim > 1 and _is_flat(array) and array.shape[1] > k,
    )
    rows = [_rows(one[name]) for one in given.original]
    truth = [one.argmax(axis=1) for one in rows]
    labels = given.labels
    if labels is not None and all(len(one) == labels.shape[1] for one in rows):
        truth = list(labels)

    def score(outputs: Outputs) -> Score:
        right = [_is_among(_rows(one[name]), classes, k) for one, classes in zip(outputs, truth, strict=True)]
        return Score(average([one.astype(float) for one in right]), np.concatenate(right))

    return score


def _is_flat(array: Array) -> bool:
    return math.prod(array.shape[2:]) == 1


def _rows(scores: Array) -> Array:
    return scores.reshape(scores.shape[:2])


def _is_among(scores: Array, classes: Array, k: int) -> Array:
    """Return for every row whether its class is among the ``k`` largest scores; of equal ones the first are."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    among: Array = (order == classes[:, None]).any(axis=1)
    return among

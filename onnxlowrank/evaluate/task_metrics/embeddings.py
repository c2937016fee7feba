"""``cosine``: mean cosine of the angle between what the original network gives for a sample and what this one does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxlowrank.evaluate.task_metrics.base import Array, Floats, Given, Outputs, Score, average, is_float, same_shape


def cosine(given: Given) -> Callable[[Outputs], Score]:
    """Judge embeddings ``[N, ...]``, all values of a sample being one vector, by their direction; in per cent."""
    name = given.only("cosine", "embeddings [N, ...]", lambda array: is_float(array) and array.ndim > 1)

    def score(outputs: Outputs) -> Score:
        return Score(
            average(
                [
                    _cosines(before[name], same_shape(before[name], one[name], name))
                    for before, one in zip(given.original, outputs, strict=True)
                ]
            )
        )

    return score


def _cosines(one: Array, other: Array) -> Floats:
    """Return the cosine of every sample; of two zeros it is 1, of one 0."""
    a, b = (array.reshape(len(array), -1).astype(np.float64) for array in (one, other))
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    product = lengths[0] * lengths[1]
    both = (lengths[0] == 0) & (lengths[1] == 0)
    return np.where(both, 1.0, (a * b).sum(axis=1) / np.where(product > 0, product, 1.0))

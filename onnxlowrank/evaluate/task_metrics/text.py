"""``text``: 1 less the normalised edit distance of greedily decoded lines to those of the original network.

Greedy CTC decoding (Graves et al. 2006): the largest class of every step, repetitions taken for one, blanks left out.
The edit distance (Levenshtein 1966) is divided by the length of the longer line; lines are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from onnxlowrank.evaluate.task_metrics.base import Array, Given, Outputs, Score, average, is_float

Line = Sequence[int]


def text(given: Given) -> Callable[[Outputs], Score]:
    """Judge lines of text.

    Read are scores ``[N, T, classes]`` or, where the second axis and not the first has the size of the batch,
    ``[T, N, classes]``, and classes ``[N, T]`` as whole numbers. The blank is the first class or the last one,
    whichever the original gives more often.
    """
    name = given.only(
        "text",
        "CTC scores [N, T, classes] or [T, N, classes], or classes [N, T] as whole numbers",
        lambda array: (array.ndim == 3 and is_float(array)) or (array.ndim == 2 and array.dtype.kind in "iu"),
    )
    first = given.original[0][name]
    steps_first = first.ndim == 3 and first.shape[1] == given.batch != first.shape[0]

    def best(scores: Array) -> Array:
        """Return the class of every step, ``[N, T]``."""
        classes = scores.argmax(axis=2) if scores.ndim == 3 else scores
        return classes.T if steps_first else classes

    original = [best(one[name]) for one in given.original]
    last = first.shape[2] - 1 if first.ndim == 3 else max(int(one.max(initial=0)) for one in original)
    blank = max((0, last), key=lambda one: sum(int((classes == one).sum()) for classes in original))
    truth = [[decoded(row, blank) for row in classes] for classes in original]

    def score(outputs: Outputs) -> Score:
        found = [[decoded(row, blank) for row in best(one[name])] for one in outputs]
        return Score(
            average(
                [
                    np.array([similarity(*pair) for pair in zip(lines, its, strict=True)])
                    for lines, its in zip(truth, found, strict=True)
                ]
            )
        )

    return score


def decoded(classes: Array, blank: int) -> Line:
    """Return the line of the classes of all steps."""
    return [one for one, _ in groupby(classes.tolist()) if one != blank]


def similarity(one: Line, other: Line) -> float:
    """Return 1 less the edit distance over the length of the longer line; 1 for two empty ones."""
    longer = max(len(one), len(other))
    return 1 - edit_distance(one, other) / longer if longer else 1.0


def edit_distance(one: Line, other: Line) -> int:
    """Return how many insertions, deletions and replacements make one line of the other."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]

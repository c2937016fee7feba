"""``boxes``: mean average precision of detections against those of the original network.

The truth is what the original shows: its detections of a score of 0.25 and more, see :mod:`.detections` for how they
are read. Precision is averaged over recall, interpolated at all points (Everingham et al. 2010), then over overlaps of
0.50, 0.55, ..., 0.95 (Lin et al. 2014), then over the classes that the original shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.errors import OptionError
from onnxlowrank.evaluate.task_metrics.base import Floats, Given, Outputs, Score
from onnxlowrank.evaluate.task_metrics.detections import SHOWN, Detections, overlaps, reader_of

LEVELS = np.linspace(0.5, 0.95, 10)
"""Overlaps from which on a detection counts as right."""


@dataclass(eq=False)
class _Class:
    """Detections of one class: an entry an input.

    Attributes:
        scores: ``[n]``.
        right: ``[n, levels]``.
        truths: How many there are to be found.
    """

    scores: list[Floats] = field(default_factory=list)
    right: list[NDArray[np.bool_]] = field(default_factory=list)
    truths: list[int] = field(default_factory=list)


def boxes(given: Given) -> Callable[[Outputs], Score]:
    """Judge detections by their mean average precision, in per cent."""
    read = reader_of(given)
    truth = [[_shown(one) for one in read(outputs)] for outputs in given.original]
    known = np.unique(np.concatenate([one.classes for samples in truth for one in samples]))
    if not known.size:
        raise OptionError(
            f"--metric boxes: the original network finds nothing of a score of {SHOWN} and more; give inputs that "
            "show what it detects"
        )
    every = np.concatenate([one.boxes for samples in truth for one in samples])
    if np.median((every[:, 2:] - every[:, :2]).min(axis=1)) <= 0:
        raise OptionError(
            "--metric boxes: most boxes of the original network have no area: what it gives has yet to be decoded; "
            "name a function of your own as module:function"
        )

    def score(outputs: Outputs) -> Score:
        found = [read(one) for one in outputs]
        tables = [_table(one, truth, found) for one in known]

        def of(chosen: NDArray[np.intp]) -> float:
            there = [table for table in tables if any(table.truths[i] for i in chosen)]
            return 100 * float(np.mean([_average(table, chosen) for table in there])) if there else 100.0

        return Score(of)

    return score


def _shown(found: Detections) -> Detections:
    shown = found.scores >= SHOWN
    return Detections(found.boxes[shown], found.scores[shown], found.classes[shown])


def _table(number: int, truth: Sequence[Sequence[Detections]], found: Sequence[Sequence[Detections]]) -> _Class:
    """Return which detections of a class are right."""
    table = _Class()
    for there, its in zip(truth, found, strict=True):
        scores, right, count = [np.zeros(0)], [np.zeros((0, len(LEVELS)), bool)], 0
        for wanted, given in zip(there, its, strict=True):
            mine, own = wanted.boxes[wanted.classes == number], given.classes == number
            scores.append(given.scores[own])
            right.append(matched(overlaps(given.boxes[own], mine)))
            count += len(mine)
        table.scores.append(np.concatenate(scores))
        table.right.append(np.concatenate(right))
        table.truths.append(count)
    return table


def matched(overlap: Floats) -> NDArray[np.bool_]:
    """Return which detections find a truth, ``[n, levels]``: the best first, each the nearest that is left.

    Args:
        overlap: Of detections, the best first, with truths, ``[n, m]``.
    """
    found = np.zeros((len(overlap), len(LEVELS)), bool)
    for level, least in enumerate(LEVELS):
        left = overlap.copy()
        for i in range(len(left)):
            if left.shape[1] and left[i].max() >= least:
                found[i, level] = True
                left[:, left[i].argmax()] = -1
    return found


def _average(table: _Class, chosen: NDArray[np.intp]) -> float:
    """Return the average precision of one class over chosen inputs and all levels."""
    scores = np.concatenate([table.scores[i] for i in chosen])
    right = np.concatenate([table.right[i] for i in chosen])[np.argsort(-scores, kind="stable")]
    truths = sum(table.truths[i] for i in chosen)
    return float(average_precision(right, truths).mean())


def average_precision(right: NDArray[np.bool_], truths: int) -> Floats:
    """Return the area below precision over recall at every level.

    Args:
        right: Which detections, the best first, are right, ``[n, levels]``.
        truths: How many there are to be found, > 0.
    """
    hits = np.cumsum(right, axis=0)
    precision = hits / np.arange(1, len(right) + 1)[:, None]
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    area: Floats = (envelope * right).sum(axis=0) / truths
    return area

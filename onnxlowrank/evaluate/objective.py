"""What a network loses when its judged tensors move: one number, to plan by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import scipy
from numpy.typing import NDArray

from onnxlowrank.evaluate.classes import class_rows, confidence, divergence
from onnxlowrank.evaluate.measures import CLASSES, Measure
from onnxlowrank.evaluate.variance import Variance
from onnxlowrank.graph.layer import FloatArray

_CONFIDENCE = 0.8
"""Mean probability of the most probable class above which the temperature is raised."""
_HOTTEST = 1e3

_Arrays = Sequence[NDArray[np.generic]]


class Objective:
    """The judged tensors of a network, with which those of its approximations are compared.

    The loss of class scores is their mean Kullback-Leibler divergence. On inputs a network was trained with it is so
    sure of its classes that only a few would count: the divergence is taken at a temperature at which it is less sure.
    The loss of values is their squared error over their variance.
    """

    def __init__(self, measures: Sequence[Measure], outputs: Sequence[_Arrays]) -> None:
        """Take in what the network gives.

        Args:
            measures: Of its judged tensors.
            outputs: For every feed, those tensors, in the order of their measures.
        """
        self._terms: list[_Term] = [
            _term(measure, [one[index] for one in outputs]) for index, measure in enumerate(measures)
        ]

    def loss(self, outputs: Sequence[_Arrays]) -> float:
        """Return how far the judged tensors of an approximation are from those of the network, for the same feeds."""
        return sum(term.loss([one[index] for one in outputs]) for index, term in enumerate(self._terms))


class _Term(Protocol):
    def loss(self, after: _Arrays) -> float: ...


def _term(measure: Measure, before: _Arrays) -> _Term:
    if measure.kind == CLASSES:
        rows = [class_rows(array, measure.axis) for array in before]
        if len({one.shape[1] for one in rows}) == 1:
            return _Classes(np.concatenate(rows), measure.axis)
    return _Values(before)


class _Classes:
    """Class scores of all feeds, and the temperature they are compared at."""

    def __init__(self, scores: FloatArray, axis: int) -> None:
        self._scores, self._axis = scores, axis
        self._temperature = temperature_of(scores)

    def loss(self, after: _Arrays) -> float:
        scores = np.concatenate([class_rows(array, self._axis) for array in after])
        return self._temperature**2 * divergence(self._scores, scores, self._temperature)


class _Values:
    """A tensor of real numbers for every feed, and its variance."""

    def __init__(self, before: _Arrays) -> None:
        self._before = before
        variance = Variance()
        for array in before:
            variance.add(np.asarray(array))
        self._scale = variance.sum

    def loss(self, after: _Arrays) -> float:
        difference = 0.0
        for array, changed in zip(self._before, after, strict=True):
            known = np.isfinite(array)
            values = array[known].astype(np.float64)
            difference += float(((changed[known].astype(np.float64) - values) ** 2).sum())
        return difference / self._scale if self._scale else 0.0


def temperature_of(scores: FloatArray) -> float:
    """Return the temperature at which a network is no surer of its classes than ``_CONFIDENCE``; 1 where it is not."""
    if confidence(scores) <= _CONFIDENCE or confidence(scores, _HOTTEST) > _CONFIDENCE:
        return 1.0
    return float(scipy.optimize.brentq(lambda one: confidence(scores, one) - _CONFIDENCE, 1.0, _HOTTEST, rtol=1e-3))

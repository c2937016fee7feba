"""What training is to bring near to the original, read off the two networks and what the original gives for samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxlowrank.errors import UnsupportedModelError
from onnxlowrank.evaluate.classes import class_rows
from onnxlowrank.evaluate.measures import CLASSES, Measure
from onnxlowrank.evaluate.objective import temperature_of
from onnxlowrank.evaluate.variance import Variance
from onnxlowrank.graph.index import attributes, is_standard
from onnxlowrank.graph.walk import needed, opset
from onnxlowrank.tune.objective import Term
from onnxlowrank.tune.quantised import source_of
from onnxlowrank.tune.weights import Trained

_MOST_HINTS, _MOST_LOOKED_AT = 3, 6
_SAME, _FOREIGN = 1e-4, 0.8
"""Of tensors of one name in both networks: relative errors below and above which they are no hints."""
_COOLEST = 2.0
"""Temperature that class scores are compared at, at least: so the ranks of the wrong classes count too."""

Arrays = Sequence[NDArray[np.generic]]


def shared_measures(measures: Sequence[Measure], optimised: ModelProto) -> list[Measure]:
    """Return those measures whose tensor the optimised network has.

    Raises:
        UnsupportedModelError: There is none.
    """
    written = {name for node in optimised.graph.node for name in node.output}
    found = [one for one in measures if one.tensor in written]
    if not found:
        raise UnsupportedModelError(
            "no tensor of real numbers that decides the outputs is in both networks, so there is nothing to learn "
            "from; was OPTIMISED made of ORIGINAL?"
        )
    return found


def judged_pair(measure: Measure, original: ModelProto, optimised: ModelProto) -> tuple[str, str]:
    """Return what to compare in the optimised network and in the original: in place of a Softmax, what it is of."""
    writers = [
        next((node for node in model.graph.node if measure.tensor in node.output), None)
        for model in (optimised, original)
    ]
    same_axis = measure.kind == CLASSES and all(
        node is not None
        and is_standard(node, "Softmax")
        and attributes(node).get("axis", -1 if opset(original) >= 13 else 1) in (measure.axis, -1)
        for node in writers
    )
    if same_axis:
        mine, its = (node.input[0] for node in writers if node is not None)
        return mine, its
    return measure.tensor, measure.tensor


def hint_pairs(
    original: ModelProto, optimised: ModelProto, trained: Trained, judged: Sequence[str]
) -> list[tuple[str, str]]:
    """Return the tensors in front of layers that both networks have and training moves, the last ones first.

    With each is its name in the original, which it has lost where it was quantised.
    """
    known = {name for node in original.graph.node for name in node.output}
    moved = set(trained.weights)
    found: dict[str, str] = {}
    readers = set(trained.nodes)
    nodes = needed(optimised.graph.node, judged)
    writers = {name: node for node in nodes for name in node.output}
    for node in nodes:
        key = node.name or node.output[0]
        if key in readers and node.input[0] in moved:
            found[node.input[0]] = source_of(node.input[0], writers)
        if moved.intersection(node.input):
            moved.update(node.output)
    pairs = [pair for pair in reversed(found.items()) if pair[1] in known and pair[1] not in judged]
    return pairs[:_MOST_LOOKED_AT]


def judged_term(measure: Measure, pair: tuple[str, str], reference: Arrays) -> Term:
    """Return how far a judged tensor is from the original's, as :mod:`onnxlowrank.evaluate.objective` has it.

    Args:
        measure: Of the tensor.
        pair: Its name in either network.
        reference: What it is in the original, for sample inputs.
    """
    if measure.kind != CLASSES:
        return Term(*pair, scale=_scale(reference))
    rows = [class_rows(array, measure.axis) for array in reference]
    some = np.concatenate(rows) if len({one.shape[1] for one in rows}) == 1 else rows[0]
    probable = bool(some.min() >= 0 and np.allclose(some.sum(axis=1), 1, atol=1e-3))
    return Term(*pair, axis=measure.axis, temperature=max(temperature_of(some), _COOLEST), are_probabilities=probable)


def hint_terms(
    pairs: Sequence[tuple[str, str]], reference: Sequence[Arrays], mine: Sequence[Arrays]
) -> tuple[Term, ...]:
    """Return the hints: tensors that differ in the two networks, but not entirely."""
    found = []
    for pair, one, other in zip(pairs, reference, mine, strict=True):
        if any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
            continue
        before, after = (np.concatenate([array.ravel() for array in its]).astype(np.float64) for its in (one, other))
        norm, error = np.linalg.norm(before), np.linalg.norm(after - before)
        if _SAME * norm < error < _FOREIGN * norm:
            found.append(Term(*pair, scale=_scale(one)))
    return tuple(found[:_MOST_HINTS])


def _scale(reference: Arrays) -> float:
    """Return the mean squared distance of entries from the means of their maps; 1 where they never vary."""
    variance = Variance()
    for array in reference:
        variance.add(array)
    return variance.sum / sum(array.size for array in reference) or 1.0

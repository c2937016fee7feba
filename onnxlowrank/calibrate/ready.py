"""A network as its layers are found in it: in float32, normalised, the layers inside other operators in the open."""

from __future__ import annotations

import logging

import numpy as np
import onnx

from onnxlowrank.errors import OnnxLowRankError
from onnxlowrank.graph.branches import ELSE, THEN, branches_with_layers, unfold_branches, unfolded_branches
from onnxlowrank.graph.index import Index
from onnxlowrank.graph.normalise import normalise, prepare
from onnxlowrank.graph.probe import expose
from onnxlowrank.graph.recurrent import unfold_recurrent
from onnxlowrank.graph.widen import is_half, widened
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.sessions import all_threads, open_session, running

_LOG = logging.getLogger(__name__)


def ready_network(original: onnx.ModelProto, inputs: Inputs) -> onnx.ModelProto:
    """Return a network whose layers can be found: see :mod:`onnxlowrank.graph.branches` and its neighbours.

    Args:
        original: As it was given.
        inputs: Sample inputs: which branches of Ifs they take.
    """
    model = widened(original) if is_half(original) else original
    return unfold_recurrent(normalise(unfold_taken_branches(model, inputs)))


def branch_notes(model: onnx.ModelProto) -> list[str]:
    """Return a note on the Ifs whose layers are in the open: only one of their branches is made faster."""
    found = unfolded_branches(model)
    some = ", ".join(f"the {branch.removesuffix('_branch')} branch of '{name}'" for name, branch in found.items())
    note = f"layers inside {some} were looked at, which all calibration inputs take; the other branch stays as it is"
    return [note] if found else []


def unfold_taken_branches(model: onnx.ModelProto, inputs: Inputs) -> onnx.ModelProto:
    """Return a network in which the branches with layers that all inputs take are computed before their Ifs."""
    if not branches_with_layers(model):
        return model
    given = prepare(model)
    unfolded, undecided = given, set[str]()
    while found := [node for node in branches_with_layers(unfolded) if node.name not in undecided]:
        taken = _taken(unfolded, {node.name: node.input[0] for node in found}, inputs)
        undecided |= {node.name for node in found}
        unfolded = unfold_branches(unfolded, taken)
    if unfolded is given:
        return model
    if not _are_equal(given, unfolded, inputs):
        _LOG.warning("layers inside If stay as they are: onnxruntime computes something else with them outside")
        return model
    return unfolded


def _taken(model: onnx.ModelProto, conditions: dict[str, str], inputs: Inputs) -> dict[str, str]:
    """Return which branch all inputs take, by the names of the Ifs; those are left out where they do not agree."""
    constants = Index.of(model).constants
    fed = {item.name for item in model.graph.input} - constants.keys()
    computed = sorted(set(conditions.values()) - fed - constants.keys())
    seen: dict[str, set[bool]] = {tensor: set() for tensor in conditions.values()}
    for tensor in seen.keys() & constants.keys():
        seen[tensor].add(bool(np.all(onnx.numpy_helper.to_array(constants[tensor]))))
    session = open_session(expose(model, computed), all_threads()) if computed else None
    asked = set() if session is None else {item.name for item in session.get_inputs()}
    for feeds in inputs:
        for tensor in seen.keys() & fed:
            seen[tensor].add(bool(np.all(feeds[tensor])))
        if session is not None:
            with running(feeds):
                values = session.run(computed, {name: value for name, value in feeds.items() if name in asked})
            for tensor, value in zip(computed, values, strict=True):
                seen[tensor].add(bool(np.all(value)))
    ways = {name: seen[tensor] for name, tensor in conditions.items()}
    for name in (name for name, way in ways.items() if len(way) > 1):
        _LOG.warning("layers inside If '%s' stay as they are: the calibration inputs take both of its branches", name)
    return {name: THEN if True in way else ELSE for name, way in ways.items() if len(way) == 1}


def _are_equal(one: onnx.ModelProto, other: onnx.ModelProto, inputs: Inputs) -> bool:
    """Return whether onnxruntime runs both of two networks, and they compute the same on the first input."""
    feeds, outputs = inputs[0], []
    for model in (one, other):
        try:
            session = open_session(model, all_threads())
            with running(feeds):
                outputs.append(session.run(None, dict(feeds)))
        except OnnxLowRankError as error:
            _LOG.info("%s", error)
            return False
    numbers = [(a, b) for a, b in zip(*outputs, strict=True) if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    return all(a.shape == b.shape and np.allclose(a, b, 1e-3, 1e-4, equal_nan=True) for a, b in numbers)

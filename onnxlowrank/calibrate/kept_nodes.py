"""The work of the nodes that are no layers, counted on a run of the network: attention, nodes in If and Loop ...

A graph inside a node is counted with the shapes it meets in its first iteration, as often as it goes round; of the
branches of an If the dearer one counts; where one is computed before the If, that one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx.inliner
from onnx import ModelProto, NodeProto

from onnxlowrank.calibrate.bodies import Body, Read, bodies, has_bodies, with_trip_counts
from onnxlowrank.calibrate.shapes import tensor_values
from onnxlowrank.errors import OnnxLowRankError
from onnxlowrank.graph.branches import unfolded_branch
from onnxlowrank.graph.count import Sizes, arithmetic, is_unknown
from onnxlowrank.graph.index import Index, is_standard
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.recurrent import reads_blocks
from onnxlowrank.graph.refusals import refusal
from onnxlowrank.graph.walk import named, names, reads, subgraphs, unique, walk
from onnxlowrank.inputs.feeds import Inputs

_NOT_TAKEN = ", a branch that no calibration input takes"


@dataclass(frozen=True)
class KeptNode:
    """A node that computes convolutions or matrix products, and is no layer.

    Attributes:
        name: Of the node.
        op: Its operator.
        reason: Why it is no layer.
        macs: Multiply-accumulates for one sample.
        parameters: Its weights and biases, without those that another of these nodes has already.
        is_conv: Whether it is a convolution of some kind.
        place: Name of the node of the main graph that it is, or is inside of.
        is_counted: Whether ``macs`` is all of its work; otherwise there is more.
    """

    name: str
    op: str
    reason: str
    macs: int
    parameters: int
    is_conv: bool
    place: str
    is_counted: bool


def kept_nodes(model: ModelProto, layers: Sequence[Layer], inputs: Inputs) -> list[KeptNode]:
    """Return the nodes of a normalised model that multiply and accumulate, or may do so, and belong to no layer.

    Args:
        model: The network.
        layers: Its layers.
        inputs: Of which the first one is run.
    """
    owned = {name for layer in layers for place in layer.places for name in place.nodes}
    model = _inlined(model)
    samples = next((layer.samples for layer in layers), None) or inputs.batch
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    kept = []
    for one in _count(model, inputs[0], owned):
        name = one.node.name if one.node.name == one.place else unique(one.node.name, taken)
        own = {weight: size for weight, size in one.weights.items() if weight not in seen}
        seen |= own.keys()
        how = arithmetic(one.node)
        kept.append(
            KeptNode(
                name=name,
                op=one.node.op_type,
                reason=one.reason,
                macs=-(-one.macs // samples),
                parameters=sum(own.values()),
                is_conv=how is not None and how.is_conv,
                place=one.place,
                is_counted=one.is_counted,
            )
        )
    return kept


@dataclass(frozen=True, eq=False)
class _Counted:
    """A node with its multiply-accumulates in one run, and the sizes of its weights by their names."""

    node: NodeProto
    reason: str
    place: str
    macs: int = 0
    weights: Mapping[str, int] = field(default_factory=dict)
    is_counted: bool = True


def _inner(node: NodeProto) -> Iterator[NodeProto]:
    """Yield the nodes of the graphs inside a node."""
    return walk(inner for graph in subgraphs(node) for inner in graph.node)


def _computes(node: NodeProto) -> bool:
    """Return whether a node is to be counted by itself, or would be if it were known."""
    return arithmetic(node) is not None or is_unknown(node)


def _count(model: ModelProto, feeds: Mapping[str, Any], owned: Collection[str] = ()) -> Iterator[_Counted]:
    """Yield what is counted in a network on one input, but for the nodes ``owned``."""
    nodes = [node for node in model.graph.node if node.name not in owned]
    plain = [node for node in nodes if _computes(node)]
    carriers = [node for node in nodes if any(map(_computes, _inner(node)))]
    if not plain and not carriers:
        return
    model, trips = with_trip_counts(model, [node.name for node in carriers if is_standard(node, "Loop")])
    index = Index.of(model)
    computed = (feeds.keys() | {name for node in index.nodes for name in node.output}) - index.constants.keys()
    wanted = {name for node in plain for name in (*node.input, *node.output)} | set(trips.values())
    wanted |= {name for node in carriers for name in reads(node)}
    values = tensor_values(model, wanted & computed, dict(feeds))

    def shape(name: str) -> Sizes:
        return tuple(index.constants[name].dims) if name in index.constants else np.shape(values.get(name, ()))

    for node in plain:
        yield _plain(index, node, [[shape(name) for name in side] for side in (node.input, node.output)])
    for node in carriers:
        reason = f"inside {node.op_type} '{node.name}'"
        for one in _inside(model, node, lambda name: index.constants.get(name, values.get(name)), trips):
            yield replace(one, place=node.name, reason=f"{reason}{one.reason}")


def _plain(index: Index, node: NodeProto, shapes: Sequence[Sequence[Sizes]]) -> _Counted:
    """Return the count of a node with no graphs inside, by the shapes of its inputs and of its outputs."""
    reason, how = refusal(index, node) or "no layer", arithmetic(node)
    if how is None:
        return _Counted(node, f"{reason}, its work is not known", node.name, is_counted=False)
    positions = [i for i in how.weights if i < len(node.input) and not (i == 1 and reads_blocks(node))]
    weights = {node.input[i] for i in positions} & index.constants.keys()
    sizes = {index.constants[name].name: math.prod(index.constants[name].dims) for name in weights}
    return _Counted(node, reason, node.name, how.macs(node, *shapes), sizes)


def _inside(model: ModelProto, node: NodeProto, read: Read, trips: Mapping[str, str]) -> list[_Counted]:
    """Return what is counted in the graphs inside a node, each with what there is to say beyond where it is."""
    if not has_bodies(node):
        return [_Counted(inner, ", its work is not known", "", is_counted=False) for inner in _inner(node)]
    counted = [_body(body) for body in bodies(model, node, read, trips)]
    if unfolded_branch(node) is not None:
        return [replace(one, macs=0, is_counted=True, reason=_NOT_TAKEN) for part in counted for one in part]
    dearest = max(counted, key=lambda part: sum(one.macs for one in part))
    return [
        one if part is dearest else replace(one, macs=0, reason=", the other branch of which is dearer")
        for part in counted
        for one in part
    ]


def _body(body: Body) -> list[_Counted]:
    """Return what is counted in a graph inside a node, over all its rounds."""
    try:
        counted = list(_count(body.model, body.feeds))
        steady = body.rounds < 2 or _is_steady(body)
    except OnnxLowRankError:  # a branch that is not taken may not suit the input
        nodes = filter(_computes, body.model.graph.node)
        return [_Counted(node, "", "", is_counted=not body.is_taken) for node in nodes]
    return [
        replace(one, reason="", macs=one.macs * body.rounds, is_counted=one.is_counted and steady) for one in counted
    ]


def _is_steady(body: Body) -> bool:
    """Return whether the shapes of the second iteration are those of the first."""
    leaving = tensor_values(body.model, [name for _, name in body.states], dict(body.feeds))
    return all(np.shape(leaving[out]) == np.shape(body.feeds[name]) for name, out in body.states)


def _inlined(model: ModelProto) -> ModelProto:
    """Return the network without calls of its own functions."""
    functions = {(function.domain, function.name) for function in model.functions}
    if not any((node.domain, node.op_type) in functions for node in walk(model.graph.node)):
        return model
    inlined = onnx.inliner.inline_local_functions(model)
    nodes = named(inlined.graph.node, names(inlined))
    del inlined.graph.node[:]
    inlined.graph.node.extend(nodes)
    return inlined

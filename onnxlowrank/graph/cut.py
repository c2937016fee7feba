"""Cuts a network in two: what computes a tensor, and all that comes behind or beside it."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto, ValueInfoProto

from onnxlowrank.graph.walk import needed, reads, rebuild


def frontier(model: ModelProto, tensor: str) -> list[str] | None:
    """Return what carries all that the outputs of ``model`` need from what computes ``tensor``, and ``tensor`` itself.

    These are tensors of the network, inputs among them, in its order; None where they are inputs alone. What depends on
    no input is no matter.
    """
    graph, fed = model.graph, _inputs(model)
    outputs = [output.name for output in graph.output]
    before = {name for node in needed(graph.node, [tensor]) for name in node.output if name}
    depending, computed = set(fed), [item.name for item in graph.input if item.name in fed]
    for node in graph.node:
        if not depending.isdisjoint(reads(node)):
            depending.update(node.output)
            computed += (name for name in node.output if name in before)
    behind_it = [node for node in needed(graph.node, [tensor, *outputs]) if before.isdisjoint(node.output)]
    read = {tensor, *outputs}.union(name for node in behind_it for name in reads(node))
    found = [name for name in computed if name in read]
    return None if fed.issuperset(found) else found


def behind(model: ModelProto, tensors: Sequence[ValueInfoProto]) -> ModelProto | None:
    """Return what ``model`` does behind ``tensors``, which become its inputs, or None if that depends on others."""
    graph, given = model.graph, {one.name for one in tensors}
    outputs = {output.name for output in graph.output}
    nodes = needed([node for node in graph.node if given.isdisjoint(node.output)], outputs)
    read = outputs.union(name for node in nodes for name in reads(node))
    if not read.isdisjoint(_inputs(model) - given):
        return None
    constant = [item for item in graph.input if item.name not in _inputs(model)]
    inputs = [*tensors, *constant]
    return rebuild(model, nodes=nodes, initializers=graph.initializer, inputs=inputs, outputs=graph.output)


def _inputs(model: ModelProto) -> set[str]:
    """Return the names of the inputs that are not only the defaults of constants."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {item.name for item in model.graph.input} - constants

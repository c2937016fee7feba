"""Cuts a network in two where one tensor carries all that the second part needs from the first."""

from __future__ import annotations

from collections.abc import Collection

from onnx import ModelProto, ValueInfoProto

from onnxlowrank.graph.walk import needed, reads, rebuild


def narrowest(model: ModelProto, tensors: Collection[str]) -> str | None:
    """Return the deepest tensor of ``model`` that alone carries what all ``tensors`` need, or is the only one of them.

    What depends on no input is no matter. Where nothing but the inputs themselves carries that, it is None.
    """
    nodes = needed(model.graph.node, tensors)
    last = {name: index for index, node in enumerate(nodes) for name in reads(node)}
    last.update(dict.fromkeys(tensors, len(nodes)))
    live = {name for name in _inputs(model) if name in last}
    found = None
    for index, node in enumerate(nodes):
        if live.isdisjoint(reads(node)):
            continue  # depends on no input
        live = {name for name in live.union(node.output) if last.get(name, -1) > index}
        if len(live) == 1:
            (found,) = live
    return found


def behind(model: ModelProto, tensor: ValueInfoProto, free: Collection[str] = ()) -> ModelProto | None:
    """Return what ``model`` does behind ``tensor``, which becomes an input, or None if that depends on other inputs.

    The inputs named in ``free`` stay.
    """
    graph = model.graph
    outputs = {output.name for output in graph.output}
    nodes = needed([node for node in graph.node if tensor.name not in node.output], outputs)
    read = outputs.union(name for node in nodes for name in reads(node))
    if not read.isdisjoint(_inputs(model) - set(free)):
        return None
    inputs = [tensor, *(item for item in graph.input if item.name in free)]
    return rebuild(model, nodes=nodes, initializers=graph.initializer, inputs=inputs, outputs=graph.output)


def _inputs(model: ModelProto) -> set[str]:
    """Return the names of the inputs that are not only the defaults of constants."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {item.name for item in model.graph.input} - constants

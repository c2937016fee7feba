"""Graphs inside nodes (If, Loop, Scan) as networks of their own, with the input they get in a run of the outer one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxlowrank.graph.index import attributes, is_standard
from onnxlowrank.graph.walk import named, names, reads, subgraphs, unique

Read = Callable[[str], Any]
"""The value of a tensor of the outer network that was run, or the TensorProto of a constant, by its name."""


@dataclass(frozen=True, eq=False)
class Body:
    """A graph inside a node, as a network.

    Attributes:
        model: The network; what it reads from outside is its input or its initializer.
        feeds: What it is run on: that of the first iteration.
        rounds: How often it is run.
        states: Its inputs and outputs that go from one iteration to the next.
        is_taken: Whether it is run at all: of an If only one branch is.
    """

    model: ModelProto
    feeds: Mapping[str, Any]
    rounds: int = 1
    states: Sequence[tuple[str, str]] = ()
    is_taken: bool = True


def has_bodies(node: NodeProto) -> bool:
    """Return whether :func:`bodies` knows how the graphs inside ``node`` are run."""
    return is_standard(node, "If", "Loop", "Scan")


def bodies(model: ModelProto, node: NodeProto, read: Read, trips: Mapping[str, str]) -> list[Body]:
    """Return the graphs inside a node of ``model``.

    Args:
        model: The network.
        node: An If, Loop or Scan, see :func:`has_bodies`.
        read: Gives what the node, or a graph inside it, reads.
        trips: From :func:`with_trip_counts`.
    """
    graphs = {item.name: item.g for item in node.attribute if item.type == onnx.AttributeProto.GRAPH}
    if node.op_type == "If":
        branch = "then_branch" if np.all(_array(read(node.input[0]))) else "else_branch"
        return [Body(*_network(model, graph, {}, read), is_taken=name == branch) for name, graph in graphs.items()]
    body = graphs["body"]
    if node.op_type == "Loop":
        values: list[Any] = [np.array(0), np.array(True), *(_array(read(name)) for name in node.input[2:])]
        count, first = len(values) - 2, 1
        rounds = len(read(trips[node.name]))
        entering = [item.name for item in body.input[2:]]
    else:
        how = attributes(node)
        count, first = len(node.input) - how["num_scan_inputs"], 0
        values = [_array(read(name)) for name in node.input]
        axes = how.get("scan_input_axes", [0] * how["num_scan_inputs"])
        rounds = values[count].shape[axes[0]]
        values[count:] = [_first(value, axis) for value, axis in zip(values[count:], axes, strict=True)]
        entering = [item.name for item in body.input[:count]]
    given = {item.name: value for item, value in zip(body.input, values, strict=True)}
    leaving = [item.name for item in body.output[first : first + count]]
    return [Body(*_network(model, body, given, read), rounds, list(zip(entering, leaving, strict=True)))]


def with_trip_counts(model: ModelProto, loops: Sequence[str]) -> tuple[ModelProto, dict[str, str]]:
    """Return a copy of a network in which Loops tell how often they go round.

    Args:
        model: The network.
        loops: Names of the Loops.

    Returns:
        The network, and for every Loop the name of a new tensor with one entry a round.
    """
    if not loops:
        return model, {}
    copy = ModelProto()
    copy.CopyFrom(model)
    taken, trips = names(model), {}
    for node in copy.graph.node:
        if node.name in loops:
            (body,) = subgraphs(node)
            number, trips[node.name] = (unique(f"onnxlowrank/trips/{node.name}", taken) for _ in range(2))
            body.node.append(helper.make_node("Identity", [body.input[0].name], [number], name=number))
            node.output.extend("" for _ in range(len(body.output) - 1 - len(node.output)))
            node.output.append(trips[node.name])
            body.output.append(helper.make_tensor_value_info(number, TensorProto.INT64, []))
    return copy, trips


def _network(
    model: ModelProto, graph: GraphProto, given: Mapping[str, Any], read: Read
) -> tuple[ModelProto, dict[str, Any]]:
    """Return a graph inside a node as a network, and what it is run on: ``given`` and what it reads from outside."""
    own = {item.name for item in (*graph.input, *graph.initializer)}
    own |= {name for node in graph.node for name in node.output}
    outside = {name for node in graph.node for name in reads(node)} | {item.name for item in graph.output}
    outer = {name: value for name in sorted(outside - own) if (value := read(name)) is not None}
    constants = [_renamed(value, name) for name, value in outer.items() if isinstance(value, TensorProto)]
    feeds = {**given, **{name: value for name, value in outer.items() if not isinstance(value, TensorProto)}}
    declared = {item.name: item for item in graph.input}
    body = helper.make_graph(
        named(graph.node, names(model)),
        graph.name or "body",
        [_info(name, value, declared.get(name)) for name, value in feeds.items()],
        graph.output,
        [*graph.initializer, *constants],
    )
    network = ModelProto()
    network.CopyFrom(model)
    network.graph.CopyFrom(body)
    return network, feeds


def _info(name: str, value: Any, declared: ValueInfoProto | None) -> ValueInfoProto:
    """Return the description of an input that is to be fed a value."""
    if not isinstance(value, np.ndarray):
        return declared if declared is not None else ValueInfoProto(name=name)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)


def _renamed(tensor: TensorProto, name: str) -> TensorProto:
    renamed = TensorProto()
    renamed.CopyFrom(tensor)
    renamed.name = name
    return renamed


def _array(value: Any) -> Any:
    """Return the value of a constant; another one as it is."""
    return onnx.numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _first(value: Any, axis: int) -> Any:
    """Return the first slice along an axis; zeros where there is none."""
    return np.take(value, 0, axis) if value.shape[axis] else np.zeros(np.delete(value.shape, axis), value.dtype)

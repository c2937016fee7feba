"""Walks over a graph and the graphs nested in its nodes, and builds a model anew from what a walk kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import Any

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs a node carries in its attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def walk(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield ``nodes`` and all nodes of the graphs nested in them, depth first."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from walk(graph.node)


def reads(node: NodeProto) -> Iterator[str]:
    """Yield the tensors a node reads, once a read; all that its subgraphs read counts, their own tensors included."""
    yield from filter(None, node.input)
    for graph in subgraphs(node):
        yield from (output.name for output in graph.output)
        for inner in graph.node:
            yield from reads(inner)


def readers(nodes: Iterable[NodeProto]) -> dict[str, list[NodeProto]]:
    """Return for every tensor that is read the nodes that read it, once a read, in their order; see :func:`reads`."""
    found: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in reads(node):
            found.setdefault(name, []).append(node)
    return found


def names(model: ModelProto) -> set[str]:
    """Return every name of a node or a tensor in use anywhere in ``model``."""
    nodes = list(walk(model.graph.node))
    taken = {node.name for node in nodes}
    for graph in chain([model.graph], *map(subgraphs, nodes)):
        taken.update(item.name for item in chain(graph.input, graph.output, graph.initializer))
        taken.update(sparse.values.name for sparse in graph.sparse_initializer)
    for node in nodes:
        taken.update(node.input, node.output)
    return taken


def unique(name: str, taken: set[str]) -> str:
    """Return ``name``, numbered if it is in ``taken`` already, and add what is returned to ``taken``."""
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def named(nodes: Iterable[NodeProto], taken: set[str]) -> list[NodeProto]:
    """Return ``nodes`` with a unique name each; a name that is unique already stays."""
    named = []
    seen: set[str] = set()
    for node in nodes:
        if not node.name or node.name in seen:
            original, node = node, NodeProto()
            node.CopyFrom(original)
            output = next(filter(None, node.output), "")
            node.name = unique(node.name or f"{node.op_type}/{output}", taken)
        seen.add(node.name)
        named.append(node)
    return named


def opset(model: ModelProto) -> int:
    """Return the version of the standard operators ``model`` imports."""
    return max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=1)


def needed(nodes: Iterable[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """Return those of ``nodes``, given in graph order, that the tensors ``outputs`` depend on."""
    wanted = set(outputs)
    kept = []
    for node in reversed(list(nodes)):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(reads(node))
    return kept[::-1]


def in_order(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Return ``nodes``, each behind those that write what it, or a graph inside it, reads, else in the order given."""
    given = list(nodes)
    writers = {name: position for position, node in enumerate(given) for name in node.output if name}
    ordered: list[NodeProto] = []
    seen: set[int] = set()
    for first in range(len(given)):
        waiting = [] if first in seen else [(first, iter(list(reads(given[first]))))]
        seen.add(first)
        while waiting:
            position, names_left = waiting[-1]
            before = next((writers[name] for name in names_left if writers.get(name, position) not in seen), None)
            if before is None:
                ordered.append(given[position])
                waiting.pop()
            else:
                seen.add(before)
                waiting.append((before, iter(list(reads(given[before])))))
    return ordered


def rebuild(
    model: ModelProto,
    *,
    nodes: Iterable[NodeProto],
    initializers: Iterable[TensorProto],
    inputs: Iterable[ValueInfoProto],
    outputs: Iterable[ValueInfoProto],
) -> ModelProto:
    """Return a copy of ``model`` with another body.

    Names, doc strings, metadata, IR version and opset imports are those of ``model``, as are the functions that are
    still called and the value info of all tensors that are still there. Initializers that nothing reads are left out,
    and so are inputs that were only the default of such an initializer.
    """
    nodes, initializers, outputs = list(nodes), list(initializers), list(outputs)
    written = {name for node in nodes for name in node.output}
    used = {name for node in nodes for name in reads(node)} | {output.name for output in outputs}
    constants = {tensor.name for tensor in initializers}
    constants |= {sparse.values.name for sparse in model.graph.sparse_initializer}

    result = ModelProto()
    graph = result.graph
    copy_fields(model, result, {"graph", "functions"})
    body = {"node", "initializer", "sparse_initializer", "value_info", "input", "output"}
    copy_fields(model.graph, graph, body)
    graph.node.extend(nodes)
    graph.initializer.extend(tensor for tensor in initializers if tensor.name in used)
    dense = {tensor.name for tensor in initializers}
    graph.sparse_initializer.extend(
        sparse for sparse in model.graph.sparse_initializer if sparse.values.name in used - dense
    )
    graph.value_info.extend(info for info in model.graph.value_info if info.name in written)
    graph.input.extend(info for info in inputs if info.name in used or info.name not in constants)
    graph.output.extend(outputs)
    called = _called(model, nodes)
    result.functions.extend(function for function in model.functions if _key(function.domain, function.name) in called)
    return result


def copy_fields(source: Any, target: Any, left_out: Collection[str] = ()) -> None:
    """Copy the fields of a message that are set to one where they are not, but for some: weights take time to copy."""
    for field, value in source.ListFields():
        if field.name in left_out:
            continue
        if isinstance(value, str | int | bytes):
            setattr(target, field.name, value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            getattr(target, field.name).extend(value)


def _called(model: ModelProto, nodes: Iterable[NodeProto]) -> set[tuple[str, str]]:
    """Return the operators that ``nodes`` are, and those of the functions of ``model`` that they call."""
    bodies = {_key(function.domain, function.name): function.node for function in model.functions}
    called: set[tuple[str, str]] = set()
    new = {_key(node.domain, node.op_type) for node in walk(nodes)}
    while new:
        called |= new
        new = {_key(node.domain, node.op_type) for one in new for node in walk(bodies.get(one, ()))} - called
    return called


def _key(domain: str, name: str) -> tuple[str, str]:
    return "" if domain == "ai.onnx" else domain, name


def with_outputs(model: ModelProto, tensors: Iterable[str]) -> ModelProto:
    """Return a copy of ``model`` with more outputs, which carry no type."""
    graph = model.graph
    outputs = [*graph.output, *(ValueInfoProto(name=name) for name in tensors)]
    return rebuild(model, nodes=graph.node, initializers=graph.initializer, inputs=graph.input, outputs=outputs)

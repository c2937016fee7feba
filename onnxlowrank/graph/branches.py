"""Layers inside a branch of an If, where they are found, calibrated and rewritten like all others: unfolded and folded.

What a branch computes may as well be computed before the If, which then only hands it on:

    If(c) { y = f(x) } else { y = g(x) }   =   h = f(x);  If(c) { y = h } else { y = g(x) }

The right side is the *unfolded* one. Where the branch is the one that is taken it also takes as long, and ``f`` can be
sampled and timed node by node. What is written is *folded* again, to the left side: whatever only the branch reads is
computed inside of it. Both compute the same whichever branch is taken, as long as ``f`` accepts the ``x`` that comes
with the other one; the folded side does in any case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from onnxlowrank.graph.count import arithmetic
from onnxlowrank.graph.index import is_standard
from onnxlowrank.graph.walk import named, names, reads, rebuild, subgraphs, unique, walk

THEN, ELSE = "then_branch", "else_branch"
_HANDS_ON = "/lowrank.branch"  # ends the names of the nodes that hand on what is computed before the If


def branches_with_layers(model: ModelProto) -> list[NodeProto]:
    """Return the Ifs of the main graph that multiply and accumulate in a branch, and are not unfolded."""
    return [
        node
        for node in model.graph.node
        if is_standard(node, "If")
        and unfolded_branch(node) is None
        and any(arithmetic(inner) is not None for graph in subgraphs(node) for inner in walk(graph.node))
    ]


def unfold_branches(model: ModelProto, taken: Mapping[str, str]) -> ModelProto:
    """Return a network in which branches are computed before their Ifs.

    What is new in the main graph keeps its name, unless something else in the network has that.

    Args:
        model: All nodes of its main graph have names.
        taken: :data:`THEN` or :data:`ELSE`, by the name of the If; where one is inside the branch of another, behind
            it. Branches with sparse initializers stay, and those of Ifs that are unfolded or not there.
    """
    for name, branch in taken.items():
        node = next((one for one in model.graph.node if one.name == name), None)
        if node is not None and unfolded_branch(node) is None:
            model = _unfold(model, name, branch)
    return model


def unfolded_branches(model: ModelProto) -> dict[str, str]:
    """Return which branches of which Ifs of the main graph are computed before them, outer ones first."""
    found = ((node.name, unfolded_branch(node)) for node in reversed(model.graph.node))
    return {name: branch for name, branch in found if branch is not None}


def unfolded_branch(node: NodeProto) -> str | None:
    """Return which branch of an If is computed before it; None for any other node."""
    return next((name for name, graph in _branches(node) if _handing_on(graph)), None)


def reads_not_taken(node: NodeProto) -> Iterator[str]:
    """Yield the tensors that are read by the other branch of an If one of whose branches is computed before it."""
    taken = unfolded_branch(node)
    for name, graph in _branches(node):
        if taken not in (None, name):
            yield from _reads(graph)


def fold_branches(model: ModelProto) -> ModelProto:
    """Undo :func:`unfold_branches`, whatever computes the outputs by now: what only a branch reads goes inside it."""
    for name in reversed(unfolded_branches(model)):
        model = _fold(model, name)
    return model


def _unfold(model: ModelProto, name: str, branch: str) -> ModelProto:
    """Return a network in which one branch of one If is computed before it."""
    position, node = next((i, one) for i, one in enumerate(model.graph.node) if one.name == name)
    graph = dict(_branches(node))[branch]
    if graph.sparse_initializer:
        return model
    taken, defined = names(model), Counter(_defined(model.graph))
    own = [item.name for item in graph.initializer]
    own += [tensor for inner in graph.node for tensor in inner.output if tensor]
    renamed = {tensor: unique(f"{name}/{tensor}", taken) for tensor in own if defined[tensor] > 1}
    outside = Counter(one.name for one in walk(model.graph.node))
    nodes = [_renamed(inner, renamed) for inner in graph.node]
    for inner in nodes:
        if inner.name and outside[inner.name] > 1:
            inner.name = unique(f"{name}/{inner.name}", taken)
    nodes = named(nodes, taken)
    handing = GraphProto(name=graph.name)
    for number, output in enumerate(graph.output):
        source, target = renamed.get(output.name, output.name), unique(f"{name}/{output.name}/given", taken)
        handing.node.append(helper.make_node("Identity", [source], [target], f"{name}/{number}{_HANDS_ON}"))
        handing.output.append(_described(output, target))
    initializers = list(model.graph.initializer)
    for tensor in graph.initializer:
        initializers.append(type(tensor)())
        initializers[-1].CopyFrom(tensor)
        initializers[-1].name = renamed.get(tensor.name, tensor.name)
    before, after = model.graph.node[:position], model.graph.node[position + 1 :]
    given = rebuild(
        model,
        nodes=[*before, *nodes, _with_branch(node, branch, handing), *after],
        initializers=initializers,
        inputs=model.graph.input,
        outputs=model.graph.output,
    )
    infos = [_described(info, renamed.get(info.name, info.name)) for info in (*graph.value_info, *graph.output)]
    inside = {tensor for inner in nodes for tensor in inner.output}
    given.graph.value_info.extend(info for info in infos if info.name in inside)
    return given


def _fold(model: ModelProto, name: str) -> ModelProto:
    """Return a network in which what only the unfolded branch of an If reads is computed inside it."""
    graph = model.graph
    position, node = next((i, one) for i, one in enumerate(graph.node) if one.name == name)
    branch, handing = next((key, inner) for key, inner in _branches(node) if _handing_on(inner))
    readers: dict[str, set[int]] = {}
    for place, one in enumerate(graph.node):
        for tensor in node.input if place == position else reads(one):
            readers.setdefault(tensor, set()).add(place)
    elsewhere = {output.name for output in graph.output} | set(node.input) | set(reads_not_taken(node))
    wanted = {tensor for one in handing.node for tensor in one.input}
    moved: set[int] = set()
    for place in range(position - 1, -1, -1):
        outputs = set(filter(None, graph.node[place].output))
        others = set().union(*(readers.get(tensor, set()) for tensor in outputs))
        if outputs & wanted and not outputs & elsewhere and others <= moved:
            moved.add(place)
            wanted.update(reads(graph.node[place]))
    inside = [graph.node[place] for place in sorted(moved)]
    written = {tensor for one in inside for tensor in one.output}
    targets = Counter(one.input[0] for one in handing.node)
    single = [one for one in handing.node if one.input[0] in written and targets[one.input[0]] == 1]
    renamed = {one.input[0]: one.output[0] for one in single}
    body = GraphProto()
    body.CopyFrom(handing)
    del body.node[:]
    body.node.extend(_renamed(one, renamed) for one in inside)
    body.node.extend(one for one in handing.node if one.input[0] not in renamed)
    infos = [_described(info, renamed.get(info.name, info.name)) for info in graph.value_info if info.name in written]
    body.value_info.extend(info for info in infos if info.name not in {output.name for output in body.output})
    return rebuild(
        model,
        nodes=[
            _with_branch(one, branch, body) if place == position else one
            for place, one in enumerate(graph.node)
            if place not in moved
        ],
        initializers=graph.initializer,
        inputs=graph.input,
        outputs=graph.output,
    )


def _branches(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """Yield the branches of an If by their names."""
    if is_standard(node, "If"):
        yield from ((item.name, item.g) for item in node.attribute if item.type == AttributeProto.GRAPH)


def _reads(graph: GraphProto) -> Iterator[str]:
    """Yield the tensors that a graph inside a node reads, its own included."""
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from reads(node)


def _handing_on(graph: GraphProto) -> bool:
    return any(node.name.endswith(_HANDS_ON) for node in graph.node)


def _defined(graph: GraphProto) -> Iterator[str]:
    """Yield the tensors of a graph and of those inside it, once a definition."""
    for item in (*graph.input, *graph.initializer):
        yield item.name
    for node in graph.node:
        yield from filter(None, node.output)
        for inner in subgraphs(node):
            yield from _defined(inner)


def _renamed(node: NodeProto, to: Mapping[str, str]) -> NodeProto:
    """Return a copy of a node, and of the graphs inside it, with other names for tensors."""
    copy = NodeProto()
    copy.CopyFrom(node)
    for one in walk([copy]):
        for side in (one.input, one.output):
            side[:] = [to.get(tensor, tensor) for tensor in side]
        for graph in subgraphs(one):
            for output in graph.output:
                output.name = to.get(output.name, output.name)
    return copy


def _described(info: ValueInfoProto, name: str) -> ValueInfoProto:
    copy = ValueInfoProto()
    copy.CopyFrom(info)
    copy.name = name
    return copy


def _with_branch(node: NodeProto, branch: str, graph: GraphProto) -> NodeProto:
    """Return a copy of an If with another branch."""
    copy = NodeProto()
    copy.CopyFrom(node)
    for item in copy.attribute:
        if item.name == branch:
            item.g.CopyFrom(graph)
    return copy

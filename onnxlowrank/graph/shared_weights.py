"""Weights that several nodes share, while a model is normalised: they stay one where they can, and become one again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b

from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from onnxlowrank.graph.index import Index, is_standard
from onnxlowrank.graph.walk import reads, rebuild, subgraphs

_LEAST_BYTES = 1024
"""Of equal weights that become one: smaller ones may be equal by chance."""

Key = tuple[int, tuple[int, ...], bytes]


def not_to_fold(model: ModelProto) -> list[str]:
    """Return the outputs of nodes that share a weight, but not what could be folded into it.

    A BatchNorm of its own behind every use, for instance, would make as many weights of one.
    """
    users: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        if _has_weight(node):
            users.setdefault(node.input[1], []).append(node)
    users = {name: nodes for name, nodes in users.items() if len(nodes) > 1}
    if not users:
        return []
    index = Index.of(model)
    unlike = [nodes for name, nodes in users.items() if name in index.constants and _is_unlike(index, nodes)]
    return [node.output[0] for nodes in unlike for node in nodes]


def merge_equal_weights(model: ModelProto) -> ModelProto:
    """Return ``model``, or if weights of its Conv, Gemm and MatMul nodes are equal, a copy in which these are one."""
    graph = model.graph
    fixed = {output.name for output in graph.output} | {info.name for info in graph.input}
    fixed |= {name for node in graph.node for inner in subgraphs(node) for one in inner.node for name in reads(one)}
    weights = {node.input[1] for node in graph.node if _has_weight(node)} - fixed
    first: dict[Key, str] = {}
    same: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.name in weights and tensor.ByteSize() >= _LEAST_BYTES:
            one = first.setdefault(_key(tensor), tensor.name)
            if one != tensor.name:
                same[tensor.name] = one
    if not same:
        return model
    return rebuild(
        model,
        nodes=renamed(graph.node, same),
        initializers=graph.initializer,
        inputs=graph.input,
        outputs=graph.output,
    )


def renamed(nodes: Iterable[NodeProto], names: dict[str, str]) -> Iterator[NodeProto]:
    """Yield ``nodes``, with other names for what they read, but not in subgraphs."""
    for node in nodes:
        if names.keys().isdisjoint(node.input):
            yield node
            continue
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [names.get(name, name) for name in node.input]
        yield copy


def _has_weight(node: NodeProto) -> bool:
    return is_standard(node, "Conv", "ConvTranspose", "Gemm", "MatMul") and len(node.input) > 1


def _key(tensor: TensorProto) -> Key:
    return tensor.data_type, tuple(tensor.dims), blake2b(numpy_helper.to_array(tensor).tobytes()).digest()


def _is_unlike(index: Index, nodes: list[NodeProto]) -> bool:
    """Return whether the outputs of some of these nodes are treated with other constants than those of others."""
    first, *others = (list(_treatment(index, node.output[0])) for node in nodes)
    return any(one != first for one in others)


def _treatment(index: Index, tensor: str) -> Iterator[tuple[str, bytes, list[bytes]]]:
    """Yield what happens to a tensor in operators that read nothing else but constants: what may be folded."""
    while (position := index.sole_reader(tensor)) is not None:
        node = index.nodes[position]
        others = [index.array(name) for name in node.input if name != tensor]
        if not others or any(value is None for value in others):
            return
        attributes = b"".join(one.SerializeToString(deterministic=True) for one in node.attribute)
        yield node.op_type, attributes, [value.tobytes() for value in others if value is not None]
        tensor = node.output[0]

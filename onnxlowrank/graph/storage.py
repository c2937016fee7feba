"""Weights in files that keep them in half precision, behind a Cast: they are written as they were stored.

Normalising folds the Casts, and layers, chains and folds of Gathers know float32 alone. What is written of a weight in
the end, as it was or as factors of it, goes back to half precision where that loses next to nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxlowrank.graph.index import attributes, is_standard
from onnxlowrank.graph.normalise import prepare
from onnxlowrank.graph.walk import names, reads, rebuild, subgraphs, unique

StoredTypes = Mapping[tuple[str, int], int]
"""The type of half precision that the input of a node, by its name and position, is stored in."""

_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_MOVED = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_LEAST_BYTES = 1024
"""Of what is put behind a Cast: that is a node more."""
_MOST_LOST = 2**-9
"""Of the norm of a tensor, when it is rounded: what half precision loses of numbers in its range."""


def stored_types(model: ModelProto) -> StoredTypes:
    """Return which constants of a model are float32 numbers made of half-precision ones, by the nodes that read them.

    Args:
        model: As it was given.
    """
    if not _has_half(model):
        return {}
    graph = prepare(model).graph
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer if tensor.data_type in _HALF}
    cast: dict[str, int] = {}
    found = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in cast:
                found[node.name, position] = cast[name]
        if is_standard(node, "Cast"):
            if node.input[0] in stored and attributes(node)["to"] == TensorProto.FLOAT:
                cast[node.output[0]] = stored[node.input[0]]
        elif is_standard(node, *_MOVED):
            for kind in (stored, cast):
                if node.input[0] in kind:
                    kind[node.output[0]] = kind[node.input[0]]
    return found


def store(model: ModelProto, types: StoredTypes, own: Collection[str] = ()) -> ModelProto:
    """Return ``model``, or if nodes read large constants of half precision, a copy that has them behind Casts.

    Args:
        model: A normalised model, perhaps with chains in place of layers.
        types: Of the model it was normalised from; chains are stored as the weights of their layers were.
        own: Names of the nodes of the model without chains, which are of no chain, whatever they are called.
    """
    if not types:
        return model
    graph = model.graph
    wanted: dict[str, set[int | None]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            wanted.setdefault(name, set()).add(_stored_type(node, position, types, own))
        for name in (name for inner in subgraphs(node) for one in inner.node for name in reads(one)):
            wanted.setdefault(name, set()).add(None)
    for output in graph.output:
        wanted.setdefault(output.name, set()).add(None)

    taken, casts, initializers = names(model), [], []
    for tensor in graph.initializer:
        (kind, *others) = wanted.get(tensor.name, {None})
        values = None if others or kind is None else _rounded(tensor, kind)
        if values is None:
            initializers.append(tensor)
            continue
        name = unique(f"{tensor.name}/stored", taken)
        initializers.append(numpy_helper.from_array(values, name))
        node_name = unique(f"{tensor.name}/cast", taken)
        casts.append(helper.make_node("Cast", [name], [tensor.name], name=node_name, to=TensorProto.FLOAT))
    return rebuild(
        model, nodes=[*casts, *graph.node], initializers=initializers, inputs=graph.input, outputs=graph.output
    )


def bytes_per_weight(types: StoredTypes, layer: str) -> int:
    """Return how many bytes a file takes for each weight of a layer, or of a chain in its place."""
    return 2 if (layer, 1) in types else 4


def _has_half(model: ModelProto) -> bool:
    """Return whether any constant is in half precision."""
    constants = (one.t for node in model.graph.node if is_standard(node, "Constant") for one in node.attribute)
    return any(tensor.data_type in _HALF for tensor in chain(model.graph.initializer, constants))


def _stored_type(node: NodeProto, position: int, types: StoredTypes, own: Collection[str]) -> int | None:
    """Return in what half precision an input of a node was stored, or None; weights of a chain are as the layer's."""
    layer = node.name if node.name in own else node.name.rpartition("/lowrank/")[0] or node.name
    return types.get((layer, position)) if layer == node.name or position == 1 else None


def _rounded(tensor: TensorProto, kind: int) -> NDArray[np.generic] | None:
    """Return a large float32 tensor in half precision, or None if it is none or has numbers out of its range."""
    if tensor.data_type != TensorProto.FLOAT or tensor.ByteSize() < _LEAST_BYTES:
        return None
    values = numpy_helper.to_array(tensor)
    with np.errstate(all="ignore"):
        rounded = values.astype(helper.tensor_dtype_to_np_dtype(kind))
        lost = np.linalg.norm(rounded.astype(np.float64) - values)
    return rounded if lost <= _MOST_LOST * np.linalg.norm(values.astype(np.float64)) else None

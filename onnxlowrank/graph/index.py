"""What a graph says about its tensors: who writes and who reads them, which are constant, what shape they have."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from onnxlowrank.graph.outside import is_large, values
from onnxlowrank.graph.walk import reads

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Index:
    """Lookups over the nodes of one model; nodes go by their position in the graph.

    Attributes:
        nodes: The nodes in graph order.
        readers: Position of every node that reads a tensor, once a read; a tensor read in a subgraph counts as read
            by the node that carries the subgraph.
        outputs: Names of the graph's outputs.
        constants: Initializers and values of Constant nodes, by every name they have: Identity nodes add names.
        shapes: Known shapes, None for an unknown or symbolic dimension.
    """

    nodes: list[NodeProto]
    readers: dict[str, list[int]]
    outputs: frozenset[str]
    constants: dict[str, TensorProto]
    shapes: dict[str, Shape]

    @staticmethod
    def of(model: ModelProto) -> Index:
        """Return the index of ``model``."""
        nodes = list(model.graph.node)
        readers: dict[str, list[int]] = {}
        for position, node in enumerate(nodes):
            for name in reads(node):
                readers.setdefault(name, []).append(position)
        outputs = frozenset(output.name for output in model.graph.output)
        return Index(nodes, readers, outputs, _constants(model), _shapes(model))

    def array(self, name: str) -> NDArray[Any] | None:
        """Return the value of the constant ``name``, or None if that tensor is not constant."""
        tensor = self.constants.get(name)
        return None if tensor is None else values(tensor)

    def weights(self, name: str) -> NDArray[np.float32] | None:
        """Return the value of the constant ``name``, or None if that tensor is not constant or not float32."""
        values = self.array(name)
        return values if values is not None and values.dtype == np.float32 else None

    def sole_reader(self, name: str) -> int | None:
        """Return the position of the node that alone, and once, reads ``name``; None if there are others or none."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def uses(self, name: str) -> int:
        """Return how many reads are made of the constant ``name``, under whatever of its names."""
        tensor = self.constants[name]
        aliases = (alias for alias, other in self.constants.items() if other is tensor)
        readers = (position for alias in aliases for position in self.readers.get(alias, []))
        return sum(self.nodes[position].op_type != "Identity" for position in readers)


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return the attributes of ``node`` as Python values, strings decoded."""
    values = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def is_standard(node: NodeProto, *op_types: str) -> bool:
    """Return whether ``node`` is one of the standard operators ``op_types``."""
    return node.op_type in op_types and node.domain in ("", "ai.onnx")


def _constants(model: ModelProto) -> dict[str, TensorProto]:
    """Return the constants of ``model``; an initializer that callers can override is none."""
    inputs = {info.name for info in model.graph.input}
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in inputs}
    for node in model.graph.node:
        if is_standard(node, "Identity") and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
        elif is_standard(node, "Constant"):
            value = attributes(node).get("value")
            if isinstance(value, TensorProto):
                constants[node.output[0]] = value
    return constants


def _shapes(model: ModelProto) -> dict[str, Shape]:
    """Return the shapes that shape inference finds; none for a model too large or too strange for it."""
    graph = model.graph
    if not is_large(model):
        with suppress(onnx.shape_inference.InferenceError):
            graph = onnx.shape_inference.infer_shapes(model).graph
    return declared_shapes([*graph.value_info, *graph.input, *graph.output])


def declared_shapes(infos: Iterable[ValueInfoProto]) -> dict[str, Shape]:
    """Return the shapes that descriptions of tensors have, None for a size that is open or 0."""
    return {
        info.name: tuple(size.dim_value if size.dim_value > 0 else None for size in shape.dim)
        for info in infos
        if info.type.tensor_type.HasField("shape") and (shape := info.type.tensor_type.shape)
    }

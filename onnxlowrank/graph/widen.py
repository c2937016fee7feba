"""Float32 networks of half-precision ones: what is float16 inside becomes float32, inputs and outputs stay."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxlowrank.graph.index import is_standard
from onnxlowrank.graph.outside import values
from onnxlowrank.graph.walk import names, rebuild, subgraphs, unique, walk

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def is_half(model: ModelProto) -> bool:
    """Return whether layers of a network have float16 weights, so that it computes in half precision."""
    half = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    for node in model.graph.node:
        made = is_standard(node, "Constant") and any(one.t.data_type == TensorProto.FLOAT16 for one in node.attribute)
        if made or (is_standard(node, "Identity") and half.intersection(node.input)):
            half.update(node.output)
        elif is_standard(node, *_WEIGHTED) and half.intersection(node.input[:2]):
            return True
    return False


def widened(model: ModelProto) -> ModelProto:
    """Return a network that computes in float32 what ``model`` computes in float16.

    Inputs and outputs keep their types: Casts stand behind and in front of those that are float16.

    Args:
        model: A network with float16 weights and activations.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    inside = [graph, *(inner for node in walk(graph.node) for inner in subgraphs(node))]
    for one in inside:
        _widen_constants(one)
    taken = names(copy)
    fed = {tensor.name for tensor in graph.initializer}
    inputs = [one.name for one in graph.input if _is_half(one.type.tensor_type.elem_type) and one.name not in fed]
    outputs = [one.name for one in graph.output if _is_half(one.type.tensor_type.elem_type)]
    wide = {name: unique(f"{name}/float32", taken) for name in dict.fromkeys([*inputs, *outputs])}
    nodes = list(graph.node)
    for node in nodes:
        _rename(node, wide)
    before = [_cast(name, wide[name], TensorProto.FLOAT, taken) for name in inputs]
    after = [_cast(wide[name], name, TensorProto.FLOAT16, taken) for name in outputs]
    result = rebuild(
        copy,
        nodes=[*before, *nodes, *after],
        initializers=graph.initializer,
        inputs=graph.input,
        outputs=graph.output,
    )
    del result.graph.value_info[:]  # onnxruntime and shape inference find them anew
    return result


def _is_half(kind: int) -> bool:
    return kind == TensorProto.FLOAT16


def _widen_constants(graph: GraphProto) -> None:
    """Make float32 what is float16 in a graph: initializers, tensors in attributes, and what Casts make."""
    for tensor in graph.initializer:
        _widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _widen(attribute.t)
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT


def _widen(tensor: TensorProto) -> None:
    if _is_half(tensor.data_type):
        tensor.CopyFrom(numpy_helper.from_array(values(tensor).astype(np.float32), tensor.name))


def _rename(node: NodeProto, new: dict[str, str]) -> None:
    """Give tensors that a node, or what is nested in it, reads and writes their new names."""
    for fields in (node.input, node.output):
        fields[:] = _renamed(fields, new)
    for graph in subgraphs(node):
        for inner in graph.node:
            _rename(inner, new)
        for output in graph.output:
            output.name = new.get(output.name, output.name)


def _renamed(fields: Iterable[str], new: dict[str, str]) -> list[str]:
    return [new.get(name, name) for name in fields]


def _cast(source: str, target: str, kind: int, taken: set[str]) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=unique(f"{target}/cast", taken), to=kind)

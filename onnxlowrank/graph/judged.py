"""Which tensors the outputs of a network are judged by, and which of them the network itself calls class scores.

An output of real numbers is judged by itself. A mask, a label or a list of boxes is not: whether a pixel's class
changes says little about how near it was to changing. It is judged by the nearest tensors of real numbers that decide
it: those in front of an ArgMax, a TopK, a Cast, a NonMaxSuppression or a ZipMap. So is an output of real numbers whose
size depends on the data, since its rows appear and vanish.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxlowrank.graph.index import attributes, is_standard
from onnxlowrank.graph.walk import opset, reads

_REAL = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_SIZED_BY_DATA = ("NonMaxSuppression", "NonZero", "Compress", "Unique", "StringSplit")
_TO_INTEGERS = (
    "ArgMax",
    "ArgMin",
    "Cast",
    "TopK",
    "Equal",
    "Greater",
    "Less",
    "GreaterOrEqual",
    "LessOrEqual",
    "Floor",
)
"""Operators that make whole numbers, or choices, of real ones."""
_SIZES = {
    "Slice": (1, 2, 3, 4),
    "Reshape": (1,),
    "Expand": (1,),
    "Range": (0, 1, 2),
    "ConstantOfShape": (0,),
    "TopK": (1,),
    "Tile": (1,),
    "Pad": (1,),
    "Resize": (2, 3),
    "OneHot": (1,),
    "Split": (1,),
}
"""Operators whose output's size is what these inputs say."""
_RESHAPING = ("Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast")
_LARGE = 1024  # bytes of an initializer whose values tell no shape


@dataclass(frozen=True)
class Judged:
    """A tensor that outputs are judged by.

    Attributes:
        tensor: Its name.
        outputs: The outputs it decides; itself alone where it is one.
        class_axis: The axis of its class scores, where a Softmax or LogSoftmax says that it has some.
        ranks: Number of its axes, where it is known.
    """

    tensor: str
    outputs: tuple[str, ...]
    class_axis: int | None = None
    ranks: int | None = None


def judged_tensors(model: ModelProto) -> list[Judged]:
    """Return what the outputs are judged by, in the order of the outputs.

    An output that no tensor of real numbers decides has no entry.
    """
    graph = model.graph
    types, ranks = _described(model)
    sized, valued = _sized_by_data(model)
    writers = {name: node for node in graph.node for name in node.output if name in valued}
    found: dict[str, list[str]] = {}
    for output in graph.output:
        for tensor in _deciding(output.name, writers, types, sized):
            found.setdefault(tensor, []).append(output.name)
    return [
        Judged(tensor, tuple(outputs), _class_axis(model, tensor, writers, ranks), ranks.get(tensor))
        for tensor, outputs in found.items()
    ]


def depends_on(model: ModelProto, tensors: set[str]) -> set[str]:
    """Return ``tensors`` and all tensors that some of them are computed from."""
    needed = set(tensors)
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(reads(node))
    return needed


def _deciding(tensor: str, writers: dict[str, NodeProto], types: dict[str, int], sized: set[str]) -> list[str]:
    """Return the nearest tensors of real numbers and fixed size that a tensor is computed from, itself if it is one."""
    nearest: dict[str, None] = {}
    seen, waiting = {tensor}, [tensor]
    while waiting:
        name = waiting.pop()
        if types.get(name) in _REAL and name not in sized:
            if name in writers:  # an input of the network is the same in all networks
                nearest[name] = None
        elif name in writers:
            before = [one for one in reads(writers[name]) if one not in seen]
            seen.update(before)
            waiting += reversed(before)
    return list(nearest)


def _sized_by_data(model: ModelProto) -> tuple[set[str], set[str]]:
    """Return the tensors whose size depends on values that the network computes, and those whose values do.

    Values that stem from the sizes of tensors alone do not, unless these do.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    valued = {info.name for info in model.graph.input} - constants
    chosen: set[str] = set()  # whole numbers that stem from real ones
    sized: set[str] = set()
    for node in model.graph.node:
        given = set(reads(node))
        from_sizes = node.op_type in ("Shape", "Size") and is_standard(node, "Shape", "Size")
        if (
            (node.op_type in _SIZED_BY_DATA and given & valued)
            or (given & sized and not from_sizes)
            or any(
                node.input[i] in chosen for i in _SIZES.get(node.op_type, ()) if i < len(node.input) and node.input[i]
            )
        ):
            sized.update(node.output)
        if given & (sized if from_sizes else valued | sized):
            valued.update(filter(None, node.output))
        if from_sizes:
            if given & sized:
                chosen.update(node.output)
        elif (node.op_type in _TO_INTEGERS and given & valued) or given & chosen:
            chosen.update(node.output)
    return sized, valued


def _class_axis(model: ModelProto, tensor: str, writers: dict[str, NodeProto], ranks: dict[str, int]) -> int | None:
    """Return the axis along which a Softmax made a tensor, seen through what only reshapes a matrix of scores."""
    node, through = writers.get(tensor), False
    while node is not None and is_standard(node, *_RESHAPING):
        through = through or node.op_type not in ("Identity", "Dropout", "Cast")
        node = writers.get(node.input[0])
    if node is None or not is_standard(node, "Softmax", "LogSoftmax"):
        return None
    rank = ranks.get(tensor)
    if through:
        return 1 if rank == 2 else None
    axis = int(attributes(node).get("axis", -1 if opset(model) >= 13 else 1))
    if axis < 0:
        return None if rank is None else axis + rank
    return axis


def _described(model: ModelProto) -> tuple[dict[str, int], dict[str, int]]:
    """Return the element types and the numbers of axes of all tensors, as far as shape inference finds them."""
    light = _without_weights(model)
    graph = light.graph
    with suppress(Exception):  # it raises a dozen types, and what it does not find is unknown
        graph = onnx.shape_inference.infer_shapes(light).graph
    types, ranks = {}, {}
    for info in [*graph.value_info, *graph.input, *graph.output]:
        if info.type.HasField("tensor_type"):
            types[info.name] = info.type.tensor_type.elem_type
            if info.type.tensor_type.HasField("shape"):
                ranks[info.name] = len(info.type.tensor_type.shape.dim)
    return types, ranks


def _without_weights(model: ModelProto) -> ModelProto:
    """Return a model whose large initializers are inputs of their shapes: enough to infer types and shapes."""
    graph = model.graph
    inputs = {info.name for info in graph.input}
    large = [tensor for tensor in graph.initializer if _bytes(tensor) > _LARGE]
    names = {tensor.name for tensor in large}
    declared = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in large
        if tensor.name not in inputs
    ]
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = graph.name
    light.graph.node.extend(graph.node)
    light.graph.input.extend([*graph.input, *declared])
    light.graph.output.extend(graph.output)
    light.graph.value_info.extend(graph.value_info)
    light.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name not in names)
    return light


def _bytes(tensor: TensorProto) -> int:
    size = 1
    for length in tensor.dims:
        size *= length
    return 4 * size

"""Why nodes whose work is that of a convolution or a matrix product are no layers: they are kept as they are."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from onnxlowrank.graph.count import MICROSOFT
from onnxlowrank.graph.index import Index, attributes, is_standard
from onnxlowrank.graph.recurrent import RECURRENT

_KINDS = {
    "DeformConv": "deformable convolution",
    **{op: f"recurrent layer ({op}): the operator takes its recurrent weights whole" for op in RECURRENT},
}


def refusal(index: Index, node: NodeProto) -> str | None:
    """Return why ``node``, of the main graph, is no layer, or None if it is one to rewrite: a Conv, Gemm, MatMul ..."""
    if node.domain.startswith(MICROSOFT):
        return f"fused by onnxruntime ({node.op_type})"
    if is_standard(node, "Conv", "ConvTranspose"):
        return _conv(index, node)
    if is_standard(node, "Gemm"):
        return _gemm(index, node)
    if is_standard(node, "MatMul"):
        return _matmul(index, node)
    return _KINDS.get(node.op_type, f"no pass is for {node.op_type}")


def _conv(index: Index, node: NodeProto) -> str | None:
    axes = _axes(index, node.input[1])
    if axes is not None and axes not in (3, 4, 5):
        return f"{axes - 2}-D {'transposed ' * (node.op_type == 'ConvTranspose')}convolution"
    if attributes(node).get("output_shape"):
        return "its output_shape is given: its padding depends on its input"
    return _constant(index, node, 1, "weight") or _constant(index, node, 2, "bias")


def _gemm(index: Index, node: NodeProto) -> str | None:
    reason = _constant(index, node, 1, "weight") or _constant(index, node, 2, "bias")
    if reason is not None or not _is_given(node, 2):
        return reason
    weight, addend = index.array(node.input[1]), index.array(node.input[2])
    assert weight is not None
    assert addend is not None
    outputs = weight.shape[0 if attributes(node).get("transB", 0) else 1]
    fits = addend.size == 1 or (addend.size == outputs and addend.shape[-1] == outputs)
    return None if fits else "its addend is no bias: rows differ"


def _matmul(index: Index, node: NodeProto) -> str | None:
    left, right = (name in index.constants for name in node.input)
    if left and right:
        return "both operands are constant"
    if not (left or right):
        return "both operands are computed"
    tensor, axes = index.constants[node.input[1 - left]], _axes(index, node.input[left])
    if left and (axes is None or axes != 3):
        return "constant on the left" + ("" if axes is None else f", its input has not 3 axes but {axes}")
    if len(tensor.dims) == 1:
        return "its weight is a vector"
    if any(size != 1 for size in tensor.dims[:-2]):
        return f"batched: its weight has {len(tensor.dims)} axes"
    if len(tensor.dims) > 2 and (axes is None or axes < len(tensor.dims)):
        return f"its weight has {len(tensor.dims)} axes, and its input may have fewer"
    return _constant(index, node, 1 - left, "weight")


def left_of(index: Index, node: NodeProto) -> bool:
    """Return whether ``node`` is a MatMul by a constant on the left."""
    return is_standard(node, "MatMul") and node.input[0] in index.constants and node.input[1] not in index.constants


def _constant(index: Index, node: NodeProto, position: int, what: str) -> str | None:
    """Return why an input, if it is given, is not one to decompose: it is computed, empty, or not float32."""
    if not _is_given(node, position):
        return None
    tensor = index.constants.get(node.input[position])
    if tensor is None:
        return f"its {what} is computed"
    if 0 in tensor.dims:
        return f"its {what} is empty"
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return None if kind == np.float32 else f"its {what} is {kind.name}, not float32"


def _axes(index: Index, name: str) -> int | None:
    """Return the number of axes of a tensor; None where it is not known."""
    if name in index.constants:
        return len(index.constants[name].dims)
    shape = index.shapes.get(name)
    return None if shape is None else len(shape)


def _is_given(node: NodeProto, position: int) -> bool:
    """Return whether the optional input at ``position`` is given."""
    return len(node.input) > position and bool(node.input[position])

"""Makes a float32 network of one that is quantised by QuantizeLinear and DequantizeLinear pairs (QDQ).

Weights and biases are float32 numbers again, on the grid they were rounded to. Pairs behind activations go. What such a
pair cuts off at zero, as its zero point is the least integer, a ReLU in its place still cuts off: quantisers leave out
the ReLU that was there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxlowrank.errors import UnsupportedModelError
from onnxlowrank.graph.index import attributes
from onnxlowrank.graph.normalise import prepare
from onnxlowrank.graph.outside import values
from onnxlowrank.graph.walk import names, rebuild, unique, walk

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


def dequantised(model: ModelProto, label: str) -> ModelProto:
    """Return the float32 network of a QDQ network; the model itself where nothing in it is quantised.

    Args:
        model: As it was given.
        label: What messages call it.

    Raises:
        UnsupportedModelError: If it is quantised in another way.
    """
    if not any(node.op_type in (_Q, _DQ) for node in walk(model.graph.node)):
        return model
    plain = prepare(model)
    constants = {tensor.name: tensor for tensor in plain.graph.initializer}
    quantised = {node.output[0]: node for node in plain.graph.node if node.op_type == _Q}
    outputs, taken = {output.name for output in plain.graph.output}, names(plain)
    nodes, added = [], []
    renamed: dict[str, str] = {}
    for node in plain.graph.node:
        if node.op_type == _Q:
            continue
        if node.op_type != _DQ:
            nodes.append(_reading(node, renamed))
            continue
        written = node.output[0]
        if node.input[0] in constants:
            added.append(numpy_helper.from_array(_numbers(node, constants, label), written))
            continue
        pair = quantised.get(node.input[0])
        if pair is None:
            raise UnsupportedModelError(
                f"{label} cannot be dequantised: what node '{node.name}' dequantises was not quantised by a "
                "QuantizeLinear; give the float32 network."
            )
        source = renamed.get(pair.input[0], pair.input[0])
        kind = "Relu" if source not in constants and _cuts_at_zero(node, constants) else "Identity"
        if kind == "Identity" and written not in outputs:
            renamed[written] = source
            continue
        name = unique(f"{written}/{kind}", taken)
        nodes.append(helper.make_node(kind, [source], [written], name=name))
    graph = plain.graph
    found = rebuild(
        plain, nodes=nodes, initializers=[*graph.initializer, *added], inputs=graph.input, outputs=graph.output
    )
    _check_all_gone(found, quantised, label)
    return found


def _reading(node: NodeProto, renamed: Mapping[str, str]) -> NodeProto:
    """Return a node that reads tensors under their new names."""
    copy = NodeProto()
    copy.CopyFrom(node)
    for position, name in enumerate(node.input):
        copy.input[position] = renamed.get(name, name)
    return copy


def _numbers(node: NodeProto, constants: Mapping[str, TensorProto], label: str) -> NDArray[np.float32]:
    """Return what a DequantizeLinear makes of a constant."""
    about = attributes(node)
    steps, scale = (values(constants[name]) if name in constants else None for name in node.input[:2])
    zero = values(constants[node.input[2]]) if len(node.input) > 2 and node.input[2] in constants else np.zeros(())
    is_computed = scale is None or (len(node.input) > 2 and node.input[2] and node.input[2] not in constants)
    if is_computed or about.get("block_size"):
        raise UnsupportedModelError(
            f"{label} cannot be dequantised: the scales of node '{node.name}' are computed, or are those of blocks; "
            "give the float32 network."
        )
    assert steps is not None
    assert scale is not None
    shape = [1] * steps.ndim
    if scale.size > 1:
        shape[about.get("axis", 1)] = scale.size
    zeros = zero.astype(np.int64).reshape(shape if zero.size > 1 else ())
    found = (steps.astype(np.int64) - zeros) * scale.astype(np.float64).reshape(shape if scale.size > 1 else ())
    return found.astype(np.float32)


def _cuts_at_zero(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Return whether the least integer that a DequantizeLinear reads stands for zero."""
    if len(node.input) < 3 or not node.input[2]:
        return True  # uint8, zero point 0
    if node.input[2] not in constants:
        return False
    zero = values(constants[node.input[2]])
    return bool((zero == np.iinfo(zero.dtype).min).all())


def _check_all_gone(model: ModelProto, quantised: Mapping[str, NodeProto], label: str) -> None:
    """Raise UnsupportedModelError if integers are still read, or given out."""
    read = {name for node in walk(model.graph.node) for name in node.input} | {one.name for one in model.graph.output}
    left = [node.name for name, node in quantised.items() if name in read]
    if left:
        raise UnsupportedModelError(
            f"{label} cannot be dequantised: what node '{left[0]}' quantises is read by more than DequantizeLinear "
            "nodes; give the float32 network."
        )

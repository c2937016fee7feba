"""What follows a layer's response: the residual Add, if any, and the activation."""

from __future__ import annotations

import math

import numpy as np
from onnx import NodeProto

from onnxlowrank.decompose.activation import IDENTITY, RELU, Activation, Smooth, clip, leaky_relu
from onnxlowrank.graph.elementwise import gelu
from onnxlowrank.graph.index import Index, Shape, attributes, is_standard

_SMOOTH = {"Sigmoid": "sigmoid", "Tanh": "tanh", "HardSwish": "hard_swish"}
_GATES = {"Sigmoid": "silu", "HardSigmoid": "hard_swish"}


def residual(index: Index, response: str) -> tuple[str, str | None]:
    """Return the preactivation and the shortcut of a layer with this ``response``.

    If all that reads the response is an Add with another computed tensor, of the same shape as far as shapes are
    known, then the preactivation is the sum and the shortcut that other tensor. It cannot depend on the response,
    which nothing else reads. Otherwise the preactivation is the response, and there is no shortcut.
    """
    position = index.sole_reader(response)
    if position is None or not is_standard(index.nodes[position], "Add"):
        return response, None
    add = index.nodes[position]
    shortcut = add.input[1] if add.input[0] == response else add.input[0]
    if shortcut in index.constants or not _may_equal(index.shapes.get(response), index.shapes.get(shortcut)):
        return response, None
    return add.output[0], shortcut


def activation(index: Index, tensor: str) -> Activation:
    """Return the activation applied to ``tensor``; the identity if the tensor is used for anything else as well."""
    if tensor in index.outputs:
        return IDENTITY
    readers = [index.nodes[position] for position in index.readers.get(tensor, [])]
    found: Activation = IDENTITY
    if len(readers) == 1:
        found = _single(index, readers[0])
    elif len(readers) == 2:
        found = _gated(index, tensor, readers)
    return found if found != IDENTITY else gelu(index, tensor) or IDENTITY


def _single(index: Index, node: NodeProto) -> Activation:
    """Return the activation that ``node`` alone computes."""
    if is_standard(node, "Relu"):
        return RELU
    if is_standard(node, "LeakyRelu"):
        return leaky_relu(float(attributes(node).get("alpha", 0.01)))
    if is_standard(node, "Clip"):
        low, high = _bound(index, node, 1, "min", -math.inf), _bound(index, node, 2, "max", math.inf)
        return IDENTITY if low is None or high is None or low >= high else clip(low, high)
    if is_standard(node, "Gelu"):
        return Smooth("gelu")
    if is_standard(node, *_SMOOTH):
        return Smooth(_SMOOTH[node.op_type])
    return IDENTITY


def _gated(index: Index, tensor: str, readers: list[NodeProto]) -> Activation:
    """Return the activation ``x * gate(x)`` that the two ``readers`` of ``tensor`` compute."""
    gate, product = readers
    if not is_standard(gate, *_GATES) or not is_standard(product, "Mul"):
        return IDENTITY
    opened = gate.output[0]
    if index.sole_reader(opened) is None or set(product.input) != {tensor, opened}:
        return IDENTITY
    if gate.op_type == "HardSigmoid" and not _is_hard_swish_gate(gate):
        return IDENTITY
    return Smooth(_GATES[gate.op_type])


def _is_hard_swish_gate(gate: NodeProto) -> bool:
    """Return whether a HardSigmoid is ``min(max(x / 6 + 1 / 2, 0), 1)``, as HardSwish has it."""
    values = attributes(gate)
    slope, offset = values.get("alpha", 0.2), values.get("beta", 0.5)
    return math.isclose(slope, 1 / 6, rel_tol=1e-4) and math.isclose(offset, 0.5, rel_tol=1e-4)


def _bound(index: Index, node: NodeProto, position: int, name: str, default: float) -> float | None:
    """Return one bound of a Clip, infinite where it is absent or float32's largest number, None if not constant."""
    if len(node.input) > position and node.input[position]:
        values = index.array(node.input[position])
        if values is None or values.size != 1:
            return None
        bound = float(values.item())
    else:
        bound = float(attributes(node).get(name, default))
    return bound if abs(bound) < float(np.finfo(np.float32).max) else default


def _may_equal(first: Shape | None, second: Shape | None) -> bool:
    """Return whether two shapes are the same as far as known; 1 beside an unknown size is taken for a broadcast."""
    if first is None or second is None:
        return True
    pairs = list(zip(first, second, strict=False))
    return len(first) == len(second) and all(a == b or (None in (a, b) and 1 not in (a, b)) for a, b in pairs)

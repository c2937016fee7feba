"""Finds the layers of a network: Conv, Gemm and MatMul(+Add) nodes with a constant weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import ModelProto, NodeProto

from onnxlowrank.graph.index import Index, attributes, is_standard
from onnxlowrank.graph.layer import FloatArray, Geometry, Layer
from onnxlowrank.graph.surroundings import activation, residual


def find_layers(model: ModelProto) -> list[Layer]:
    """Return the layers of a normalised model in graph order, their shapes still empty.

    A layer is a Conv over one or two spatial axes, a Gemm with ``transA = 0``, or a MatMul by a matrix on the right
    together with the Add of its bias, if that is all that reads the product. Weight and bias must be float32 and
    constant: initializers or Constant nodes, also behind Identity nodes, but not inputs with a default. Nodes with an
    empty weight compute nothing and are no layers. Nodes inside subgraphs are left alone.
    """
    index = Index.of(model)
    found = (_find(index, node) for node in index.nodes)
    return [_with_surroundings(index, layer) for layer in found if layer is not None and layer.weight.size]


def _find(index: Index, node: NodeProto) -> Layer | None:
    """Return the layer that begins at ``node``, as if nothing followed it."""
    if is_standard(node, "Conv"):
        return _conv(index, node)
    if is_standard(node, "Gemm"):
        return _gemm(index, node)
    if is_standard(node, "MatMul"):
        return _matmul(index, node)
    return None


def _with_surroundings(index: Index, layer: Layer) -> Layer:
    """Return ``layer`` with what follows it."""
    preactivation, shortcut = residual(index, layer.output)
    return replace(layer, preactivation=preactivation, shortcut=shortcut, activation=activation(index, preactivation))


def _conv(index: Index, node: NodeProto) -> Layer | None:
    """Return the layer of a Conv node."""
    weight, bias = index.weights(node.input[1]), _operand(index, node, 2)
    if weight is None or weight.ndim not in (3, 4) or (bias is None and _has_input(node, 2)):
        return None
    values, axes = attributes(node), weight.ndim - 2
    geometry = Geometry(
        strides=tuple(values.get("strides", (1,) * axes)),
        pads=tuple(values.get("pads", (0,) * 2 * axes)),
        dilations=tuple(values.get("dilations", (1,) * axes)),
        auto_pad=values.get("auto_pad", "NOTSET"),
    )
    return _layer(index, node, weight, bias, geometry, group=values.get("group", 1))


def _gemm(index: Index, node: NodeProto) -> Layer | None:
    """Return the layer of a Gemm node, ``alpha * A @ B + beta * C``."""
    values = attributes(node)
    weight, addend = index.weights(node.input[1]), _operand(index, node, 2)
    if weight is None or values.get("transA", 0) or (addend is None and _has_input(node, 2)):
        return None
    weight = np.float32(values.get("alpha", 1.0)) * (weight if values.get("transB", 0) else weight.T)
    bias = None
    if addend is not None:
        bias = _row(addend, weight.shape[0])
        if bias is None:
            return None
        bias = np.float32(values.get("beta", 1.0)) * bias
    return _layer(index, node, weight, bias, Geometry())


def _matmul(index: Index, node: NodeProto) -> Layer | None:
    """Return the layer of a MatMul node and, if there is one, the Add of its bias."""
    weight = index.weights(node.input[1])
    if weight is None or weight.ndim != 2 or node.input[0] in index.constants:
        return None
    layer = _layer(index, node, weight.T, None, Geometry())
    position = index.sole_reader(layer.output)
    if position is None or not is_standard(index.nodes[position], "Add"):
        return layer
    add = index.nodes[position]
    bias = index.weights(add.input[1] if add.input[0] == layer.output else add.input[0])
    if bias is None or bias.shape != (layer.outputs,):
        return layer
    return replace(layer, bias=bias, output=add.output[0], nodes=(node.name, add.name))


def _layer(
    index: Index, node: NodeProto, weight: FloatArray, bias: FloatArray | None, geometry: Geometry, group: int = 1
) -> Layer:
    """Return the layer of the single node ``node``."""
    return Layer(
        name=node.name,
        op=node.op_type,
        weight=np.ascontiguousarray(weight),
        bias=bias,
        geometry=geometry,
        group=group,
        input=node.input[0],
        output=node.output[0],
        nodes=(node.name,),
        preactivation=node.output[0],
        shares_weight=index.is_shared(node.input[1]),
    )


def _has_input(node: NodeProto, position: int) -> bool:
    """Return whether the optional input at ``position`` is given."""
    return len(node.input) > position and bool(node.input[position])


def _operand(index: Index, node: NodeProto, position: int) -> FloatArray | None:
    """Return the constant float32 input at ``position``, or None if it is absent or computed."""
    return index.weights(node.input[position]) if _has_input(node, position) else None


def _row(addend: FloatArray, outputs: int) -> FloatArray | None:
    """Return Gemm's ``C`` as one row ``[F]``, or None if its rows differ or it does not fit."""
    row = addend.reshape(-1)
    if row.size == 1 or (row.size == outputs and addend.shape[-1] == outputs):
        return np.broadcast_to(row, (outputs,)).copy()
    return None

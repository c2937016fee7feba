"""Finds the layers of a network: Conv, ConvTranspose, Gemm and MatMul(+Add) nodes with a constant weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import ModelProto, NodeProto

from onnxlowrank.graph.convolution import swapped
from onnxlowrank.graph.index import Index, attributes, is_standard
from onnxlowrank.graph.layer import FloatArray, Geometry, Layer
from onnxlowrank.graph.refusals import left_of, refusal
from onnxlowrank.graph.surroundings import activation, residual
from onnxlowrank.graph.tie import tie


def find_layers(model: ModelProto) -> list[Layer]:
    """Return the layers of a normalised model in the graph order of their first places, their shapes still empty.

    A layer is a Conv or ConvTranspose over one to three spatial axes, a Gemm, or a MatMul by a matrix on the right, or
    on the left of ``[N, C, T]``, together with the Add of its bias, if that is all that reads the product. Weight and
    bias must be float32 and constant: initializers or Constant nodes, also behind Identity nodes, but not inputs with a
    default. A weight without a single element is no layer's. Nodes inside subgraphs are left alone. Nodes that read the
    same weight are one layer with several places, if they have the same bias and attributes as well: see
    :mod:`onnxlowrank.graph.tie`.
    """
    index = Index.of(model)
    found = ((node, _find(index, node)) for node in index.nodes)
    layers = [
        (node.input[0 if left_of(index, node) else 1], _with_surroundings(index, layer))
        for node, layer in found
        if layer is not None and layer.weight.size
    ]
    return tie(index, layers)


def _find(index: Index, node: NodeProto) -> Layer | None:
    """Return the layer that begins at ``node``, as if nothing followed it; None where it is none."""
    if refusal(index, node) is not None:
        return None
    if is_standard(node, "Conv", "ConvTranspose"):
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
    """Return the layer of a Conv or a ConvTranspose node."""
    weight, bias = index.weights(node.input[1]), _operand(index, node, 2)
    if weight is None:
        return None
    values, axes, transposed = attributes(node), weight.ndim - 2, node.op_type == "ConvTranspose"
    geometry = Geometry(
        strides=tuple(values.get("strides", (1,) * axes)),
        pads=tuple(values.get("pads", (0,) * 2 * axes)),
        dilations=tuple(values.get("dilations", (1,) * axes)),
        auto_pad=values.get("auto_pad", "NOTSET"),
        transposed=transposed,
        output_padding=tuple(values.get("output_padding", ())),
    )
    group = values.get("group", 1)
    return _layer(index, node, swapped(weight, group) if transposed else weight, bias, geometry, group)


def _gemm(index: Index, node: NodeProto) -> Layer | None:
    """Return the layer of a Gemm node, ``alpha * A @ B + beta * C``."""
    values = attributes(node)
    weight, addend = index.weights(node.input[1]), _operand(index, node, 2)
    if weight is None:
        return None
    weight, alpha = weight if values.get("transB", 0) else weight.T, np.float32(values.get("alpha", 1.0))
    weight = weight if alpha == 1 else alpha * weight
    bias = None
    if addend is not None:
        bias = np.float32(values.get("beta", 1.0)) * np.broadcast_to(addend.reshape(-1), (weight.shape[0],))
    return replace(_layer(index, node, weight, bias, Geometry()), columns=bool(values.get("transA", 0)))


def _matmul(index: Index, node: NodeProto) -> Layer | None:
    """Return the layer of a MatMul node and, if there is one, the Add of its bias."""
    left = left_of(index, node)
    weight = index.weights(node.input[0 if left else 1])
    if weight is None:
        return None
    weight = weight.reshape(weight.shape[-2:])
    layer = _layer(index, node, weight if left else weight.T, None, Geometry())
    layer = replace(layer, input=node.input[1 if left else 0], columns=left)
    position = index.sole_reader(layer.output)
    if position is None or not is_standard(index.nodes[position], "Add"):
        return layer
    add = index.nodes[position]
    bias = index.weights(add.input[1] if add.input[0] == layer.output else add.input[0])
    if bias is None or not _is_bias(index, layer, bias):
        return layer
    return replace(layer, bias=bias.reshape(-1), output=add.output[0], nodes=(node.name, add.name))


def _is_bias(index: Index, layer: Layer, addend: FloatArray) -> bool:
    """Return whether what is added to the product of a MatMul is one number an output, and adds no axis."""
    wanted = (layer.outputs, 1) if layer.columns else (layer.outputs,)
    shape = addend.shape[max(addend.ndim - len(wanted), 0) :]
    extra = addend.ndim - len(wanted)
    known = index.shapes.get(layer.output)
    return shape == wanted and addend.size == layer.outputs and (extra <= 0 or addend.ndim <= len(known or ()))


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
    )


def _operand(index: Index, node: NodeProto, position: int) -> FloatArray | None:
    """Return the constant float32 input at ``position``, or None if it is absent."""
    return index.weights(node.input[position]) if len(node.input) > position and node.input[position] else None

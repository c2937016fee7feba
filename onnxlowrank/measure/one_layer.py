"""One layer, or a chain in its place, as a network of its own, to be timed.

On its own a Conv takes longer than inside a network: onnxruntime's CPU kernels work on blocks of channels (NCHWc), so a
lone Conv pays for bringing its input into that layout and its output out of it, which between two other Convs it does
not. What that adds is a small share of the time of a 3x3 Conv, but a large one for a 1x1 on few maps.

Hence :func:`framed`: the layer stands between two 1x1 Convs that cost next to nothing, one that makes its input out of
a single map and one that reads a single position of its output. They hand over and take the provider's layout,
whichever it is. What they cost is timed without the layer, :func:`frame`, and subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxlowrank.decompose.activation import RELU, Activation, PiecewiseLinear, Smooth
from onnxlowrank.graph.chain import Chain, as_chain
from onnxlowrank.graph.layer import FloatArray, Layer
from onnxlowrank.graph.permute import fold_gathers
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.measure.channel_block import channel_block

_INPUT, _SHORTCUT, _RESPONSE = "x", "shortcut", "response"
_SMOOTH = {"sigmoid": "Sigmoid", "tanh": "Tanh", "hard_swish": "HardSwish", "silu": "Sigmoid"}


def layer_model(layer: Layer, chain: Chain | None) -> ModelProto:
    """Return a network of ``layer``, or of ``chain`` in its place, with what onnxruntime fuses with it.

    That is the activation and, where the layer has a shortcut, the residual Add, whose other operand is a second
    input. The nodes are those that :func:`~onnxlowrank.graph.rewrite.rewrite` writes into networks.

    Args:
        layer: A layer whose shapes are known.
        chain: What computes it; None for the layer as it is.
    """
    place = helper.make_node("Identity", [_INPUT], [_RESPONSE], name=layer.name)
    inputs = _inputs(layer)
    empty = _model([place], inputs[:1], [_info(_RESPONSE, layer.output_shape)])
    alone = replace(layer, input=_INPUT, output=_RESPONSE, nodes=(layer.name,))
    written = rewrite(empty, [alone], {layer.name: chain or as_chain(layer)}).graph
    nodes, last = [*written.node], _RESPONSE
    if layer.shortcut is not None:
        nodes.append(helper.make_node("Add", [last, _SHORTCUT], ["sum"], name="sum"))
        last = "sum"
    behind, bounds = _activation(layer.activation, last)
    nodes += behind
    return _model(nodes, inputs, [_info(nodes[-1].output[0], layer.output_shape)], [*written.initializer, *bounds])


def framed(layer: Layer, chain: Chain | None, provider: str) -> ModelProto:
    """Return the network of :func:`layer_model` to be timed: that of a Conv stands in a frame.

    Gathers fold into the frame as they do into a network's neighbouring Convs. So they count only where they are sure
    to stay: at the end of a chain in front of a residual Add, and at the beginning where the layer reads an image.
    """
    model = layer_model(layer, chain)
    if not layer.is_conv:
        return model
    # The shortcut is read once more, as it is in most networks: the Add is then computed with the layer.
    return fold_gathers(_in_frame(model, [*model.graph.output, *model.graph.input[1:]], provider))


def frame(layer: Layer, provider: str) -> ModelProto | None:
    """Return the frame of :func:`framed` without the layer, for the same inputs; None where there is none."""
    inputs = _inputs(layer)
    return _in_frame(_model([], inputs, []), inputs, provider) if layer.is_conv else None


def random_feeds(model: ModelProto) -> dict[str, FloatArray]:
    """Return random numbers for the inputs of ``model``, whose shapes are known; equal models get equal ones."""
    rng = np.random.default_rng(0)
    return {info.name: rng.standard_normal(_shape(info)).astype(np.float32) for info in model.graph.input}


def _inputs(layer: Layer) -> list[ValueInfoProto]:
    """Return what the network of a layer reads."""
    shortcut = [] if layer.shortcut is None else [_info(_SHORTCUT, layer.output_shape)]
    return [_info(_INPUT, layer.input_shape), *shortcut]


def _in_frame(model: ModelProto, outputs: Sequence[ValueInfoProto], provider: str) -> ModelProto:
    """Return a network in which ``model`` gets its inputs from Convs, and Convs read the tensors ``outputs``.

    Inputs with fewer maps than fit a block stay: they are images, which no layer of a network has laid out either.
    """
    inputs, before, behind, results = [], [], [], []
    constants = [*model.graph.initializer]
    for info in model.graph.input:
        n, maps, *size = _shape(info)
        if maps < channel_block(provider):
            inputs.append(info)
            continue
        inputs.append(_info(f"{info.name}/map", (n, 1, *size)))
        weight = np.ones((maps, 1, *(1 for _ in size)), np.float32)
        constants.append(numpy_helper.from_array(weight, f"{info.name}/spread"))
        before.append(helper.make_node("Conv", [inputs[-1].name, constants[-1].name], [info.name]))
    for info in outputs:
        n, maps, *size = _shape(info)
        weight = np.full((1, maps, *(1 for _ in size)), 1 / maps, np.float32)
        constants.append(numpy_helper.from_array(weight, f"{info.name}/mean"))
        results.append(_info(f"{info.name}/position", (n, 1, *(1 for _ in size))))
        behind.append(helper.make_node("Conv", [info.name, constants[-1].name], [results[-1].name], strides=size))
    return _model([*before, *model.graph.node, *behind], inputs, results, constants)


def _activation(activation: Activation, tensor: str) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return the nodes that apply ``activation`` to ``tensor``, and their constants."""
    if activation == Smooth("gelu"):
        return _gelu(tensor)
    if isinstance(activation, Smooth):
        nodes = [helper.make_node(_SMOOTH[activation.name], [tensor], ["gate"], name="activation")]
        if activation.name == "silu":
            nodes.append(helper.make_node("Mul", [tensor, "gate"], ["product"], name="product"))
        return nodes, []
    if not isinstance(activation, PiecewiseLinear) or len(activation.pieces) == 1:
        return [], []
    (_, _, slope, least), (*_, last_slope, most) = activation.pieces[0], activation.pieces[-1]
    if activation == RELU:
        return [helper.make_node("Relu", [tensor], ["active"], name="activation")], []
    if slope and last_slope:
        return [helper.make_node("LeakyRelu", [tensor], ["active"], name="activation", alpha=slope)], []
    bounds = {"low": None if slope else least, "high": None if last_slope else most}
    constants = [
        numpy_helper.from_array(np.array(value, np.float32), key) for key, value in bounds.items() if value is not None
    ]
    names = [key if value is not None else "" for key, value in bounds.items()]
    return [helper.make_node("Clip", [tensor, *names], ["active"], name="activation")], constants


def _gelu(tensor: str) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return the nodes of a GELU as exporters write it, which onnxruntime fuses, and their constants."""
    constants = {"root": np.sqrt(2), "one": 1.0, "half": 0.5}
    steps = [
        ("Div", (tensor, "root"), "scaled"),
        ("Erf", ("scaled",), "erf"),
        ("Add", ("erf", "one"), "gate"),
        ("Mul", (tensor, "gate"), "product"),
        ("Mul", ("product", "half"), "active"),
    ]
    nodes = [helper.make_node(op, list(inputs), [output], name=output) for op, inputs, output in steps]
    return nodes, [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()]


def _model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    constants: Sequence[TensorProto] = (),
) -> ModelProto:
    graph = helper.make_graph(nodes, "layer", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _info(name: str, shape: Sequence[int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _shape(info: ValueInfoProto) -> tuple[int, ...]:
    return tuple(size.dim_value for size in info.type.tensor_type.shape.dim)

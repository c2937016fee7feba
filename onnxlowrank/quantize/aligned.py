"""Gives Convs that read a few float maps, an image of three colours, as many as onnxruntime's int8 code likes.

Where the input maps are no multiple of four it lays out every patch before it multiplies, which ``onnxlowrank profile``
of such a network shows. So maps of zeros are put behind them, in float32, before they are quantised, and zeros
into the weight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxlowrank.graph.index import attributes
from onnxlowrank.graph.outside import values
from onnxlowrank.graph.walk import names, rebuild, unique

_MAPS = 4


def with_aligned_maps(model: ModelProto, nodes: Collection[str]) -> tuple[ModelProto, Mapping[str, str]]:
    """Return a network that computes the same, and the tensors it is padded to, with those they are made of.

    Args:
        model: A float32 network.
        nodes: Names of its nodes that are to be int8. A Conv among them is padded where none of them writes its input.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    written = {name for node in model.graph.node if node.name in nodes for name in node.output}
    taken = names(model)
    made: list[NodeProto] = []
    added: dict[str, TensorProto] = {}
    padded: dict[tuple[str, int], str] = {}
    for node in model.graph.node:
        maps = _missing(node, constants) if node.name in nodes and node.input[0] not in written else 0
        if not maps:
            made.append(node)
            continue
        weight = constants[node.input[1]]
        axes = len(weight.dims) - 2
        if (node.input[0], maps) not in padded:
            name = unique(f"{node.name}/maps", taken)
            sizes = np.array([0, 0, *(0,) * axes, 0, maps, *(0,) * axes])
            added[name] = numpy_helper.from_array(sizes, unique(f"{name}.pads", taken))
            padded[node.input[0], maps] = unique(f"{name}/output", taken)
            outputs = [padded[node.input[0], maps]]
            made.append(helper.make_node("Pad", [node.input[0], added[name].name], outputs, name=name))
        if weight.name not in added:
            wide = np.pad(values(weight), [(0, 0), (0, maps), *[(0, 0)] * axes])
            added[weight.name] = numpy_helper.from_array(wide, unique(f"{weight.name}/maps", taken))
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[0], copy.input[1] = padded[node.input[0], maps], added[weight.name].name
        made.append(copy)
    if not padded:
        return model, {}
    graph = model.graph
    aligned = rebuild(
        model,
        nodes=made,
        initializers=[*graph.initializer, *added.values()],
        inputs=graph.input,
        outputs=graph.output,
    )
    return aligned, {name: source for (source, _), name in padded.items()}


def _missing(node: NodeProto, constants: Mapping[str, TensorProto]) -> int:
    """Return how many maps a node's input lacks."""
    if node.op_type != "Conv" or attributes(node).get("group", 1) != 1:
        return 0
    return int(-constants[node.input[1]].dims[1] % _MAPS)

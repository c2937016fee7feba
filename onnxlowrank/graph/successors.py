"""Which layers come next behind a layer."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.walk import reads


def next_layers(model: ModelProto, layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Return, by the name of each layer, those that depend on its response with no other one in between.

    There are several where paths branch: behind the last layer of a residual block the first ones of all later blocks.
    Layers that are computed somewhere before as well are left out: what changes them changes what the layer reads.

    Args:
        model: A normalised model.
        layers: Some layers of that model; all others are part of the paths.

    Returns:
        Layers in graph order.
    """
    owner = {node: layer for layer in layers for place in layer.places for node in place.nodes}
    depths = {layer.name: depth for depth, layer in enumerate(layers)}
    found: dict[str, dict[str, Layer]] = {layer.name: {} for layer in layers}
    carried: dict[str, set[str]] = {}  # by tensor: the layers it depends on with no other one in between
    for node in model.graph.node:
        before = set().union(*(carried.get(name, set()) for name in reads(node)))
        layer = owner.get(node.name)
        if layer is not None:
            for name in before - {layer.name}:
                if depths[name] < depths[layer.name]:
                    found[name][layer.name] = layer
            before = {layer.name}
        carried.update(dict.fromkeys(node.output, before))
    return {name: list(behind.values()) for name, behind in found.items()}

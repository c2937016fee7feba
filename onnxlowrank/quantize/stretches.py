"""Which layers of an int8 network stay in float32 together.

onnxruntime does not leave a float32 Conv or Gemm alone whose input comes out of a DequantizeLinear and whose response,
behind an activation or a pool perhaps, goes into a QuantizeLinear and nothing else: it quantises the weight when it
loads the file. So such a layer takes one behind it along, or one before it, until what stays in float32 really does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from onnx import ModelProto

from onnxlowrank.graph.index import Index, is_standard
from onnxlowrank.graph.layer import Layer
from onnxlowrank.quantize.qdq import chain_owner

_PASSED = ("Relu", "LeakyRelu", "Clip", "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice")
"""What it sees a QuantizeLinear through, or moves one before."""


def requantised(model: ModelProto) -> list[str]:
    """Return the names of the float32 nodes of a QDQ network that onnxruntime computes in integers all the same."""
    index = Index.of(model)
    writers = {name: node for node in index.nodes for name in node.output}
    found = []
    for node in index.nodes:
        if not is_standard(node, "Conv", "Gemm") or node.input[1] not in index.constants:
            continue
        before, tensor = writers.get(node.input[0]), node.output[0]
        if before is None or not is_standard(before, "DequantizeLinear"):
            continue
        reader = index.sole_reader(tensor)
        while reader is not None and is_standard(index.nodes[reader], *_PASSED):
            reader = index.sole_reader(index.nodes[reader].output[0])
        if reader is not None and is_standard(index.nodes[reader], "QuantizeLinear"):
            found.append(node.name)
    return found


def stretch(
    first: str,
    layers: Sequence[Layer],
    behind: Mapping[str, Sequence[Layer]],
    write: Callable[[Collection[str]], ModelProto],
) -> tuple[str, ...]:
    """Return the layers, by name, that have to stay in float32 for one of them to do so, itself among them.

    Args:
        first: The layer.
        layers: All layers, in graph order.
        behind: The next layers behind each, see :func:`~onnxlowrank.graph.successors.next_layers`.
        write: Makes the int8 network in which layers of these names stay in float32.
    """
    owners = {name: layer.name for layer in layers for place in layer.places for name in place.nodes}
    chosen = [first]
    for _ in layers:
        names = {owners.get(chain_owner(name) or name, "") for name in requantised(write(chosen))}
        stuck = [name for name in chosen if name in names]
        if not stuck:
            break
        before = [layer.name for layer in layers if any(one.name == stuck[-1] for one in behind[layer.name])]
        more = [one.name for one in behind[stuck[-1]] if one.name not in chosen] or [
            name for name in reversed(before) if name not in chosen
        ]
        if not more:
            break
        chosen.append(more[0])
    order = {layer.name: position for position, layer in enumerate(layers)}
    return tuple(sorted(chosen, key=order.__getitem__))

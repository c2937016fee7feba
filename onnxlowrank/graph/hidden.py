"""What cannot be seen in a network: the weights inside operators of onnxruntime's own, which its optimiser writes."""

from __future__ import annotations

from collections import Counter

from onnx import ModelProto, NodeProto

from onnxlowrank.errors import UnsupportedModelError
from onnxlowrank.graph.walk import walk

_DOMAIN = "com.microsoft"


def nothing_found(model: ModelProto, label: str) -> UnsupportedModelError:
    """Return the error for a network without a layer.

    Args:
        model: The network.
        label: What messages call it.
    """
    sentence = f"{label} has no Conv, Gemm or MatMul with a constant float32 weight: nothing to decompose"
    return UnsupportedModelError("; ".join([sentence, *hidden_layers(model)]))


def hidden_layers(model: ModelProto) -> list[str]:
    """Return a note on the nodes whose operators are onnxruntime's own and have weights; none where there are none."""
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    own = filter(_is_own, walk(model.graph.node))
    found = Counter(_shown(node) for node in own if matrices.intersection(node.input))
    kinds = ", ".join(f"{count} {op}" for op, count in sorted(found.items()))
    note = (
        f"the weights of {kinds} are not seen, operators that onnxruntime's optimiser writes: give the network as it "
        "was before onnxruntime optimised it"
    )
    return [note] if found else []


def _is_own(node: NodeProto) -> bool:
    return node.domain == _DOMAIN or node.domain.startswith(f"{_DOMAIN}.")


def _shown(node: NodeProto) -> str:
    return node.op_type if node.domain == _DOMAIN else f"{node.domain}.{node.op_type}"

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
    hidden = hidden_layers(model)
    return UnsupportedModelError(
        f"{label} has no Conv, Gemm or MatMul with a constant float32 weight: nothing to decompose"
        + (f"; {hidden}" if hidden else "")
    )


def hidden_layers(model: ModelProto) -> str:
    """Return a sentence about the nodes whose operators are onnxruntime's own and have weights; empty without any."""
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    found = Counter(
        _shown(node) for node in walk(model.graph.node) if _is_own(node) and matrices.intersection(node.input)
    )
    if not found:
        return ""
    kinds = ", ".join(f"{count} {op}" for op, count in sorted(found.items()))
    return (
        f"the weights of {kinds} are not seen, operators that onnxruntime's optimiser writes: give the network as it "
        "was before onnxruntime optimised it"
    )


def _is_own(node: NodeProto) -> bool:
    return node.domain == _DOMAIN or node.domain.startswith(f"{_DOMAIN}.")


def _shown(node: NodeProto) -> str:
    return node.op_type if node.domain == _DOMAIN else f"{node.domain}.{node.op_type}"

"""What cannot be decomposed: the weights inside operators of onnxruntime's own, and nodes that are no layers."""

from __future__ import annotations

from collections import Counter

from onnx import ModelProto, NodeProto

from onnxlowrank.errors import UnsupportedModelError
from onnxlowrank.graph.count import arithmetic
from onnxlowrank.graph.index import Index
from onnxlowrank.graph.refusals import refusal
from onnxlowrank.graph.unfuse import is_taken_apart
from onnxlowrank.graph.walk import subgraphs, walk

_DOMAIN = "com.microsoft"
_MOST_REASONS, _MOST_NAMES = 6, 3
"""How many reasons are told, and how many nodes of each."""


def nothing_found(model: ModelProto, normalised: ModelProto, label: str) -> UnsupportedModelError:
    """Return the error for a network without a layer, which says why its nodes are none.

    Args:
        model: The network.
        normalised: Normalised: all its nodes have names.
        label: What messages call it.
    """
    sentence = f"{label} has no Conv, Gemm or MatMul with a constant float32 weight: nothing to decompose"
    return UnsupportedModelError("; ".join([sentence, *hidden_layers(model), *_kept(normalised)]))


def _kept(model: ModelProto) -> list[str]:
    """Return a note on the nodes that multiply and accumulate, by the reasons why they are no layers."""
    index, by_reason = Index.of(model), dict[str, list[str]]()
    for node in model.graph.node:
        if arithmetic(node) is not None and not _is_own(node):
            by_reason.setdefault(refusal(index, node) or "no layer", []).append(node.name)
        for inner in walk(one for graph in subgraphs(node) for one in graph.node):
            if arithmetic(inner) is not None:
                name = inner.name or inner.op_type
                by_reason.setdefault(f"inside {node.op_type} '{node.name}'", []).append(name)
    some = list(by_reason.items())[:_MOST_REASONS]
    kept = ", ".join(f"{_listed(names)} ({reason})" for reason, names in some)
    return [f"kept are {kept}"] if kept else []


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def hidden_layers(model: ModelProto) -> list[str]:
    """Return a note on the nodes whose operators are onnxruntime's own and have weights; none where there are none."""
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    inside = (inner for node in model.graph.node for graph in subgraphs(node) for inner in walk(graph.node))
    outside = (node for node in model.graph.node if not is_taken_apart(node))
    own = filter(_is_own, (*outside, *inside))
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

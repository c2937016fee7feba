"""Takes apart what onnxruntime fused: a FusedConv is a Conv, perhaps with an addend, and the activation behind it.

Networks that were saved by onnxruntime's optimiser have them. onnxruntime fuses them again when it loads the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from onnx import ModelProto, NodeProto, helper

from onnxlowrank.graph.index import attributes
from onnxlowrank.graph.walk import names, rebuild, unique

_DOMAIN = "com.microsoft"
_OWN = ("activation", "activation_params")
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
}
"""Activations that are understood, with the names of their parameters."""


def is_taken_apart(node: NodeProto) -> bool:
    """Return whether a node is one that :func:`unfuse` takes apart."""
    if node.op_type != "FusedConv" or node.domain != _DOMAIN:
        return False
    values = attributes(node)
    wanted = _PARAMETERS.get(values.get("activation", ""))
    return wanted is not None and len(values.get("activation_params", wanted)) == len(wanted)


def unfuse(model: ModelProto) -> ModelProto:
    """Return ``model``, or if it has FusedConv nodes in its main graph, a copy with what they are made of.

    The Conv keeps the name of the node, the last node writes its output.

    Args:
        model: With a unique name for every node.
    """
    if not any(map(is_taken_apart, model.graph.node)):
        return model
    taken, opset = names(model), next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    nodes: list[NodeProto] = []
    constants: dict[str, float] = {}
    for node in model.graph.node:
        nodes += _parts(node, taken, opset, constants) if is_taken_apart(node) else [node]
    added = [helper.make_tensor(name, 1, [], [value]) for name, value in constants.items()]
    graph = model.graph
    return rebuild(
        model, nodes=nodes, initializers=[*graph.initializer, *added], inputs=graph.input, outputs=graph.output
    )


def _parts(node: NodeProto, taken: set[str], opset: int, constants: dict[str, float]) -> Iterator[NodeProto]:
    """Yield the nodes that compute what a FusedConv does, and add the constants they read."""
    values = attributes(node)
    own = {name: value for name, value in values.items() if name not in _OWN}
    operands = list(node.input)
    addend = operands[3] if len(operands) > 3 and operands[3] else None
    tensor = unique(f"{node.name}/conv", taken)
    yield helper.make_node("Conv", _trimmed(operands[:3]), [tensor], name=node.name, **own)
    if addend is not None:
        total = unique(f"{node.name}/sum", taken)
        yield helper.make_node("Add", [tensor, addend], [total], name=total)
        tensor = total
    op = values["activation"]
    parameters: dict[str, Any] = dict(
        zip(_PARAMETERS[op], values.get("activation_params", ()), strict=bool(_PARAMETERS[op]))
    )
    inputs = [tensor]
    if op == "Clip" and opset >= 11:  # until then its bounds were attributes
        for name, value in parameters.items():
            inputs.append(unique(f"{node.name}/{name}", taken))
            constants[inputs[-1]] = value
        parameters = {}
    yield helper.make_node(op, inputs, [node.output[0]], name=unique(f"{node.name}/{op}", taken), **parameters)


def _trimmed(operands: Iterable[str]) -> list[str]:
    """Return inputs without those at the end that are left out."""
    kept = list(operands)
    while kept and not kept[-1]:
        kept.pop()
    return kept

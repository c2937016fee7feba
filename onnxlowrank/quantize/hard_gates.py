"""Hard sigmoids in integers: a sum that ends where its range does.

Rounding to a range cuts off what lies beyond its ends. So with the ends 0 and at most 1,

    hard_sigmoid(x) = clip(a x + b, 0, 1)  =  rounded(a x + b)

and ``a x`` are the integers that ``x`` is, of steps ``a`` times as long. A hard swish is ``x`` times that.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxlowrank.graph.index import attributes, is_standard
from onnxlowrank.graph.walk import names, readers, rebuild, unique

HARD_GATE = "HardSigmoid"


def with_gates(model: ModelProto) -> tuple[ModelProto, list[str]]:
    """Return a network whose hard swishes are products, and the tensors that are new in it, each within 0 and 1."""
    if not any(is_standard(node, "HardSwish") for node in model.graph.node):
        return model, []
    taken = names(model)
    nodes: list[NodeProto] = []
    gates = []
    for node in model.graph.node:
        if not is_standard(node, "HardSwish"):
            nodes.append(node)
            continue
        name = unique(f"{node.name}/gate", taken)
        gates.append(name)
        nodes.append(helper.make_node(HARD_GATE, list(node.input), [name], name, alpha=1 / 6, beta=0.5))
        nodes.append(helper.make_node("Mul", [node.input[0], name], list(node.output), node.name))
    graph = model.graph
    spelt = rebuild(model, nodes=nodes, initializers=graph.initializer, inputs=graph.input, outputs=graph.output)
    return spelt, gates


def as_sums(
    nodes: Iterable[NodeProto], initializers: Iterable[TensorProto]
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return nodes and constants in which sums stand for the hard sigmoids that read integers and are rounded.

    Args:
        nodes: Of a QDQ network, in order.
        initializers: Its constants.
    """
    given, constants = list(nodes), list(initializers)
    values = {tensor.name: tensor for tensor in constants}
    writers = {name: node for node in given for name in node.output}
    reading = readers(given)
    found: list[NodeProto] = []
    spent: set[str] = set()
    for node in given:
        pair = writers.get(node.input[0]) if is_standard(node, HARD_GATE) else None
        behind = reading.get(node.output[0], [])
        known = attributes(node)
        slope, offset = np.float32(known.get("alpha", 0.2)), np.array(known.get("beta", 0.5), np.float32)
        rounded = len(behind) == 1 and is_standard(behind[0], "QuantizeLinear") and slope > 0  # as steps are
        if pair is None or not is_standard(pair, "DequantizeLinear") or not rounded or pair.input[1] not in values:
            found.append(node)
            continue
        if len(reading[node.input[0]]) == 1:
            spent.add(pair.name)
        own = [f"{node.output[0]}/{part}" for part in ("scale", "scaled", "one", "zero", "offset", "offset_given")]
        scale, scaled, one, zero, step, given_offset = own
        steps = numpy_helper.to_array(values[pair.input[1]])
        constants += [
            numpy_helper.from_array(slope * steps, scale),
            numpy_helper.from_array(np.array(1, np.uint8), one),
            numpy_helper.from_array(np.array(0, np.uint8), zero),
            numpy_helper.from_array(offset, step),
        ]
        found += [
            helper.make_node("DequantizeLinear", [pair.input[0], scale, *pair.input[2:]], [scaled], scaled),
            helper.make_node("DequantizeLinear", [one, step, zero], [given_offset], given_offset),
            helper.make_node("Add", [scaled, given_offset], list(node.output), node.name),
        ]
    return [node for node in found if node.name not in spent], constants

"""One range for all that a Concat joins, so that joining is copying.

What a Concat gives has one range. Integers of another range are rounded once more on their way into it: that takes time
and loses a little. A tensor that nothing but the Concat reads may as well have the range of the whole to begin with.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnx import ModelProto

from onnxlowrank.graph.walk import readers
from onnxlowrank.quantize.ranges import Range

_WITH_OWN_RANGE = ("Conv", "Gemm", "MatMul", "Mul", "Add", "Relu", "GlobalAveragePool", "Concat", "LeakyRelu")
"""Whose results are rounded to whatever range they are given; what moves integers has the range of what it reads."""


def with_joined_ranges(
    model: ModelProto, nodes: Collection[str], ranges: Mapping[str, Range], exposed: Collection[str] = ()
) -> dict[str, Range]:
    """Return ranges in which those of Concats are also those of what they alone read.

    Args:
        model: A float32 network.
        nodes: Names of the nodes that are to be computed in integers.
        ranges: By tensor.
        exposed: Tensors that keep their range.
    """
    found = dict(ranges)
    writers = {name: node for node in model.graph.node for name in node.output}
    reading = readers(model.graph.node)
    kept = {output.name for output in model.graph.output}.union(exposed)
    for node in reversed(model.graph.node):
        if node.op_type != "Concat" or node.name not in nodes:
            continue
        ends = found[node.output[0]]
        for name in node.input:
            writer = writers.get(name)
            if writer is None or writer.name not in nodes or len(reading[name]) > 1 or name in kept:
                continue
            is_relu = writer.op_type == "Relu"  # which its range is to cut off
            if writer.op_type in _WITH_OWN_RANGE and not (is_relu and ends.low < 0):
                found[name] = ends
    return found

"""Takes back what rounding moves the mean of every response by (Nagel et al. 2019, Sec. 4.2, measured on inputs).

Weights and activations are rounded to the nearest step, and each output map sums up thousands of such errors, whose
mean is not zero. It is the same at all positions, so the bias can take it back. From the input of the network to its
output, each layer is compared as it is computed behind the layers that have been corrected before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from onnxlowrank.graph.index import is_standard
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.progress import Advance
from onnxlowrank.quantize.observe import activations


def with_corrected_biases(float32: ModelProto, int8: ModelProto, inputs: Inputs, advance: Advance) -> ModelProto:
    """Return a copy of an int8 network whose layers have the mean responses of the float32 network, map by map.

    Layers without an int32 bias stay as they are.

    Args:
        float32: The network.
        int8: The same, quantised; its nodes go by the same names.
        inputs: Sample inputs.
        advance: Told of all that is done, 1 in sum.
    """
    corrected = ModelProto()
    corrected.CopyFrom(int8)
    biases = _int32_biases(corrected)
    before = {node.name: node for node in float32.graph.node}
    nodes = [node for node in float32.graph.node if node.name in biases]
    after = {node.name: node for node in corrected.graph.node}
    steps = 1 / (len(nodes) + 1)
    wanted = _means(float32, nodes, inputs)
    advance(steps)
    for node in nodes:
        tensor, scales = biases[node.name]
        (found,) = _means(corrected, [after[node.name]], inputs).values()
        moved = wanted[before[node.name].output[0]] - found
        if np.isfinite(moved).all():
            values = numpy_helper.to_array(tensor) + np.rint(moved / scales)
            info = np.iinfo(np.int32)
            rounded = np.clip(values, info.min, info.max).astype(np.int32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
        advance(steps)
    return corrected


def _int32_biases(int8: ModelProto) -> dict[str, tuple[onnx.TensorProto, NDArray[np.float64]]]:
    """Return by node the bias and its scales, where the bias is int32 and no other node has it."""
    constants = {tensor.name: tensor for tensor in int8.graph.initializer}
    pairs = {node.output[0]: node for node in int8.graph.node if is_standard(node, "DequantizeLinear")}
    found = {}
    for node in int8.graph.node:
        if is_standard(node, "Conv", "Gemm") and len(node.input) == 3 and node.input[2] in pairs:
            name, scale = pairs[node.input[2]].input[:2]
            if constants[name].data_type == onnx.TensorProto.INT32:
                found[node.name] = constants[name], numpy_helper.to_array(constants[scale]).astype(np.float64)
    return found


def _means(model: ModelProto, nodes: Sequence[NodeProto], inputs: Inputs) -> dict[str, NDArray[np.float64]]:
    """Return the mean of every output map of nodes, by the tensors they write."""
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for values in activations(model, [node.output[0] for node in nodes], inputs, lambda amount: None):
        for name, value in values.items():
            by_map = np.moveaxis(value, 1, 0).reshape(value.shape[1], -1)
            sums[name] = sums.get(name, 0.0) + by_map.sum(axis=1, dtype=np.float64)
            counts[name] = counts.get(name, 0) + by_map.shape[1]
    return {name: total / max(counts[name], 1) for name, total in sums.items()}

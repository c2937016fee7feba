"""What layers of an int8 network are made of: the integers they read, weight and bias, and the sizes of their steps.

A layer here is one Conv, Gemm or MatMul node, behind the DequantizeLinears of all it reads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from onnxlowrank.graph.index import attributes, is_standard
from onnxlowrank.graph.probe import sampled_positions
from onnxlowrank.graph.walk import readers

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Int8Layer:
    """An int8 layer.

    Attributes:
        node: Of the int8 network.
        source: The uint8 tensor it reads.
        scale: Size of a step of that.
        zero: The number of steps that stands for zero.
        weight: Integers ``[F, C/group, *kernel]`` of a Conv, otherwise ``[F, C]`` or ``[C, F]``.
        steps: ``[F]``, the size of a step of every row of the weight.
        own_weight: Whether no other node reads the weight.
        bias: Integers ``[F]``, of a step of ``steps * scale``; None where there is none, or another node reads it.
    """

    node: NodeProto
    source: str
    scale: float
    zero: int
    weight: TensorProto
    steps: Float64Array
    own_weight: bool
    bias: TensorProto | None

    @property
    def columns(self) -> int:
        """Number ``D`` of weights of a row."""
        return int(math.prod(self.weight.dims)) // len(self.steps)

    @property
    def group(self) -> int:
        """Groups of a Conv, otherwise 1."""
        return int(attributes(self.node).get("group", 1))

    def rows_of(self, weight: NDArray[np.generic]) -> Float64Array:
        """Return a weight of the layer's shape as ``[F, D]``."""
        by_row = weight if self._rows_first else weight.T
        return by_row.reshape(by_row.shape[0], -1).astype(np.float64)

    def with_rows(self, rows: NDArray[np.int64]) -> TensorProto:
        """Return the weight of other integers ``[F, D]``."""
        shape = tuple(self.weight.dims)
        values = rows.reshape(shape) if self._rows_first else rows.T
        return numpy_helper.from_array(np.ascontiguousarray(values.astype(np.int8)), self.weight.name)

    def with_bias(self, moved: Float64Array) -> TensorProto:
        """Return the bias moved by real numbers ``[F]``, to the nearest steps."""
        assert self.bias is not None
        values = numpy_helper.to_array(self.bias) + np.rint(moved / (self.steps * self.scale))
        info = np.iinfo(np.int32)
        return numpy_helper.from_array(np.clip(values, info.min, info.max).astype(np.int32), self.bias.name)

    def read(self, source: NDArray[np.generic], numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the rows of the weight meet, ``[n, group, D]``, at some positions of the response.

        Args:
            source: What the layer reads.
            numbers: Random numbers that choose the positions, see :mod:`onnxlowrank.graph.probe`.
        """
        if self.node.op_type != "Conv":
            inner = source.reshape(len(source), -1, source.shape[-1])
            found = inner[:, sampled_positions(numbers, inner.shape[1])].reshape(-1, 1, source.shape[-1])
        else:
            found = self._patches(source, numbers)
        return (found.astype(np.float32) - np.float32(self.zero)) * np.float32(self.scale)

    @property
    def _rows_first(self) -> bool:
        return self.node.op_type == "Conv" or bool(attributes(self.node).get("transB", 0))

    def _patches(self, source: NDArray[np.generic], numbers: NDArray[np.float32]) -> NDArray[np.generic]:
        """Return the integers under the kernel, ``[n, group, D]``."""
        known, kernel = attributes(self.node), tuple(self.weight.dims[2:])
        axes, size = len(kernel), source.shape[2:]
        strides, dilations = known.get("strides", [1] * axes), known.get("dilations", [1] * axes)
        spans = [dilations[axis] * (kernel[axis] - 1) + 1 for axis in range(axes)]
        pads = list(known.get("pads", [0] * 2 * axes))
        if known.get("auto_pad", "NOTSET") != "NOTSET":
            pads = [0] * 2 * axes
            for axis in range(axes if known["auto_pad"] != "VALID" else 0):
                missing = max((math.ceil(size[axis] / strides[axis]) - 1) * strides[axis] + spans[axis] - size[axis], 0)
                first = missing // 2 if known["auto_pad"] == "SAME_UPPER" else -(-missing // 2)
                pads[axis], pads[axes + axis] = first, missing - first
        around = [(0, 0), (0, 0), *((pads[axis], pads[axes + axis]) for axis in range(axes))]
        padded = np.pad(source, around, constant_values=self.zero)
        placed = [(padded.shape[2 + axis] - spans[axis]) // strides[axis] + 1 for axis in range(axes)]
        positions = np.unravel_index(sampled_positions(numbers, math.prod(placed)), placed)
        taps = []
        for tap in itertools.product(*map(range, kernel)):
            where = [positions[axis] * strides[axis] + tap[axis] * dilations[axis] for axis in range(axes)]
            taps.append(padded[:, :, *where])  # [N, C, positions]
        found = np.stack(taps, axis=-1).swapaxes(1, 2)  # [N, positions, C, taps]
        return found.reshape(found.shape[0] * found.shape[1], self.group, -1)


def largest_weight(weight_bits: int) -> int:
    """Return the number of steps that weights of 8 bits, or of 7, have to either side of zero."""
    return {7: 64, 8: 127}[weight_bits]


def map_axis(node: NodeProto) -> int:
    """Return the axis of the maps in what a layer's node writes."""
    return 1 if node.op_type == "Conv" else -1


def sampled_responses(
    node: NodeProto, values: NDArray[np.float32], numbers: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the rows ``[n, F]`` of what a layer's node writes, at the positions that these numbers choose."""
    flat = np.moveaxis(values, map_axis(node), -1)
    flat = flat.reshape(len(values), -1, flat.shape[-1])
    found: NDArray[np.float32] = flat[:, sampled_positions(numbers, flat.shape[1])].reshape(-1, flat.shape[2])
    return found


def int8_layers(model: ModelProto) -> list[Int8Layer]:
    """Return the int8 layers of a network, in graph order."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = {node.output[0]: node for node in model.graph.node if is_standard(node, "DequantizeLinear")}
    reads = {name: len(nodes) for name, nodes in readers(model.graph.node).items()}
    found = []
    for node in model.graph.node:
        if not is_standard(node, "Conv", "Gemm", "MatMul") or attributes(node).get("transA"):
            continue
        if not all(name in pairs for name in node.input[:2]) or pairs[node.input[1]].input[0] not in constants:
            continue
        data, weight = pairs[node.input[0]], pairs[node.input[1]]
        alone = reads[weight.input[0]] == reads[node.input[1]] == 1
        bias = None
        if len(node.input) == 3 and node.input[2] in pairs:
            name = pairs[node.input[2]].input[0]
            if constants[name].data_type == TensorProto.INT32 and reads[name] == reads[node.input[2]] == 1:
                bias = constants[name]
        tensor = constants[weight.input[0]]
        outputs = tensor.dims[0 if node.op_type == "Conv" or attributes(node).get("transB") else 1]
        steps = np.broadcast_to(_real(constants, weight.input[1]), outputs)
        zero = int(numpy_helper.to_array(constants[data.input[2]]))
        scale = float(_real(constants, data.input[1]))
        found.append(Int8Layer(node, data.input[0], scale, zero, tensor, steps, alone, bias))
    return found


def _real(constants: Mapping[str, TensorProto], name: str) -> Float64Array:
    return numpy_helper.to_array(constants[name]).astype(np.float64)

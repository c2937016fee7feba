"""Operators that treat every map of a tensor ``[N, C, ...]`` by itself, and orders of maps that pass through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from onnxlowrank.graph.chain import IntArray
from onnxlowrank.graph.index import attributes, is_standard

Array = NDArray[Any]
Read = Callable[[str], Array | None]
"""The value of a constant by its name, or None if that tensor is not constant."""

_ALIKE = (
    "Abs", "Ceil", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Pad", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Softplus",
    "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool",
)  # fmt: skip
_VECTORS = {"BatchNormalization": (1, 2, 3, 4), "InstanceNormalization": (1, 2)}
_BROADCAST = ("Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "PRelu", "Sub", "Sum")


class NotFoldableError(Exception):
    """An order of maps does not get past an operator."""


@dataclass(frozen=True, eq=False)
class Order:
    """How the maps of a tensor are found in one that takes its place: map ``j`` is map ``maps[j]`` of its ``size``."""

    maps: IntArray
    size: int

    @property
    def is_unique(self) -> bool:
        """Whether no map is found twice."""
        return len(np.unique(self.maps)) == len(self.maps)

    def same(self, other: Order) -> bool:
        """Return whether two orders are equal."""
        return self.size == other.size and np.array_equal(self.maps, other.maps)

    def blocks(self, length: int) -> Order:
        """Return the order of what has ``length`` entries a map."""
        return Order((self.maps[:, None] * length + np.arange(length)).ravel(), self.size * length)

    def spread(self, values: Array, axis: int, fill: float = 1.0) -> Array:
        """Return a constant, with one entry a map on ``axis``, for the other tensor; ``fill`` is for its new maps.

        Raises:
            NotFoldableError: A map is found twice.
        """
        if not self.is_unique:
            raise NotFoldableError
        result = self._full(values, axis, fill)
        np.moveaxis(result, axis, 0)[self.maps] = np.moveaxis(values, axis, 0)
        return result

    def summed(self, weight: Array, axis: int) -> Array:
        """Return the weight that makes of the other tensor what ``weight``, contracted on ``axis``, makes of this."""
        if self.is_unique:
            return self.spread(weight, axis, 0.0)
        result = self._full(weight, axis, 0.0)
        np.add.at(np.moveaxis(result, axis, 0), self.maps, np.moveaxis(weight, axis, 0))
        return result

    def _full(self, values: Array, axis: int, fill: float) -> Array:
        return np.full((*values.shape[:axis], self.size, *values.shape[axis + 1 :]), fill, values.dtype)


def operands(node: NodeProto, read: Read) -> list[int]:
    """Return the positions of the inputs of whose maps, each for itself, the output's maps are made.

    Raises:
        NotFoldableError: ``node`` mixes maps, or is not known not to.
    """
    if is_standard(node, *_VECTORS) or (is_standard(node, *_ALIKE) and _treats_alike(node, read)):
        return [0]
    if is_standard(node, *_BROADCAST):
        return [position for position, name in enumerate(node.input) if read(name) is None]
    raise NotFoldableError


def vectors(node: NodeProto, read: Read, rank: int | None, maps: int) -> list[tuple[int, int]]:
    """Return which constants of a node have one entry a map.

    Args:
        node: One that has :func:`operands`.
        read: Reads constants.
        rank: Number of axes of the operands, None if unknown.
        maps: Number of their maps.

    Returns:
        The positions of these inputs, each with the axis of the maps.

    Raises:
        NotFoldableError: A constant is not known to fit.
    """
    if is_standard(node, *_VECTORS):
        found = [(position, 0) for position in _VECTORS[node.op_type]]
    elif is_standard(node, *_BROADCAST):
        found = [(position, axis) for position, name in enumerate(node.input) if (axis := _axis(read(name), rank)) >= 0]
    else:
        found = []
    for position, axis in found:
        value = read(node.input[position])
        if value is None or value.shape[axis] != maps:
            raise NotFoldableError
    return found


def _axis(value: Array | None, rank: int | None) -> int:
    """Return the axis on which a broadcast constant varies with the map, -1 if there is none."""
    if value is None or value.ndim == 0:
        return -1
    if rank is None or value.ndim > rank:
        raise NotFoldableError
    axis = value.ndim - (rank - 1)
    return axis if axis >= 0 and value.shape[axis] > 1 else -1


def _treats_alike(node: NodeProto, read: Read) -> bool:
    """Return whether a node of ``_ALIKE`` really treats all maps alike."""
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        training = read(node.input[2])
        return training is not None and not training.any()
    if node.op_type == "Pad":
        pads: Sequence[int] | Array | None = attributes(node).get("pads")
        if pads is None:
            pads = read(node.input[1]) if len(node.input) > 1 else None
        has_axes = len(node.input) > 3 and bool(node.input[3])
        return pads is not None and not has_axes and not np.reshape(pads, (2, -1))[:, :2].any()
    return True

"""Writes nodes that compute with shapes: sizes that are the same on every input become constants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxlowrank.graph.index import Shape
from onnxlowrank.graph.walk import unique


class NodeWriter:
    """Collects nodes, with operators that mean the same from opset 9 on; equal ones are written once.

    Where sizes are constants, what depends on them alone is shared by all tensors of equal size: onnxruntime takes
    seconds to open a network with ten thousand nodes more.

    Attributes:
        nodes: What was written.
        initializers: The constants it reads.
    """

    def __init__(self, prefix: str, taken: set[str], shapes: Mapping[str, Shape]) -> None:
        """Write nothing yet.

        Args:
            prefix: Of all names.
            taken: Names in use; those of nodes and constants are added.
            shapes: Of tensors that are there, None for sizes that may change from input to input.
        """
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._prefix, self._taken, self._shapes = prefix, taken, dict(shapes)
        self._written: dict[tuple[str, tuple[str, ...], str], str] = {}
        self._constants: dict[tuple[str, tuple[int, ...], tuple[float, ...]], str] = {}
        self._values: dict[str, np.ndarray[Any, Any]] = {}

    def reshaped(self, tensor: str, *sizes: str) -> str:
        """Reshape a tensor, be it one without samples, of which onnxruntime cannot tell the size -1.

        Of shapes right behind a Concat it makes constants with a -1 by itself, hence the Abs.
        """
        shape = self.joined(*sizes)
        return self.node("Reshape", tensor, shape if shape in self._values else self.node("Abs", shape))

    def joined(self, *sizes: str) -> str:
        """Return several int64 vectors as one."""
        if all(name in self._values for name in sizes):
            return self.constant([size for name in sizes for size in self._values[name]])
        return self.node("Concat", *sizes, axis=0)

    def positions(self, tensor: str, first: int) -> str:
        """Return the product of all sizes but two, from axis ``first`` on, as int64 ``[1]``."""
        known = self._shapes.get(tensor)
        sizes = () if known is None else known[first : len(known) - 2 + first]
        if known is not None and None not in sizes:
            return self.constant([math.prod(size for size in sizes if size is not None)])
        shape = self.node("Shape", tensor)
        count = self.node("Add", self.node("Shape", shape), self.constant([-2]))
        axes = self.node("Add", self.count(count), self.constant([first]))
        return self.node("ReduceProd", self.node("Gather", shape, axes, axis=0))

    def count(self, total: str) -> str:
        """Return 0, 1, ..., ``total`` - 1 as int64; ``total`` is int64 ``[1]``."""
        ones = self.node("ConstantOfShape", total, value=numpy_helper.from_array(np.ones(1, np.int64)))
        return self.node("Reshape", self.node("NonZero", ones), self.constant([-1]))

    def size(self, tensor: str, axis: int) -> str:
        """Return the size of one axis as int64 ``[1]``; a negative ``axis`` counts from the last."""
        known = self.known(tensor, axis)
        if known is not None:
            return self.constant([known])
        shape = self.node("Shape", tensor)
        if axis >= 0:
            return self.node("Gather", shape, self.constant([axis]), axis=0)
        end = self.node("Add", self.node("Shape", shape), self.constant([axis]))
        return self.node("Gather", shape, end, axis=0)

    def known(self, tensor: str, axis: int) -> int | None:
        """Return the size of one axis where it is the same on every input."""
        shape = self._shapes.get(tensor, ())
        return shape[axis] if -len(shape) <= axis < len(shape) else None

    def of_shape(self, tensor: str, shape: Shape) -> str:
        """Note the shape of a tensor, and return its name."""
        self._shapes[tensor] = shape
        return tensor

    def value(self, name: str) -> int | None:
        """Return the number that an int64 ``[1]`` is, where it is a constant."""
        return int(self._values[name][0]) if name in self._values else None

    def double(self, tensor: str) -> str:
        """Cast to float64, in which positions are exact."""
        return self.node("Cast", tensor, to=TensorProto.DOUBLE)

    def int64(self, tensor: str) -> str:
        """Cast to int64."""
        return self.node("Cast", tensor, to=TensorProto.INT64)

    def constant(self, values: ArrayLike) -> str:
        """Return the initializer with these few numbers; equal numbers share one."""
        array = np.asarray(values)
        key = (array.dtype.name, array.shape, tuple(array.ravel().tolist()))
        if key not in self._constants:
            self._constants[key] = self.initializer("constant", array)
            self._values[self._constants[key]] = array
        return self._constants[key]

    def initializer(self, name: str, values: np.ndarray[Any, Any]) -> str:
        """Add an initializer and return its name."""
        unused = unique(f"{self._prefix}/{name}", self._taken)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), unused))
        return unused

    def node(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Return the name of the output of a node, which is added unless an equal one is there."""
        key = (op, inputs, repr(sorted(attributes.items())))
        if output is None and key in self._written:
            return self._written[key]
        name = unique(f"{self._prefix}/{op}", self._taken)
        written = output or unique(f"{name}:0", self._taken)
        self.nodes.append(helper.make_node(op, list(inputs), [written], name=name, **attributes))
        self._written[key] = written
        return written

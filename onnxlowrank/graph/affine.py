"""Constants that elementwise nodes multiply with, or add, go into the convolutions beside them.

Behind a convolution, for numbers ``s`` and ``t`` that are one a map, or one for all,

    s (W * x + b) + t  =  (s W) * x + (s b + t)

and in front of one, where ``W_i`` is what meets input map ``i``, and in the second line nothing is padded,

    W * (s x)  =  (W s) * x
    W * (x + t)  =  W * x + sum_i W_i t_i

Where there is padding, ``s x + t`` becomes ``s (x + t / s)``, of which one addition is left. onnxruntime does this for
normalisations; exporters leave much more of it (learnable affine blocks, scores over a temperature).

Hard sigmoids that are spelt out, ``clip(x + 3, 0, 6) / 6``, become the operator, by itself or in ``x clip(x + 3, 0, 6)
/ 6``: what comes out is the hard swish that a layer's fit knows as its activation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxlowrank.graph.index import Index, attributes, is_standard
from onnxlowrank.graph.walk import names, rebuild, unique

Array = NDArray[np.float64]
_AFFINE = ("Mul", "Add", "Div", "Sub")
_LEAST = 1e-6
"""A factor that is smaller is not divided by."""


def fold_affine(model: ModelProto) -> ModelProto:
    """Return a normalised model, or if there is anything to fold, a copy with fewer nodes that computes the same.

    Weights that several nodes share stay, and so do tensors that are outputs. Nodes keep their names.
    """
    folding = _Folding(model)
    folding.run()
    return folding.model() if folding.is_changed else model


@dataclass(frozen=True)
class _Affine:
    """``scale * x + shift``, each a number a map or one number.

    Attributes:
        source: ``x``.
        scale: Multiplied first.
        shift: Added then.
    """

    source: str
    scale: Array
    shift: Array


class _Folding:
    def __init__(self, model: ModelProto) -> None:
        self._model, self._index = model, Index.of(model)
        self._taken = names(model)
        self._nodes: dict[str, NodeProto] = {}
        for node in model.graph.node:
            self._nodes[node.name] = NodeProto()
            self._nodes[node.name].CopyFrom(node)
        self._writers = {name: node.name for node in model.graph.node for name in node.output}
        self._instead: dict[str, str] = {}  # who reads what a node that is gone has read
        self._values: dict[str, TensorProto] = {}
        self.is_changed = False

    def run(self) -> None:
        """Fold all there is."""
        for name in list(self._nodes):
            if name in self._nodes and is_standard(self._nodes[name], "Clip"):
                self._spell(self._nodes[name])
        for name in list(self._nodes):
            if name in self._nodes and self._is_own(self._nodes[name]):
                while self._behind(self._nodes[name]) or self._in_front(self._nodes[name]):
                    self.is_changed = True

    def model(self) -> ModelProto:
        """Return the model as it is now."""
        graph = self._model.graph
        kept = [tensor for tensor in graph.initializer if tensor.name not in self._values]
        return rebuild(
            self._model,
            nodes=[self._nodes[node.name] for node in graph.node if node.name in self._nodes],
            initializers=[*kept, *self._values.values()],
            inputs=graph.input,
            outputs=graph.output,
        )

    def _is_own(self, node: NodeProto) -> bool:
        """Return whether a node is a convolution whose weight and bias nothing else reads."""
        if not is_standard(node, "Conv"):
            return False
        return all(self._is_read_once(name) for name in node.input[1:] if name)

    def _is_read_once(self, name: str) -> bool:
        """Return whether a float32 constant goes by one name, and is read under that once."""
        tensor, index = self._index.constants.get(name), self._index
        if tensor is None or tensor.name != name or index.weights(name) is None:
            return False
        return len(index.readers.get(name, [])) == 1 and name not in index.outputs

    def _reader(self, tensor: str) -> NodeProto | None:
        """Return the only node that reads a tensor that is no output, if there is one."""
        position = self._index.sole_reader(tensor)
        if position is None:
            return None
        name = self._index.nodes[position].name
        while name in self._instead:
            name = self._instead[name]
        return self._nodes.get(name)

    def _writer(self, tensor: str) -> NodeProto | None:
        """Return what writes a tensor, if one node alone reads that and it is no output."""
        return self._nodes.get(self._writers.get(tensor, "")) if self._reader(tensor) is not None else None

    def _value(self, name: str) -> NDArray[np.float32] | None:
        if name in self._values:
            return numpy_helper.to_array(self._values[name])
        return self._index.weights(name)

    def _affine(self, node: NodeProto | None, maps: int, rank: int) -> _Affine | None:
        """Return what a node computes of ``[N, maps, ...]`` of so many axes, if that is affine, map by map."""
        if node is None or not is_standard(node, *_AFFINE):
            return None
        first, second = (self._value(name) for name in node.input)
        if (first is None) == (second is None):
            return None
        constant, source = (first, node.input[1]) if second is None else (second, node.input[0])
        if constant is None or constant.ndim > rank or not np.isfinite(constant).all():
            return None
        if constant.size != 1 and constant.shape[-rank + 1 :] != (maps, *[1] * (rank - 2)):
            return None
        number, one, none = constant.astype(np.float64).reshape(-1), np.ones(1), np.zeros(1)
        if node.op_type == "Mul":
            return _Affine(source, number, none)
        if node.op_type == "Add":
            return _Affine(source, one, number)
        if node.op_type == "Sub":
            return _Affine(source, one, -number) if second is not None else _Affine(source, -one, number)
        if second is None or np.abs(number).min() < _LEAST:
            return None
        return _Affine(source, 1 / number, none)

    def _behind(self, conv: NodeProto) -> bool:
        """Fold what reads a convolution into it, if that is affine."""
        weight, bias = self._kernel(conv)
        node = self._reader(conv.output[0])
        found = self._affine(node, len(weight), weight.ndim)
        if node is None or found is None:
            return False
        scale = np.broadcast_to(found.scale, len(weight))
        self._replace(conv, weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias * scale + found.shift)
        del self._nodes[node.name]
        conv.output[0] = node.output[0]
        self._writers[node.output[0]] = conv.name
        return True

    def _in_front(self, conv: NodeProto) -> bool:
        """Fold what a convolution reads into it, if that is affine."""
        weight, bias = self._kernel(conv)
        group = int(attributes(conv).get("group", 1))
        maps = weight.shape[1] * group
        node = self._writer(conv.input[0])
        found = self._affine(node, maps, weight.ndim)
        if node is None or found is None or not self._keeps_shape(node, found.source, maps, weight.ndim):
            return False
        left = node
        if found.shift.any() and _pads(conv):
            before = self._writer(found.source)
            further = self._affine(before, maps, weight.ndim)
            if before is None or further is None or further.shift.any() or found.scale.tolist() != [1.0]:
                return False
            if not self._keeps_shape(before, further.source, maps, weight.ndim):
                return False
            if np.abs(further.scale).min() < _LEAST:
                return False
            shift = found.shift / further.scale
            self._set_constant(node, further.source, shift, weight.ndim)
            found, left = _Affine(node.output[0], further.scale, np.zeros(1)), before
        rows = _by_output(np.broadcast_to(found.scale, maps), weight, group)
        shifts = _by_output(np.broadcast_to(found.shift, maps), weight, group)
        moved = (weight * shifts).reshape(len(weight), -1).sum(axis=1)
        self._replace(conv, weight * rows, bias + moved)
        del self._nodes[left.name]
        self._instead[left.name] = conv.name if left is node else node.name
        conv.input[0] = found.source
        return True

    def _keeps_shape(self, node: NodeProto, source: str, maps: int, rank: int) -> bool:
        """Return whether what a node computes has as many axes and maps as its ``source``: constants may make more."""
        constants = [value for name in node.input if (value := self._value(name)) is not None]
        if all(value.ndim < 2 and value.size == 1 for value in constants):
            return True
        shape = self._index.shapes.get(source, ())
        return len(shape) == rank and shape[1] == maps

    def _set_constant(self, node: NodeProto, source: str, shift: Array, rank: int) -> None:
        """Let a node be an Add of numbers to another tensor."""
        name = unique(f"{node.name}/shift", self._taken)
        shape = [-1, *[1] * (rank - 2)] if shift.size > 1 else []
        self._values[name] = numpy_helper.from_array(shift.astype(np.float32).reshape(shape), name)
        node.op_type = "Add"
        node.input[:] = [source, name]

    def _kernel(self, conv: NodeProto) -> tuple[Array, Array]:
        weight = self._value(conv.input[1])
        assert weight is not None
        bias = self._value(conv.input[2]) if len(conv.input) > 2 and conv.input[2] else None
        return weight.astype(np.float64), np.zeros(len(weight)) if bias is None else bias.astype(np.float64)

    def _replace(self, conv: NodeProto, weight: Array, bias: Array) -> None:
        """Give a convolution other values."""
        if bias.any() and not (len(conv.input) > 2 and conv.input[2]):
            del conv.input[2:]
            conv.input.append(unique(f"{conv.name}/bias", self._taken))
        for name, values in zip(conv.input[1:], (weight, bias), strict=False):
            self._values[name] = numpy_helper.from_array(values.astype(np.float32), name)

    def _spell(self, clip: NodeProto) -> None:
        """Replace a hard sigmoid that is spelt out around a Clip, or the hard swish that it is in."""
        before, after = self._writer(clip.input[0]), self._reader(clip.output[0])
        if before is None or after is None or self._bounds(clip) != (0.0, 6.0):
            return
        added = self._number(before, "Add")
        if added is None or not math.isclose(added[1], 3.0):
            return
        source, scaled = added[0], self._sixth(after)
        last = after if scaled else self._reader(after.output[0])
        if not scaled:
            if not (is_standard(after, "Mul") and set(after.input) == {source, clip.output[0]}):
                return
            if last is None or not self._sixth(last):
                return
        assert last is not None
        target = last.output[0] if scaled else unique(f"{clip.name}/gate", self._taken)
        gate = helper.make_node("HardSigmoid", [source], [target], clip.name, alpha=1 / 6, beta=0.5)
        self._nodes[clip.name].CopyFrom(gate)
        del self._nodes[before.name]
        self._instead[before.name] = clip.name
        del self._nodes[last.name]
        if not scaled:
            after.input[:] = [source, target]
            after.output[0] = last.output[0]
        kept = clip if scaled else after
        self._writers[last.output[0]] = kept.name
        self.is_changed = True

    def _sixth(self, node: NodeProto) -> bool:
        """Return whether a node divides by six."""
        divided, times = self._number(node, "Div"), self._number(node, "Mul")
        six = divided is not None and divided[0] == node.input[0] and math.isclose(divided[1], 6.0)
        return six or (times is not None and math.isclose(times[1], 1 / 6, rel_tol=1e-5))

    def _number(self, node: NodeProto, op: str) -> tuple[str, float] | None:
        """Return the computed input of a node and the one number that is its other, if it is such an ``op``."""
        if not is_standard(node, op):
            return None
        values = [self._value(name) for name in node.input]
        for source, value in zip(node.input, reversed(values), strict=True):
            if value is not None and value.size == 1 and value.ndim <= 1 and self._value(source) is None:
                return source, float(value.item())
        return None

    def _bounds(self, clip: NodeProto) -> tuple[float, float] | None:
        known = attributes(clip)
        if "min" in known and "max" in known:
            return float(known["min"]), float(known["max"])
        found = [self._value(name) for name in clip.input[1:] if name]
        if len(found) != 2 or any(one is None or one.size != 1 for one in found):
            return None
        low, high = (float(one.item()) for one in found if one is not None)
        return low, high


def _pads(conv: NodeProto) -> bool:
    known = attributes(conv)
    return any(known.get("pads", ())) or known.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def _by_output(numbers: Array, weight: Array, group: int) -> Array:
    """Return numbers a map in the shape in which a weight ``[F, C/group, ...]`` meets the maps."""
    each = numbers.reshape(group, 1, weight.shape[1]).repeat(len(weight) // group, axis=1)
    return each.reshape(len(weight), weight.shape[1], *[1] * (weight.ndim - 2))


def folded_away(before: ModelProto, after: ModelProto) -> int:
    """Return how many factors and addends of a network are not nodes any more."""
    return max(_constant_operands(before) - _constant_operands(after), 0)


def _constant_operands(model: ModelProto) -> int:
    """Return how many nodes multiply with, or add, float32 constants."""
    index = Index.of(model)
    nodes = (node for node in index.nodes if is_standard(node, *_AFFINE))
    return sum(sum(index.weights(name) is not None for name in node.input) == 1 for node in nodes)

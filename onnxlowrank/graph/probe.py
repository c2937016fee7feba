"""Adds outputs to a model that sample its tensors at random positions, inside the graph.

A tensor ``[N, C, *spatial]`` has ``P`` positions, the product of its spatial sizes, known only when the model runs.
Of these a probe takes ``k = min(S, P)``: position ``floor((i + u_i) * P / k)`` for ``i < k``, one from each of ``k``
strata, where ``u`` are ``S`` numbers that are fed. Tensors of equal spatial size are sampled at equal positions, in
whatever model they are, and nothing but the samples leaves the session.

A probe with a window samples what a convolution sees at these positions of its output: patches. Where their pixels
are is read off a map of pixel numbers, laid out by a convolution with one-hot kernels; hence strides, pads and
dilations are exactly the convolution's, and only the sampled patches are ever laid out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxlowrank.errors import UnsupportedModelError
from onnxlowrank.graph.chain import DENSE, Step, Window
from onnxlowrank.graph.convolution import conv_attributes, conv_operator, conv_weight
from onnxlowrank.graph.walk import names, needed, opset, rebuild, unique

POSITIONS = "onnxlowrank_positions"
"""Name of the input with the random numbers: float32 ``[S]``, uniform in [0, 1). Where the model has it, a number is
added: the one input of a model with probes that is not fed is this."""


@dataclass(frozen=True)
class Probe:
    """What to sample.

    Attributes:
        name: Name of the output, which no tensor of the model has.
        tensor: Tensor of the model to sample; may be one of its inputs.
        channels_last: False for ``[N, C, *spatial]``, True for ``[N, ..., C]`` (fully connected).
        steps: Convolutions applied to the tensor, on a branch beside the network, before it is sampled; for
            channels-first tensors only.
        window: Sample the patches under this window, ``[rows, channels * taps]``, in the order of a kernel
            ``[F, channels, *taps]``; likewise.
        share: Only ``S / share`` numbers are used (at least 1): so several probes give about as many rows as one.
    """

    name: str
    tensor: str
    channels_last: bool
    steps: tuple[Step, ...] = ()
    window: Window | None = None
    share: int = 1


def add_probes(model: ModelProto, probes: Sequence[Probe]) -> ModelProto:
    """Return a copy of ``model`` whose only outputs are ``probes``, each float32 ``[rows, channels]``.

    Rows are ordered by element of the batch, then by position; the positions are the same for all elements. The
    inputs are those of ``model`` and, last, ``POSITIONS``. Nodes that no probe needs are left out.

    Raises:
        UnsupportedModelError: The model's opset is older than 9, which lacks the operators that sample.
        ValueError: A probe names a tensor that is not in the model, or has a name that is; or it has steps and is
            channels-last.
    """
    if opset(model) < 9:
        raise UnsupportedModelError(
            f"The model uses opset {opset(model)}, calibration needs 9 or newer; "
            "convert it with onnx.version_converter or export it again."
        )
    tensors, taken = _tensors(model), names(model)
    for probe in probes:
        if probe.tensor not in tensors:
            raise ValueError(f"probe '{probe.name}' samples '{probe.tensor}', which is not in the model")
        if probe.name in taken:
            raise ValueError(f"probe '{probe.name}' has the name of a tensor or node of the model")
        if (probe.steps or probe.window) and probe.channels_last:
            raise ValueError(f"probe '{probe.name}' applies convolutions to a channels-last tensor")
    taken.update(probe.name for probe in probes)
    positions = helper.make_tensor_value_info(unique(POSITIONS, taken), TensorProto.FLOAT, [None])
    sampler = _Sampler(taken, positions.name)
    for probe in probes:
        sampler.add(probe)

    writers = {name: node for node in model.graph.node for name in node.output}
    outputs = [
        helper.make_tensor_value_info(probe.name, TensorProto.FLOAT, [None, None], _described(probe, writers))
        for probe in probes
    ]
    return rebuild(
        model,
        nodes=needed([*model.graph.node, *sampler.nodes], [probe.name for probe in probes]),
        initializers=[*model.graph.initializer, *sampler.initializers],
        inputs=[*model.graph.input, positions],
        outputs=outputs,
    )


def sampled_positions(numbers: NDArray[np.float32], total: int, share: int = 1) -> NDArray[np.int64]:
    """Return the positions, of so many, that a probe of that share samples where these random numbers are fed."""
    count = min(-(-len(numbers) // share), total)
    place = np.arange(count) + numbers[:count].astype(np.float64)
    return np.floor(np.minimum(place * total / count, total - 1)).astype(np.int64)


def with_only_outputs(model: ModelProto, tensors: Sequence[str]) -> ModelProto:
    """Return a copy of ``model`` whose outputs are exactly ``tensors``; the nodes they do not need stay."""
    graph = model.graph
    described = {info.name: info for info in [*graph.value_info, *graph.input, *graph.output]}
    outputs = [described.get(name, ValueInfoProto(name=name)) for name in tensors]
    return rebuild(model, nodes=graph.node, initializers=graph.initializer, inputs=graph.input, outputs=outputs)


def unused_ending(model: ModelProto, ending: str) -> str:
    """Return ``ending``, lengthened until no name in ``model`` ends like this: what is put before it stays unique."""
    taken = names(model)
    while any(name.endswith(ending) for name in taken):
        ending += "_"
    return ending


def _described(probe: Probe, writers: Mapping[str, NodeProto]) -> str:
    """Return what a probe samples, in names of the model: for messages."""
    node = writers.get(probe.tensor)
    tensor = f"tensor '{probe.tensor}'" + (f" (of the {node.op_type} node '{node.name}')" if node else "")
    return f"what is computed from {tensor}" if probe.steps else tensor


def expose(model: ModelProto, tensors: Sequence[str]) -> ModelProto:
    """Return a copy of ``model`` whose outputs are exactly ``tensors``, without the nodes these do not need.

    Outputs that the model does not describe carry no type; onnxruntime infers it.

    Raises:
        ValueError: A tensor is not in the model.
    """
    missing = sorted(set(tensors) - _tensors(model))
    if missing:
        raise ValueError(f"no such tensors in the model: {missing}")
    graph = model.graph
    described = {info.name: info for info in [*graph.value_info, *graph.input, *graph.output]}
    return rebuild(
        model,
        nodes=needed(graph.node, tensors),
        initializers=graph.initializer,
        inputs=graph.input,
        outputs=[described.get(name, ValueInfoProto(name=name)) for name in tensors],
    )


def _tensors(model: ModelProto) -> set[str]:
    """Return the names of the tensors of ``model``, without those inside subgraphs."""
    graph = model.graph
    return {item.name for item in [*graph.input, *graph.initializer]} | {
        name for node in graph.node for name in node.output
    }


class _Sampler:
    """Writes the nodes of probes, with operators that mean the same from opset 9 on."""

    def __init__(self, taken: set[str], positions: str) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._taken, self._numbers = taken, positions
        self._written: dict[tuple[str, tuple[str, ...], str], str] = {}
        self._constants: dict[tuple[str, tuple[float, ...]], str] = {}

    def add(self, probe: Probe) -> None:
        """Write the nodes of one probe."""
        tensor = probe.tensor
        for step in probe.steps:
            plain = step if step.take is None and step.give is None else step.lowered(DENSE)
            weight = self._initializer("weight", np.asarray(conv_weight(plain), np.float32))
            tensor = self._node(conv_operator(plain.geometry), tensor, weight, **conv_attributes(plain))
        if probe.window is not None:
            rows = self._patches(tensor, probe.window, probe.share)
        elif probe.channels_last:
            rows = self._channels_last(tensor, probe.share)
        else:
            rows = self._channels_first(tensor, probe.share)
        shape = self._node("Concat", self._constant([-1]), self._size(rows, 2), axis=0)
        self._node("Reshape", rows, shape, output=probe.name)

    def _channels_first(self, tensor: str, share: int) -> str:
        """Sample ``[N, C, *spatial]``; the result is ``[N, k, C]``."""
        flat = self._reshaped(tensor, self._constant([0, 0]), self._positions(tensor, 2))
        sampled = self._node("Gather", flat, self._indices(self._size(flat, 2), share), axis=2)
        return self._node("Transpose", sampled, perm=[0, 2, 1])

    def _patches(self, tensor: str, window: Window, share: int) -> str:
        """Sample patches of ``[N, C, *spatial]``; the result is ``[N, k, C * taps]``."""
        taps = math.prod(window.kernel)
        flat = self._reshaped(tensor, self._constant([0, 0]), self._positions(tensor, 2))
        axes = self._constant(np.arange(2, 2 + len(window.kernel)))
        spatial = self._node("Gather", self._node("Shape", tensor), axes, axis=0)
        pixels = self._node("Add", self._count(self._size(flat, 2)), self._constant([1]))  # 0 is the padding
        one = self._constant([1])
        image = self._node("Reshape", pixels, self._node("Concat", one, one, spatial, axis=0))
        one_hot = np.eye(taps, dtype=np.float32).reshape(taps, 1, *window.kernel)
        step = Step("taps", one_hot, window.geometry)
        layout = self._node(
            conv_operator(window.geometry),
            self._node("Cast", image, to=TensorProto.FLOAT),
            self._initializer("taps", conv_weight(step)),
            **conv_attributes(step),
        )
        pixel = self._node(
            "Reshape", self._int64(self._channels_first(layout, share)), self._constant([-1])
        )  # [k * taps]
        inside = self._node("Min", self._double(pixel), self._constant([1.0]))
        source = self._int64(self._node("Sub", self._double(pixel), inside))
        values = self._node("Gather", flat, source, axis=2)
        values = self._node("Mul", values, self._node("Cast", inside, to=TensorProto.FLOAT))
        positions = self._node("Div", self._size(source, 0), self._constant([taps]))
        split = self._reshaped(values, self._constant([0, 0]), positions, self._constant([taps]))
        rows = self._node("Transpose", split, perm=[0, 2, 1, 3])
        width = self._node("Mul", self._size(flat, 1), self._constant([taps]))
        return self._reshaped(rows, self._constant([0, 0]), width)

    def _channels_last(self, tensor: str, share: int) -> str:
        """Sample ``[N, ..., C]``; the result is ``[N, k, C]``."""
        flat = self._reshaped(tensor, self._size(tensor, 0), self._positions(tensor, 1), self._size(tensor, -1))
        return self._node("Gather", flat, self._indices(self._size(flat, 1), share), axis=1)

    def _reshaped(self, tensor: str, *sizes: str) -> str:
        """Reshape a tensor, be it one without samples, of which onnxruntime cannot tell the size -1.

        Of shapes right behind a Concat it makes constants with a -1 by itself, hence the Abs.
        """
        return self._node("Reshape", tensor, self._node("Abs", self._node("Concat", *sizes, axis=0)))

    def _positions(self, tensor: str, first: int) -> str:
        """Return the product of all sizes but two, from axis ``first`` on, as int64 ``[1]``."""
        shape = self._node("Shape", tensor)
        count = self._node("Add", self._node("Shape", shape), self._constant([-2]))
        axes = self._node("Add", self._count(count), self._constant([first]))
        return self._node("ReduceProd", self._node("Gather", shape, axes, axis=0))

    def _indices(self, total: str, share: int) -> str:
        """Choose among ``total`` = ``P`` positions (int64 ``[1]``); the result is int64 ``[k]``."""
        size, most = self._double(total), self._double(self._size(self._numbers, 0))
        if share > 1:
            most = self._node("Ceil", self._node("Div", most, self._constant([float(share)])))
        count = self._node("Min", most, size)
        strata = self._count(self._int64(count))
        jitter = self._double(self._node("Gather", self._numbers, strata, axis=0))
        place = self._node("Add", self._double(strata), jitter)
        scaled = self._node("Div", self._node("Mul", place, size), count)
        limit = self._node("Sub", size, self._constant([1.0]))
        return self._int64(self._node("Floor", self._node("Min", scaled, limit)))

    def _count(self, total: str) -> str:
        """Return 0, 1, ..., ``total`` - 1 as int64; ``total`` is int64 ``[1]``."""
        ones = self._node("ConstantOfShape", total, value=numpy_helper.from_array(np.ones(1, np.int64)))
        return self._node("Reshape", self._node("NonZero", ones), self._constant([-1]))

    def _size(self, tensor: str, axis: int) -> str:
        """Return the size of one axis as int64 ``[1]``; a negative ``axis`` counts from the last."""
        shape = self._node("Shape", tensor)
        if axis >= 0:
            return self._node("Gather", shape, self._constant([axis]), axis=0)
        end = self._node("Add", self._node("Shape", shape), self._constant([axis]))
        return self._node("Gather", shape, end, axis=0)

    def _double(self, tensor: str) -> str:
        """Cast to float64, in which positions are exact."""
        return self._node("Cast", tensor, to=TensorProto.DOUBLE)

    def _int64(self, tensor: str) -> str:
        """Cast to int64."""
        return self._node("Cast", tensor, to=TensorProto.INT64)

    def _constant(self, values: ArrayLike) -> str:
        """Return the initializer with these few numbers; equal numbers share one."""
        array = np.asarray(values)
        key = (array.dtype.name, tuple(array.tolist()))
        if key not in self._constants:
            self._constants[key] = self._initializer("constant", array)
        return self._constants[key]

    def _initializer(self, name: str, values: np.ndarray[Any, Any]) -> str:
        """Add an initializer and return its name."""
        unused = unique(f"onnxlowrank_probe/{name}", self._taken)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), unused))
        return unused

    def _node(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Return the name of the output of a node, which is added unless an equal one is there."""
        key = (op, inputs, repr(sorted(attributes.items())))
        if output is None and key in self._written:
            return self._written[key]
        name = unique(f"onnxlowrank_probe/{op}", self._taken)
        written = output or f"{name}:0"
        self.nodes.append(helper.make_node(op, list(inputs), [written], name=name, **attributes))
        self._written[key] = written
        return written

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

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxlowrank.errors import UnsupportedModelError
from onnxlowrank.graph.chain import DENSE, IntArray, Step, Window
from onnxlowrank.graph.convolution import conv_attributes, conv_operator, conv_weight
from onnxlowrank.graph.index import Shape
from onnxlowrank.graph.node_writer import NodeWriter
from onnxlowrank.graph.sizes import fixed_sizes
from onnxlowrank.graph.walk import names, needed, opset, rebuild, unique

POSITIONS = "onnxlowrank_positions"
"""Name of the input with the random numbers: float32 ``[S]``, uniform in [0, 1). Where the model has it, a number is
added: the one input of a model with probes that is not fed is this."""


_EXACT = 2**24
"""Whole numbers up to here are exact in float32, in which convolutions lay them out; larger ones are parted."""


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
    tensors, taken = tensor_names(model), names(model)
    for probe in probes:
        if probe.tensor not in tensors:
            raise ValueError(f"probe '{probe.name}' samples '{probe.tensor}', which is not in the model")
        if probe.name in taken:
            raise ValueError(f"probe '{probe.name}' has the name of a tensor or node of the model")
        if (probe.steps or probe.window) and probe.channels_last:
            raise ValueError(f"probe '{probe.name}' applies convolutions to a channels-last tensor")
    taken.update(probe.name for probe in probes)
    positions = helper.make_tensor_value_info(unique(POSITIONS, taken), TensorProto.FLOAT, [None])
    sampler = _Sampler(taken, positions.name, fixed_sizes(model))
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
    missing = sorted(set(tensors) - tensor_names(model))
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


def tensor_names(model: ModelProto) -> set[str]:
    """Return the names of the tensors of ``model``, without those inside subgraphs."""
    graph = model.graph
    return {item.name for item in [*graph.input, *graph.initializer]} | {
        name for node in graph.node for name in node.output
    }


class _Sampler(NodeWriter):
    """Writes the nodes of probes."""

    def __init__(self, taken: set[str], positions: str, shapes: Mapping[str, Shape]) -> None:
        super().__init__("onnxlowrank_probe", taken, shapes)
        self._numbers = positions

    def add(self, probe: Probe) -> None:
        """Write the nodes of one probe."""
        tensor = probe.tensor
        for step in probe.steps:
            plain = step if step.take is None and step.give is None else step.lowered(DENSE)
            if plain.take is not None:
                tensor = self._chosen(tensor, plain.take)
            weight = self.initializer("weight", np.asarray(conv_weight(plain), np.float32))
            tensor = self._convolved(tensor, weight, plain)
        if probe.window is not None:
            if probe.window.maps is not None:
                tensor = self._chosen(tensor, np.array(probe.window.maps))
            rows = self._patches(tensor, probe.window, probe.share)
        elif probe.channels_last:
            rows = self._channels_last(tensor, probe.share)
        else:
            rows = self._channels_first(tensor, probe.share)
        shape = self.joined(self.constant([-1]), self.size(rows, 2))
        self.node("Reshape", rows, shape, output=probe.name)

    def _channels_first(self, tensor: str, share: int) -> str:
        """Sample ``[N, C, *spatial]``; the result is ``[N, k, C]``."""
        flat = self._flat(tensor)
        sampled = self.node("Gather", flat, self._indices(self.size(flat, 2), share), axis=2)
        rows = self.node("Transpose", sampled, perm=[0, 2, 1])
        return self.of_shape(rows, (None, None, self.known(flat, 1)))

    def _patches(self, tensor: str, window: Window, share: int) -> str:
        """Sample patches of ``[N, C, *spatial]``; the result is ``[N, k, C * taps]``."""
        taps = math.prod(window.kernel)
        flat = self._flat(tensor)
        pixels = self.node("Add", self.count(self.size(flat, 2)), self.constant([1]))  # 0 is the padding
        one = self.constant([1])
        spatial = [self.size(tensor, axis) for axis in range(2, 2 + len(window.kernel))]
        image = self.node("Reshape", pixels, self.joined(one, one, *spatial))
        sizes = [self.known(tensor, axis) for axis in range(2, 2 + len(window.kernel))]
        known = [size for size in sizes if size is not None]
        if len(known) == len(sizes) and math.prod(known) < _EXACT:
            pixel = self._laid_out(image, sizes, window, share)
        else:
            high = self.node("Div", image, self.constant([_EXACT]))
            low = self.node("Sub", image, self.node("Mul", high, self.constant([_EXACT])))
            above = self.node("Mul", self._laid_out(high, sizes, window, share), self.constant([_EXACT]))
            pixel = self.node("Add", above, self._laid_out(low, sizes, window, share))
        inside = self.node("Min", self.double(pixel), self.constant([1.0]))
        source = self.int64(self.node("Sub", self.double(pixel), inside))
        values = self.node("Gather", flat, source, axis=2)
        values = self.node("Mul", values, self.node("Cast", inside, to=TensorProto.FLOAT))
        positions = self.node("Div", self.size(source, 0), self.constant([taps]))
        split = self.reshaped(values, self.constant([0, 0]), positions, self.constant([taps]))
        rows = self.node("Transpose", split, perm=[0, 2, 1, 3])
        maps = self.known(flat, 1)
        if maps is not None:
            width = self.constant([maps * taps])
        else:
            width = self.node("Mul", self.size(flat, 1), self.constant([taps]))
        rows = self.reshaped(rows, self.constant([0, 0]), width)
        return self.of_shape(rows, (None, None, None if maps is None else maps * taps))

    def _laid_out(self, image: str, sizes: Sequence[int | None], window: Window, share: int) -> str:
        """Return the numbers (int64 ``[k * taps]``) of an image ``[1, 1, *sizes]`` under a sampled window."""
        taps = math.prod(window.kernel)
        numbers = self.of_shape(self.node("Cast", image, to=TensorProto.FLOAT), (1, 1, *sizes))
        step = Step("taps", np.eye(taps, dtype=np.float32).reshape(taps, 1, *window.kernel), window.geometry)
        layout = self._convolved(numbers, self.constant(conv_weight(step)), step)
        return self.node("Reshape", self.int64(self._channels_first(layout, share)), self.constant([-1]))

    def _channels_last(self, tensor: str, share: int) -> str:
        """Sample ``[N, ..., C]``; the result is ``[N, k, C]``."""
        positions = self.positions(tensor, 1)
        flat = self.reshaped(tensor, self.size(tensor, 0), positions, self.size(tensor, -1))
        self.of_shape(flat, (self.known(tensor, 0), self.value(positions), self.known(tensor, -1)))
        rows = self.node("Gather", flat, self._indices(self.size(flat, 1), share), axis=1)
        return self.of_shape(rows, (None, None, self.known(tensor, -1)))

    def _flat(self, tensor: str) -> str:
        """Reshape ``[N, C, *spatial]`` to ``[N, C, P]``."""
        positions = self.positions(tensor, 2)
        flat = self.reshaped(tensor, self.constant([0, 0]), positions)
        return self.of_shape(flat, (self.known(tensor, 0), self.known(tensor, 1), self.value(positions)))

    def _convolved(self, tensor: str, weight: str, step: Step) -> str:
        """Convolve ``[N, C, *spatial]`` with the weight of a step."""
        output = self.node(conv_operator(step.geometry), tensor, weight, **conv_attributes(step))
        spatial = [self.known(tensor, axis) for axis in range(2, 2 + step.geometry.axes)]
        known = tuple(size for size in spatial if size is not None)
        sizes = step.geometry.output_size(known, step.kernel) if len(known) == len(spatial) else (None,) * len(spatial)
        return self.of_shape(output, (self.known(tensor, 0), step.weight.shape[0], *sizes))

    def _chosen(self, tensor: str, maps: IntArray) -> str:
        """Return some maps of ``[N, C, *spatial]``."""
        chosen = self.node("Gather", tensor, self.constant(maps.tolist()), axis=1)
        known = self._shapes.get(tensor)
        return chosen if known is None else self.of_shape(chosen, (known[0], len(maps), *known[2:]))

    def _indices(self, total: str, share: int) -> str:
        """Choose among ``total`` = ``P`` positions (int64 ``[1]``); the result is int64 ``[k]``."""
        size, most = self.double(total), self.double(self.size(self._numbers, 0))
        if share > 1:
            most = self.node("Ceil", self.node("Div", most, self.constant([float(share)])))
        count = self.node("Min", most, size)
        strata = self.count(self.int64(count))
        jitter = self.double(self.node("Gather", self._numbers, strata, axis=0))
        place = self.node("Add", self.double(strata), jitter)
        scaled = self.node("Div", self.node("Mul", place, size), count)
        limit = self.node("Sub", size, self.constant([1.0]))
        return self.int64(self.node("Floor", self.node("Min", scaled, limit)))

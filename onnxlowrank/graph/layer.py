"""A layer: the Conv, Gemm or MatMul(+Add) nodes of one constant weight, and what surrounds each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.decompose.activation import IDENTITY, Activation
from onnxlowrank.decompose.precision import squarable

FloatArray = NDArray[np.floating]


@dataclass(frozen=True)
class Geometry:
    """How a convolution kernel moves over its input; one entry an axis, all tuples empty for a fully connected layer.

    ``pads`` is in ONNX order: all begins, then all ends. ``auto_pad`` is ``NOTSET``, ``VALID``, ``SAME_UPPER`` or
    ``SAME_LOWER``; unless it is ``NOTSET``, ``pads`` is ignored. Of a ``transposed`` convolution it moves over the
    output, which is larger by ``output_padding`` (empty for none).
    """

    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.strides)

    def only(self, *kept: int) -> Geometry:
        """Return the geometry of a factor that acts on the axes ``kept`` alone and leaves the others as they are."""
        n = self.axes

        def pick(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
            return tuple(v if i % n in kept else neutral for i, v in enumerate(values))

        padding = pick(self.output_padding, 0)
        moves = pick(self.strides, 1), pick(self.pads, 0), pick(self.dilations, 1)
        return Geometry(*moves, self.auto_pad, self.transposed, padding)

    @staticmethod
    def pointwise(axes: int) -> Geometry:
        """Return the geometry of a 1x1 convolution over ``axes`` spatial axes."""
        return Geometry((1,) * axes, (0,) * 2 * axes, (1,) * axes)

    def output_size(self, size: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Return the spatial output size of a kernel of extent ``kernel`` on an input of spatial size ``size``."""
        n = self.axes
        out = []
        for i in range(n):
            if self.transposed:
                out.append(self._transposed_size(size[i], kernel[i], i))
                continue
            if self.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
                out.append(math.ceil(size[i] / self.strides[i]))
                continue
            padding = 0 if self.auto_pad == "VALID" else self.pads[i] + self.pads[i + n]
            out.append((size[i] + padding - self.dilations[i] * (kernel[i] - 1) - 1) // self.strides[i] + 1)
        return tuple(out)

    def _transposed_size(self, size: int, kernel: int, axis: int) -> int:
        """Return the output size of a transposed convolution along one axis."""
        more = self.output_padding[axis] if self.output_padding else 0
        whole = self.strides[axis] * (size - 1) + self.dilations[axis] * (kernel - 1) + 1 + more
        if self.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            return min(whole, size * self.strides[axis])
        return whole - (0 if self.auto_pad == "VALID" else self.pads[axis] + self.pads[axis + self.axes])


FLAT = Geometry()
"""The geometry of fully connected layers: no axes."""


@dataclass(frozen=True)
class Place:
    """Where in a network a layer is computed.

    Attributes:
        input: Name of the tensor the layer reads.
        output: Name of the tensor it writes: the response ``y``, after the bias, before the activation.
        nodes: Names of the nodes it consists of, in graph order (a MatMul and its Add, or one node).
        preactivation: Name of the tensor ``r(.)`` acts on: ``output``, or that of the residual Add behind it.
        activation: ``r(.)``, what is applied to the preactivation; the identity when the response has other readers.
        shortcut: Name of the residual Add's other operand, or None.
        input_shape: Shape of one input as it was run, batch included; empty until the shapes are known.
        output_shape: Likewise for the response.
    """

    input: str
    output: str
    nodes: tuple[str, ...]
    preactivation: str
    activation: Activation = IDENTITY
    shortcut: str | None = None
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of its first node, by which chains in its place are called."""
        return self.nodes[0]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a network.

    Nodes that share weight, bias and attributes compute the same function: they are one layer with several places,
    which is decided on, fitted and written as one (siamese networks, unrolled steps, heads over pyramid levels).

    Attributes:
        name: Name of the (first) node, unique in the graph.
        op: ``Conv``, ``ConvTranspose``, ``Gemm`` or ``MatMul``.
        weight: ``[F, C/group, *kernel]`` for a convolution, transposed or not; ``[F, C]`` otherwise, with ``transB``
            and ``alpha`` applied.
        bias: ``[F]`` (``beta`` applied), or None.
        geometry: Strides, pads and dilations.
        group: Groups of a Conv, otherwise 1.
        input: As of the first :class:`Place`; so are all attributes that a place has.
        output: Likewise.
        nodes: Likewise.
        preactivation: Likewise.
        shares_weight: Whether a node that is no place of the layer reads the same weight.
        activation: As of the first place.
        shortcut: Likewise.
        input_shape: Likewise.
        output_shape: Likewise.
        elsewhere: The other places, in graph order.
        samples: How many samples the input had that it was run on; None for one an entry of its first axis.
        columns: Whether it multiplies the columns of its input, not the rows: a Gemm with ``transA``, whose responses
            are rows all the same, or a MatMul by a matrix on the left, ``[N, C, T]`` to ``[N, F, T]``.
    """

    name: str
    op: str
    weight: FloatArray
    bias: FloatArray | None
    geometry: Geometry
    input: str
    output: str
    nodes: tuple[str, ...]
    preactivation: str
    group: int = 1
    shares_weight: bool = False
    activation: Activation = field(default=IDENTITY)
    shortcut: str | None = None
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    elsewhere: tuple[Place, ...] = ()
    samples: int | None = None
    columns: bool = False

    @property
    def places(self) -> tuple[Place, ...]:
        """All places, in graph order."""
        first = Place(**{one.name: getattr(self, one.name) for one in fields(Place)})
        return (first, *self.elsewhere)

    def at(self, places: Sequence[Place]) -> Layer:
        """Return the layer with other places."""
        first, *others = places
        return replace(self, **vars(first), elsewhere=tuple(others))

    def one_by_one(self) -> list[Layer]:
        """Return for every place the layer as if it were there alone."""
        return [self.at([place]) for place in self.places]

    @property
    def common_activation(self) -> Activation:
        """``r(.)`` where it is the same at all places, the identity where they differ."""
        first, *others = (place.activation for place in self.places)
        return first if all(one == first for one in others) else IDENTITY

    @property
    def is_conv(self) -> bool:
        """Whether the layer is a convolution, transposed or not."""
        return self.op in ("Conv", "ConvTranspose")

    @property
    def channels_last(self) -> bool:
        """Whether the response has its maps along the last axis, not along axis 1."""
        return not self.is_conv and not (self.columns and self.op == "MatMul")

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial extent of the kernel; empty for a fully connected layer."""
        return tuple(self.weight.shape[2:])

    @property
    def taps(self) -> int:
        """Number of taps of the kernel; 1 for a fully connected layer."""
        return math.prod(self.kernel)

    @property
    def folded(self) -> NDArray[np.float64]:
        """The weight as a 3-tensor ``[F, C/group, taps]``."""
        return self.weight.reshape(*self.weight.shape[:2], -1).astype(np.float64)

    @property
    def white(self) -> NDArray[np.float64]:
        """The covariance ``[F, F]`` of the responses, were the inputs white: uncorrelated, of variance 1."""
        filters = squarable(self.weight.reshape(self.outputs, -1))
        group = np.arange(self.outputs) * self.group // self.outputs
        return np.where(group[:, None] == group, (filters @ filters.T).astype(np.float64), 0.0)

    @property
    def widens(self) -> bool:
        """Whether the layer is fully connected and gives more maps than it reads, along the same axis.

        Its responses then vary in fewer dimensions than they have, and its inputs hold all there is to know of them.
        """
        same_axis = not (self.columns and self.op == "Gemm")
        return not self.is_conv and same_axis and self.inputs < self.outputs

    @property
    def outputs(self) -> int:
        """Number ``F`` of output maps."""
        return int(self.weight.shape[0])

    @property
    def inputs(self) -> int:
        """Number ``C`` of input maps."""
        return int(self.weight.shape[1]) * self.group

    @property
    def positions(self) -> int:
        """Number of positions of one sample, over all places, at which the kernel is put.

        These are positions of the response, and of a transposed convolution those of its input.
        """
        return sum(map(self._positions, self.places))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer for one sample, those of all places together."""
        size = int(self.weight.size)
        return sum(self.for_one_sample(self._positions(place) * size, place) for place in self.places)

    def for_one_sample(self, macs: int, place: Place) -> int:
        """Return multiply-accumulates for one sample, given those for one entry of the first axis of a place's input.

        They are not the same where samples lie on another axis, or several rows are one sample's.
        """
        entries = place.output_shape[0] if len(place.output_shape) > 1 else 1
        return macs if self.samples is None else -(-macs * entries // self.samples)

    def _positions(self, place: Place) -> int:
        if self.geometry.transposed:
            return math.prod(place.input_shape[2:])
        return math.prod(place.output_shape[1:-1] if self.channels_last else place.output_shape[2:])

    @property
    def parameters(self) -> int:
        """Number of weights and biases, which all places share."""
        return int(self.weight.size) + (0 if self.bias is None else int(self.bias.size))

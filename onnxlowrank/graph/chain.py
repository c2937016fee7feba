"""A chain: the ordered small convolutions (or matrix products) that stand in for a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.graph.layer import FLAT, FloatArray, Geometry, Layer

IntArray = NDArray[np.intp]

GROUPED, SPLIT, DENSE = "grouped", "split", "dense"
"""The forms a link with groups can be written in: a grouped Conv; one Conv a group between Split and Concat; one Conv
with the groups written out as zeros, which permutes for free. Which is fastest depends on the provider."""


@dataclass(frozen=True, eq=False)
class Step:
    """One link of a chain: a convolution of groups, with the order of its maps on either side.

    Attributes:
        name: What it does, e.g. ``spatial_v``; becomes part of the node's name.
        weight: ``[F, C/group, *kernel]``, or ``[F, C]`` in a chain for a fully connected layer.
        geometry: Strides, pads and dilations.
        group: Number of groups.
        take: The input map that each of the ``C`` maps of the groups is, or None for their own order. Every input map
            is taken, unless ``among`` says otherwise; some may be taken twice, to fill groups of equal size.
        give: The map of the convolution that each output map is, or None for their own order. Some may be left out.
        split: Whether it is written as one Conv a group.
        among: The number of input maps that ``take`` chooses among, where it leaves some out; otherwise None.
    """

    name: str
    weight: FloatArray
    geometry: Geometry = FLAT
    group: int = 1
    take: IntArray | None = None
    give: IntArray | None = None
    split: bool = False
    among: int | None = None

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial extent of the kernel."""
        return tuple(self.weight.shape[2:])

    @property
    def taken(self) -> IntArray:
        """The input maps of the groups, one group after the other."""
        return np.arange(self.weight.shape[1] * self.group) if self.take is None else self.take

    @property
    def given(self) -> IntArray:
        """The maps of the convolution that become the output maps."""
        return np.arange(self.weight.shape[0]) if self.give is None else self.give

    @property
    def lowerings(self) -> tuple[str, ...]:
        """The forms worth a measurement; first the one to take where nothing is measured, which adds no operations.

        One Conv with zeros for the groups has ``group`` times the operations, which may pay for 1x1 alone. Truly
        depthwise convolutions are fast as they are; groups of one map that feeds many are not.
        """
        maps = self.weight.shape[1]
        if self.group == 1 or maps == 1 == self.weight.shape[0] // self.group:
            return (DENSE if self.group == 1 else GROUPED,)
        if math.prod(self.kernel) == 1:
            return GROUPED, DENSE, SPLIT
        return (SPLIT, GROUPED) if maps == 1 else (GROUPED, SPLIT)

    def lowered(self, lowering: str) -> Step:
        """Return the equal step in another form."""
        if lowering == DENSE:
            if self.among is None:
                return Step(self.name, self.dense_weight(), self.geometry)
            chosen = replace(self, take=None, among=None).dense_weight()
            return Step(self.name, chosen, self.geometry, take=self.take, among=self.among)
        return replace(self, split=lowering == SPLIT)

    def dense_weight(self) -> FloatArray:
        """Return the weight with its groups and orders written out: ``[F, C, *kernel]``."""
        if self.group == 1 and self.take is None and self.give is None:
            return self.weight
        f, c = self.weight.shape[0] // self.group, self.weight.shape[1]
        inputs = int(self.taken.max()) + 1 if self.among is None else self.among
        dense = np.zeros((self.weight.shape[0], inputs, *self.kernel), self.weight.dtype)
        for g in range(self.group):
            rows = slice(g * f, (g + 1) * f)
            for i, source in enumerate(self.taken[g * c : (g + 1) * c]):
                dense[rows, source] += self.weight[rows, i]
        return dense if self.give is None else dense[self.give]


@dataclass(frozen=True)
class Window:
    """What one position of a convolution sees: ``kernel`` taps of every map, placed as ``geometry`` says.

    ``maps`` are those it sees, where it does not see all.
    """

    kernel: tuple[int, ...]
    geometry: Geometry
    maps: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Chain:
    """Links computed one after the other; the bias ``[F]`` is added behind the last one.

    On every spatial axis at most one link has a kernel longer than 1. Then the chain equals one convolution with
    :meth:`dense_kernel`, whatever the padding.
    """

    steps: tuple[Step, ...]
    bias: FloatArray | None = None

    def dense_kernel(self) -> FloatArray:
        """Return the kernel ``[F, C, *kernel]`` of the one convolution the chain is equal to."""
        dense = self.steps[0].dense_weight()
        for step in self.steps[1:]:
            dense = _compose(dense, step.dense_weight())
        return dense

    @property
    def lowerings(self) -> tuple[str, ...]:
        """The form of every link to take where nothing is measured."""
        return tuple(step.lowerings[0] for step in self.steps)

    def lowered(self, lowerings: Sequence[str]) -> Chain:
        """Return the equal chain whose links are written in these forms."""
        return Chain(
            tuple(step.lowered(lowering) for step, lowering in zip(self.steps, lowerings, strict=True)), self.bias
        )

    def macs(self, input_shape: tuple[int, ...]) -> int:
        """Return the multiply-accumulates for one sample of an input of ``input_shape`` (batch included)."""
        axes = self.steps[0].geometry.axes
        size = input_shape[2:] if axes else input_shape[1:-1]
        total = 0
        for step in self.steps:
            before, size = size, step.geometry.output_size(size, step.kernel) if axes else size
            total += math.prod(before if step.geometry.transposed else size) * int(step.weight.size)
        return total

    def macs_in(self, layer: Layer) -> int:
        """Return the multiply-accumulates for one sample in place of ``layer``, at all its places together."""
        total = 0
        for place in layer.places:
            shape = place.input_shape
            rows = (*shape[:-2], shape[-1], shape[-2]) if layer.columns else shape
            total += layer.for_one_sample(self.macs(rows), place)
        return total

    @property
    def is_finite(self) -> bool:
        """Whether all weights and biases are finite."""
        values = [step.weight for step in self.steps] + ([] if self.bias is None else [self.bias])
        return all(bool(np.isfinite(one).all()) for one in values)

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(int(step.weight.size) for step in self.steps) + (0 if self.bias is None else int(self.bias.size))


def as_chain(layer: Layer) -> Chain:
    """Return the chain of one link that is the layer itself."""
    return Chain((Step("dense", layer.weight, layer.geometry, layer.group),), layer.bias)


def _compose(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the kernel of ``second`` after ``first``, where on every spatial axis one of them has extent 1."""
    axes = first.ndim - 2
    product = np.tensordot(second, first, axes=(1, 0))  # [F, *second kernel, C, *first kernel]
    order = [0, axes + 1]
    for i in range(axes):
        order += [1 + i, axes + 2 + i]
    kernel = [a * b for a, b in zip(first.shape[2:], second.shape[2:], strict=True)]
    composed: FloatArray = product.transpose(order).reshape(second.shape[0], first.shape[1], *kernel)
    return composed

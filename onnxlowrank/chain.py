"""A chain: the ordered small convolutions (or matrix products) that stand in for a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxlowrank.layer import FLAT, FloatArray, Geometry


@dataclass(frozen=True, eq=False)
class Step:
    """One link of a chain.

    Attributes:
        name: What it does, e.g. ``spatial_v``; becomes part of the node's name.
        weight: ``[F, C/group, *kernel]``, or ``[F, C]`` in a chain for a fully connected layer.
        geometry: Strides, pads and dilations.
        group: Number of groups.
    """

    name: str
    weight: FloatArray
    geometry: Geometry = FLAT
    group: int = 1

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial extent of the kernel."""
        return tuple(self.weight.shape[2:])

    def dense_weight(self) -> FloatArray:
        """Return the weight with its groups written out: ``[F, C, *kernel]``."""
        if self.group == 1:
            return self.weight
        f, c = self.weight.shape[0] // self.group, self.weight.shape[1]
        dense = np.zeros((self.weight.shape[0], c * self.group, *self.kernel), self.weight.dtype)
        for g in range(self.group):
            dense[g * f : (g + 1) * f, g * c : (g + 1) * c] = self.weight[g * f : (g + 1) * f]
        return dense


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

    def macs(self, input_shape: tuple[int, ...]) -> int:
        """Return the multiply-accumulates for one sample of an input of ``input_shape`` (batch included)."""
        axes = self.steps[0].geometry.axes
        size = input_shape[2:] if axes else input_shape[1:-1]
        total = 0
        for step in self.steps:
            if axes:
                size = step.geometry.output_size(size, step.kernel)
            total += math.prod(size) * int(step.weight.size)
        return total

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(int(step.weight.size) for step in self.steps) + (0 if self.bias is None else int(self.bias.size))


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


def unfold(channels: int, kernel: tuple[int, ...], geometry: Geometry) -> Step:
    """Return the convolution that lays out, at every output position, the patch under a kernel.

    Output map ``c * prod(kernel) + i`` is tap ``i`` (row-major) of input map ``c``. It is an im2col with exactly the
    strides, pads and dilations of the convolution it prepares, whatever they are.
    """
    taps = math.prod(kernel)
    one_hot = np.eye(taps, dtype=np.float32).reshape(taps, 1, *kernel)
    return Step("unfold", np.tile(one_hot, (channels, *(1,) * (len(kernel) + 1))), geometry, group=channels)

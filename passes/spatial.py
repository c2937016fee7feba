"""Vertical, then horizontal filters: ``k x 1``, then ``1 x k`` (Jaderberg 2014, scheme 2); in 3-D, "(2+1)D".

Algebra. The kernel folded to ``A [c k, k d]`` is replaced by a product ``V H`` of rank ``K``, see
:mod:`onnxlowrank.decompose.spatial`; weighing by the covariance of the vertical input patches makes the lost
response, not the lost weight, small. With ``V`` fixed, the response is linear in ``H``, so ``H`` and the bias are
then regressed on what ``V`` gives in the rewritten prefix (the paper's "data reconstruction", here in closed form),
drawn to the ``H`` of the SVD by a small ridge.

Kernels of three long axes, ``kd x kh x kw``, are folded to ``[c kh kw, kd d]``: filters in the plane, then filters
along the depth, or in time, the order of "(2+1)D" networks (Tran et al. 2018; S3D, Xie et al. 2018). The plane comes
first because what strides leave of it is less for the second link to read. An axis of one tap goes with the first link.
Grouped convolutions are taken apart group by group, all to the same rank ``K``; both links have the layer's groups.

Subgraph:    Conv(kh x 1, K, vertical stride, pads and dilation) -> Conv(1 x kw, d, the horizontal ones, bias);
             Conv(1 x kh x kw, K) -> Conv(kd x 1 x 1, d, bias)
MACs:        K c kh at (H_out, W_in) positions + d K kw at (H_out, W_out);
             K c kh kw at (D_in, H_out, W_out) + d K kd at (D_out, H_out, W_out)
Parameters:  K c kh + d K kw + d; K c kh kw + d K kd + d
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from onnxlowrank.decompose.spatial import spatial_energy, spatial_factors, spatial_variance
from onnxlowrank.decompose.spectrum import Float64Array
from onnxlowrank.graph.chain import Chain, Step, Window
from onnxlowrank.graph.layer import FloatArray, Layer
from onnxlowrank.passes.base import (
    Candidate,
    Draft,
    Features,
    Pass,
    Setting,
    Statistics,
    draft_of,
    has_wide_groups,
    placeholder,
)
from onnxlowrank.passes.groups import block_of, filters_of, joint_energy

COLUMNS = "columns"


class Spatial(Pass):
    """Two convolutions along different axes in place of one along all of them."""

    name = "spatial"
    ops = ("Conv", "ConvTranspose")
    rough_energy = True
    rank_names: ClassVar[tuple[str, ...]] = ("K",)

    def refusal(self, layer: Layer) -> str | None:
        """Refuse what has not two axes or three with more than one tap each, and groups of a single map."""
        if layer.group > 1 and not has_wide_groups(layer):
            return f"group={layer.group}"
        long = sum(taps > 1 for taps in layer.kernel)
        return None if long > 1 else f"kernel {'x'.join(map(str, layer.kernel))}"

    def moments(self, layer: Layer) -> dict[str, Features]:
        """Ask for the covariance of the vertical input patches."""
        first, _ = split_axes(layer)
        window = Window(_extent(layer, first), layer.geometry.only(*first))
        return {COLUMNS: Features(layer.input, (), window, layer.group)}

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield every aligned ``K``; horizontal neighbours are taken as independent."""
        yield from self.by_rank(layer, split_energy(layer, statistics), block_of(layer, block))

    def limits(self, layer: Layer) -> Setting:
        """Return the rank of the folded kernel, of a group."""
        kh, kw = taps_of(layer)
        return (min(layer.inputs * kh, kw * layer.outputs) // layer.group,)

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes."""
        (rank,) = setting
        kh, kw = taps_of(layer)
        vertical = placeholder(rank * layer.group, layer.weight.shape[1], kh, 1)
        horizontal = placeholder(layer.outputs, rank, 1, kw)
        return Chain(
            (vertical_step(layer, vertical), horizontal_step(layer, horizontal)),
            placeholder(layer.outputs),
        )

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the two factors by the SVD under the covariance of the vertical patches."""
        parts = [spatial_factors(kernel, setting[0], columns) for kernel, columns in _by_group(layer, statistics)]
        vertical, horizontal = (np.concatenate(factors) for factors in zip(*parts, strict=True))
        return draft_of(layer, Chain((vertical_step(layer, vertical), horizontal_step(layer, horizontal)), layer.bias))


def split_energy(layer: Layer, statistics: Statistics) -> Float64Array:
    """Return by rank what is kept of the response's variance, of all groups together."""
    parts = list(_by_group(layer, statistics))
    return joint_energy([spatial_energy(*part) for part in parts], [spatial_variance(*part) for part in parts])


def _by_group(layer: Layer, statistics: Statistics) -> Iterator[tuple[FloatArray, Float64Array]]:
    """Yield the kernel ``[F, C, kh, kw]`` of every group, and the covariance of the vertical patches it sees."""
    kernel = two_axes(layer)
    for rows, columns in zip(filters_of(layer), statistics.moments[COLUMNS].covariances, strict=True):
        yield kernel[rows], columns


def split_axes(layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the axes that the first link acts on, and those of the second."""
    long = [axis for axis, taps in enumerate(layer.kernel) if taps > 1]
    second = tuple(long[1:] if len(long) == 2 else long[:1])
    return tuple(axis for axis in range(len(layer.kernel)) if axis not in second), second


def taps_of(layer: Layer) -> tuple[int, int]:
    """Return the taps of the first link, and those of the second."""
    first, second = split_axes(layer)
    return math.prod(layer.kernel[axis] for axis in first), math.prod(layer.kernel[axis] for axis in second)


def two_axes(layer: Layer) -> FloatArray:
    """Return the weight as ``[F, C, kh, kw]``: the taps of the first link, and those of the second."""
    first, second = split_axes(layer)
    return layer.weight.transpose(0, 1, *(2 + axis for axis in (*first, *second))).reshape(
        *layer.weight.shape[:2], *taps_of(layer)
    )


def vertical_step(layer: Layer, weight: FloatArray) -> Step:
    """Return the first link, ``kh x 1``, of its weight ``[K, C, kh, 1]``."""
    first, _ = split_axes(layer)
    name = "spatial_v" if len(layer.kernel) == 2 else f"spatial_{_letters(layer, first)}"
    kernel = weight.reshape(*weight.shape[:2], *_extent(layer, first))
    return Step(name, kernel, layer.geometry.only(*first), layer.group)


def horizontal_step(layer: Layer, weight: FloatArray) -> Step:
    """Return the second link, ``1 x kw``, of its weight ``[F, K, 1, kw]``."""
    _, second = split_axes(layer)
    name = "spatial_h" if len(layer.kernel) == 2 else f"spatial_{_letters(layer, second)}"
    kernel = np.asarray(weight, np.float32).reshape(*weight.shape[:2], *_extent(layer, second))
    return Step(name, kernel, layer.geometry.only(*second), layer.group)


def _extent(layer: Layer, axes: Sequence[int]) -> tuple[int, ...]:
    """Return the kernel's extent along some axes, 1 along the others."""
    return tuple(taps if axis in axes else 1 for axis, taps in enumerate(layer.kernel))


def _letters(layer: Layer, axes: Sequence[int]) -> str:
    """Return the letters of axes of depth, height and width along which there are several taps."""
    return "".join("dhw"[axis] for axis in axes if layer.kernel[axis] > 1)

"""Vertical, then horizontal filters: ``k x 1``, then ``1 x k`` (Jaderberg 2014, scheme 2).

Algebra. The kernel folded to ``A [c k, k d]`` is replaced by a product ``V H`` of rank ``K``, see
:mod:`onnxlowrank.decompose.spatial`; weighing by the covariance of the vertical input patches makes the lost
response, not the lost weight, small. With ``V`` fixed, the response is linear in ``H``, so ``H`` and the bias are
then regressed on what ``V`` gives in the rewritten prefix (the paper's "data reconstruction", here in closed form),
drawn to the ``H`` of the SVD by a small ridge.

Subgraph:    Conv(kh x 1, K, vertical stride, pads and dilation) -> Conv(1 x kw, d, the horizontal ones, bias)
MACs:        K c kh at (H_out, W_in) positions + d K kw at (H_out, W_out)
Parameters:  K c kh + d K kw + d
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from onnxlowrank.decompose.spatial import spatial_energy, spatial_factors
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
    placeholder,
)

COLUMNS = "columns"


class Spatial(Pass):
    """Two one-dimensional convolutions in place of a two-dimensional one."""

    name = "spatial"
    ops = ("Conv", "ConvTranspose")
    rough_energy = True
    rank_names: ClassVar[tuple[str, ...]] = ("K",)

    def refusal(self, layer: Layer) -> str | None:
        """Refuse what has not exactly two spatial axes with more than one tap each, and grouped convolutions."""
        if layer.group > 1:
            return f"group={layer.group}"
        if len(layer.kernel) != 2 or min(layer.kernel) < 2:
            return f"kernel {'x'.join(map(str, layer.kernel))}"
        return None

    def moments(self, layer: Layer) -> dict[str, Features]:
        """Ask for the covariance of the vertical input patches."""
        return {COLUMNS: Features(layer.input, (), Window((layer.kernel[0], 1), layer.geometry.only(0)))}

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield every aligned ``K``; horizontal neighbours are taken as independent."""
        energy = spatial_energy(layer.weight, statistics.moments[COLUMNS].covariance)
        yield from self.by_rank(layer, energy, block)

    def limits(self, layer: Layer) -> Setting:
        """Return the rank of the folded kernel."""
        kh, kw = layer.kernel
        return (min(layer.inputs * kh, kw * layer.outputs),)

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes."""
        (rank,) = setting
        kh, kw = layer.kernel
        horizontal = placeholder(layer.outputs, rank, 1, kw)
        return Chain(
            (vertical_step(layer, placeholder(rank, layer.inputs, kh, 1)), horizontal_step(layer, horizontal)),
            placeholder(layer.outputs),
        )

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the two factors by the SVD under the covariance of the vertical patches."""
        vertical, horizontal = spatial_factors(layer.weight, setting[0], statistics.moments[COLUMNS].covariance)
        return draft_of(layer, Chain((vertical_step(layer, vertical), horizontal_step(layer, horizontal)), layer.bias))


def vertical_step(layer: Layer, weight: FloatArray) -> Step:
    """Return the ``kh x 1`` convolution."""
    return Step("spatial_v", weight, layer.geometry.only(0))


def horizontal_step(layer: Layer, weight: FloatArray) -> Step:
    """Return the ``1 x kw`` convolution."""
    return Step("spatial_h", np.asarray(weight, np.float32), layer.geometry.only(1))

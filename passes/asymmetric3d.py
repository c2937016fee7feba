"""Vertical, horizontal and channel reduction together: ``k x 1``, ``1 x k``, 1x1 (Zhang 2015, Sec. 3.5).

Algebra. ``d''`` vertical filters ``V`` come from the spatial decomposition (:mod:`onnxlowrank.passes.spatial`), and
the responses are reduced to ``d'`` dimensions (:mod:`onnxlowrank.passes.channel`):

    y ~ P (Q' (V x)) + b

The paper keeps ``H``, the horizontal filters of the spatial decomposition, and solves for ``M`` in ``M H V x`` alone.
But with ``V`` fixed, the response is linear in ``P Q'``: here ``1 x k`` and 1x1 are fitted *together*, by the
reduced-rank regression of the true responses on the ``k d''`` features that one horizontal filter sees in the rewritten
prefix (Eq. 12, with ``V x^`` for ``W x^``). The paper's solutions are among those searched. A small ridge draws to
``H`` where samples say nothing.

Subgraph:    Conv(kh x 1, d'') -> Conv(1 x kw, d') -> Conv(1x1, d, bias); strides, pads and dilations split over the
             first two; of 3-D kernels Conv(1 x kh x kw, d'') -> Conv(kd x 1 x 1, d') -> Conv(1x1x1, d, bias)
MACs:        d'' c kh at (H_out, W_in) positions + d' d'' kw + d d' at (H_out, W_out)
Parameters:  d'' c kh + d' d'' kw + d d' + d
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from onnxlowrank.decompose.regression import Samples, fit_low_rank
from onnxlowrank.decompose.spatial import spatial_energy
from onnxlowrank.decompose.spectrum import cumulative_energy, principal_axes
from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.layer import FloatArray, Geometry, Layer
from onnxlowrank.passes.base import (
    RESPONSE,
    Candidate,
    Draft,
    Setting,
    Statistics,
    aligned_ranks,
    placeholder,
    pointwise,
)
from onnxlowrank.passes.spatial import COLUMNS, Spatial, horizontal_step, taps_of, two_axes, vertical_step


class Asymmetric3D(Spatial):
    """Three convolutions, one a dimension; what it refuses and what it samples are the spatial pass's."""

    name = "asymmetric3d"
    rank_names: ClassVar[tuple[str, ...]] = ("d''", "d'")

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield every aligned ``(d'', d')``; what either reduction keeps is taken as independent of the other.

        The paper fixes both by letting each contribute the square root of the speed-up; here the selection decides.
        """
        spatial = spatial_energy(two_axes(layer), statistics.moments[COLUMNS].covariance)
        channel = cumulative_energy(statistics.moments[RESPONSE].covariance)
        for vertical in aligned_ranks(len(spatial) - 1, block):
            for rank in aligned_ranks(min(layer.outputs, vertical * taps_of(layer)[1]), block):
                candidate = self.candidate(layer, (vertical, rank), float(spatial[vertical] * channel[rank]))
                if candidate.macs >= layer.macs:
                    break
                yield candidate

    def limits(self, layer: Layer) -> Setting:
        """Return the rank of the folded kernel and the number of filters."""
        return *super().limits(layer), layer.outputs

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes."""
        vertical, rank = setting
        kh, kw = taps_of(layer)
        return chain_of(
            layer,
            placeholder(vertical, layer.inputs, kh, 1),
            placeholder(rank, vertical, 1, kw),
            placeholder(layer.outputs, rank),
            placeholder(layer.outputs),
        )

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the spatial factors, the responses of the second on their principal axes."""
        spatial = super().draft(layer, setting, statistics)
        vertical, horizontal = spatial.chain.steps
        _, axes = principal_axes(statistics.moments[RESPONSE].covariance, setting[1])
        reduced = (axes.T @ horizontal.weight.reshape(layer.outputs, -1)).reshape(-1, *horizontal.weight.shape[1:])
        return Draft(chain_of(layer, vertical.weight, reduced, axes, layer.bias), spatial.features)

    def fit(self, layer: Layer, setting: Setting, draft: Draft, samples: Samples, nonlinear: bool = True) -> Chain:
        """Return the draft's vertical filters, and the low-rank map fitted behind them."""
        vertical, horizontal, restore = draft.chain.steps
        kernel = restore.weight.reshape(layer.outputs, -1).astype(np.float64) @ horizontal.weight.reshape(
            setting[1], -1
        )
        fitted = fit_low_rank(samples, setting[1], prior=kernel.T, nonlinear=nonlinear)
        reduced = fitted.right.T.reshape(horizontal.weight.shape)
        return chain_of(layer, vertical.weight, reduced, fitted.left, fitted.bias)


def chain_of(
    layer: Layer, vertical: FloatArray, reduced: FloatArray, restore: FloatArray, bias: FloatArray | None
) -> Chain:
    """Return the chain of its factors; ``restore`` is ``[d, d']`` or ``[d, d', 1, 1]``."""
    flat = Geometry.pointwise(layer.geometry.axes)
    return Chain(
        (
            vertical_step(layer, vertical),
            horizontal_step(layer, reduced),
            Step("restore", pointwise(restore.reshape(layer.outputs, -1), layer), flat),
        ),
        None if bias is None else np.asarray(bias, np.float32),
    )

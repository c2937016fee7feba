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
from onnxlowrank.decompose.spectrum import Float64Array, cumulative_energy, principal_axes
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
from onnxlowrank.passes.groups import block_of, filters_of, joint_energy
from onnxlowrank.passes.spatial import Spatial, horizontal_step, split_energy, taps_of, vertical_step


class Asymmetric3D(Spatial):
    """Three convolutions, one a dimension; what it refuses and what it samples are the spatial pass's."""

    name = "asymmetric3d"
    rank_names: ClassVar[tuple[str, ...]] = ("d''", "d'")

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield every aligned ``(d'', d')``; what either reduction keeps is taken as independent of the other.

        The paper fixes both by letting each contribute the square root of the speed-up; here the selection decides.
        """
        spatial, channel = split_energy(layer, statistics), _channel_energy(layer, statistics)
        step, outputs = block_of(layer, block), layer.outputs // layer.group
        for vertical in aligned_ranks(len(spatial) - 1, step):
            for rank in aligned_ranks(min(outputs, vertical * taps_of(layer)[1]), step):
                candidate = self.candidate(layer, (vertical, rank), float(spatial[vertical] * channel[rank]))
                if candidate.macs >= layer.macs:
                    break
                yield candidate

    def limits(self, layer: Layer) -> Setting:
        """Return the rank of the folded kernel and the number of filters, of a group."""
        return *super().limits(layer), layer.outputs // layer.group

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes."""
        vertical, rank = setting
        kh, kw = taps_of(layer)
        return chain_of(
            layer,
            placeholder(vertical * layer.group, layer.weight.shape[1], kh, 1),
            placeholder(rank * layer.group, vertical, 1, kw),
            placeholder(layer.outputs, rank),
            placeholder(layer.outputs),
        )

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the spatial factors, the responses of the second on their principal axes."""
        spatial = super().draft(layer, setting, statistics)
        vertical, horizontal = spatial.chain.steps
        covariance = statistics.moments[RESPONSE].covariance
        axes = [principal_axes(covariance[rows, rows], setting[1])[1] for rows in filters_of(layer)]
        filters = [horizontal.weight[rows].reshape(rows.stop - rows.start, -1) for rows in filters_of(layer)]
        reduced = np.concatenate([one.T @ part for one, part in zip(axes, filters, strict=True)])
        kernel = reduced.reshape(-1, *horizontal.weight.shape[1:])
        return Draft(chain_of(layer, vertical.weight, kernel, np.concatenate(axes), layer.bias), spatial.features)

    def fit(self, layer: Layer, setting: Setting, draft: Draft, samples: Samples, nonlinear: bool = True) -> Chain:
        """Return the draft's vertical filters, and the low-rank map fitted behind them."""
        vertical, horizontal, restore = draft.chain.steps
        reduced, left, bias = [], [], []
        for g, rows in enumerate(filters_of(layer)):
            inner = slice(g * setting[1], (g + 1) * setting[1])
            filters = horizontal.weight[inner].reshape(setting[1], -1)
            kernel = restore.weight[rows].reshape(-1, setting[1]).astype(np.float64) @ filters
            columns, own = np.arange(filters.shape[1]) + g * filters.shape[1], np.arange(rows.start, rows.stop)
            part = samples if layer.group == 1 else samples.part(columns, own)
            fitted = fit_low_rank(part, setting[1], prior=kernel.T, nonlinear=nonlinear)
            reduced.append(fitted.right.T)
            left.append(fitted.left)
            bias.append(fitted.bias)
        weight = np.concatenate(reduced).reshape(horizontal.weight.shape)
        return chain_of(layer, vertical.weight, weight, np.concatenate(left), np.concatenate(bias))


def _channel_energy(layer: Layer, statistics: Statistics) -> Float64Array:
    """Return the share of the response's variance that so many axes of every group hold, ``[F/G + 1]``."""
    covariance = statistics.moments[RESPONSE].covariance
    parts = [covariance[rows, rows] for rows in filters_of(layer)]
    return joint_energy([cumulative_energy(part) for part in parts], [float(np.trace(part)) for part in parts])


def chain_of(
    layer: Layer, vertical: FloatArray, reduced: FloatArray, restore: FloatArray, bias: FloatArray | None
) -> Chain:
    """Return the chain of its factors; ``restore`` is ``[d, d']`` or ``[d, d', 1, 1]``."""
    flat = Geometry.pointwise(layer.geometry.axes)
    return Chain(
        (
            vertical_step(layer, vertical),
            horizontal_step(layer, reduced),
            Step("restore", pointwise(restore.reshape(layer.outputs, -1), layer), flat, layer.group),
        ),
        None if bias is None else np.asarray(bias, np.float32),
    )

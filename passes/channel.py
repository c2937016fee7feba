"""Low-rank responses: ``k x k`` with ``d'`` filters, then 1x1 (Zhang 2015, Sec. 3.1-3.3).

Algebra. The responses ``y = W x`` of a layer lie near a subspace of ``d' < d`` dimensions, so ``y ~ P Q' y + b`` and

    y ~ P (Q' W) x + b                                                                              (Eq. 2, 3)

with ``Q'W`` a convolution of ``d'`` filters and ``P [d, d']`` a 1x1 convolution. ``P``, ``Q`` and ``b`` come from the
regression of the original network's responses on the responses of the rewritten prefix, before the activation (Eq. 4,
7) or through it (Eq. 6-11); that they come from different networks is the asymmetric reconstruction (Eq. 12).

Subgraph:    Conv(k x k, d', the layer's strides, pads, dilations) -> Conv(1x1, d, bias)
MACs:        (d' k^2 c + d d') per output position, against d k^2 c
Parameters:  d' k^2 c + d d' + d

Grouped convolutions are taken apart group by group, all to the same rank: ``d'`` is then that of one group, ``c`` and
``d`` are its maps, and both links have the layer's groups. A transposed one stays transposed in the first link.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxlowrank.decompose.regression import LowRankMap, Samples, fit_low_rank
from onnxlowrank.decompose.spectrum import Float64Array, principal_axes, shares
from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.layer import Geometry, Layer
from onnxlowrank.passes.base import (
    RESPONSE,
    Candidate,
    Draft,
    Features,
    Pass,
    Setting,
    Statistics,
    placeholder,
)
from onnxlowrank.passes.groups import block_of, filters_of


class Channel(Pass):
    """Fewer filters, then a 1x1 convolution that restores the channels."""

    name = "channel"
    ops = ("Conv", "ConvTranspose")
    rank_names = ("d'",)

    def refusal(self, layer: Layer) -> str | None:
        """Refuse depthwise convolutions."""
        return f"group={layer.group}" if layer.group > 1 and layer.outputs == layer.group else None

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield every aligned ``d'``; the energy is that of the responses' principal components (Eq. 13)."""
        energy = statistics.response_energy if layer.group == 1 else _energy_by_group(layer, statistics)
        yield from self.by_rank(layer, energy, block_of(layer, block))

    def limits(self, layer: Layer) -> Setting:
        """Return the number of filters of a group."""
        return (layer.outputs // layer.group,)

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes."""
        rank = setting[0]
        return two_links(
            layer,
            placeholder(rank * layer.group, *layer.weight.shape[1:]),
            placeholder(layer.outputs, rank),
            placeholder(layer.outputs),
        )

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the projection onto the responses' principal axes (Eq. 4); ask for the layer's own responses."""
        moments = statistics.moments[RESPONSE]
        fitted = []
        for rows in filters_of(layer):
            own = moments if layer.group == 1 else moments.part(np.arange(rows.start, rows.stop))
            _, axes = own.principal_axes(setting[0])
            fitted.append(LowRankMap(axes, axes, own.mean - axes @ (axes.T @ own.mean)))
        return Draft(_project(layer, fitted), Features(layer.output))

    def spread(self, layer: Layer) -> Float64Array | None:
        """Return the covariance that responses are thought to have before any was seen; None for the identity."""
        return None

    def fit(self, layer: Layer, setting: Setting, draft: Draft, samples: Samples, nonlinear: bool = True) -> Chain:
        """Return the chain of the low-rank regression of the responses on those in the rewritten prefix."""
        prior, spread = np.eye(layer.outputs // layer.group), self.spread(layer)
        fitted = []
        for rows in filters_of(layer):
            own = np.arange(rows.start, rows.stop)
            part = samples if layer.group == 1 else samples.part(own, own)
            fitted.append(fit_low_rank(part, setting[0], prior=prior, nonlinear=nonlinear, spread=spread))
        return _project(layer, fitted)


def _energy_by_group(layer: Layer, statistics: Statistics) -> Float64Array:
    """Return the share of the response's variance that so many axes of every group keep, ``[F/group + 1]``."""
    moments, unseen = statistics.moments[RESPONSE], statistics.unseen
    seen = moments.covariance
    if unseen is not None:
        shift = unseen.mean - moments.mean
        seen = unseen.covariance + np.outer(shift, shift)
    kept = np.zeros(layer.outputs // layer.group)
    for rows in filters_of(layer):
        _, axes = principal_axes(moments.covariance[rows, rows])
        kept += np.einsum("fk,fk->k", axes, seen[rows, rows] @ axes)
    return shares(kept)


def _project(layer: Layer, fitted: Sequence[LowRankMap]) -> Chain:
    """Return the chain for ``y -> P Q' y + b`` behind the layer, group by group."""
    reduced, bias = [], []
    for rows, part in zip(filters_of(layer), fitted, strict=True):
        own = part.bias
        if layer.bias is not None:  # the responses hold the layer's bias, the new filters don't
            own = own + part.left @ (part.right.T @ layer.bias[rows])
        bias.append(own)
        reduced.append(np.tensordot(part.right.T, layer.weight[rows], axes=1))
    restore = np.concatenate([part.left for part in fitted])
    return two_links(layer, np.concatenate(reduced), restore, np.concatenate(bias))


def two_links(layer: Layer, reduced: np.ndarray, restore: np.ndarray, bias: np.ndarray) -> Chain:
    """Return the chain of filters ``[d', C/group, *kernel]``, a mix of what they give ``[F, d'/group]`` and a bias."""
    pointwise = restore.reshape(*restore.shape, *(1,) * len(layer.kernel))
    flat = Geometry.pointwise(layer.geometry.axes)
    return Chain(
        (
            Step("reduced", np.asarray(reduced, np.float32), layer.geometry, layer.group),
            Step("restore", np.asarray(pointwise, np.float32), flat, layer.group),
        ),
        np.asarray(bias, np.float32),
    )

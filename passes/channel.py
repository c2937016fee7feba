"""Low-rank responses: ``k x k`` with ``d'`` filters, then 1x1 (Zhang 2015, Sec. 3.1-3.3).

Algebra. The responses ``y = W x`` of a layer lie near a subspace of ``d' < d`` dimensions, so ``y ~ P Q' y + b`` and

    y ~ P (Q' W) x + b                                                                              (Eq. 2, 3)

with ``Q'W`` a convolution of ``d'`` filters and ``P [d, d']`` a 1x1 convolution. ``P``, ``Q`` and ``b`` come from the
regression of the original network's responses on the responses of the rewritten prefix, before the activation (Eq. 4,
7) or through it (Eq. 6-11); that they come from different networks is the asymmetric reconstruction (Eq. 12).

Subgraph:    Conv(k x k, d', the layer's strides, pads, dilations) -> Conv(1x1, d, bias)
MACs:        (d' k^2 c + d d') per output position, against d k^2 c
Parameters:  d' k^2 c + d d' + d
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxlowrank.chain import Chain, Step
from onnxlowrank.decompose.regression import Samples, fit_low_rank
from onnxlowrank.decompose.spectrum import cumulative_energy
from onnxlowrank.layer import Geometry, Layer
from onnxlowrank.passes.base import RESPONSE, Candidate, Features, Pass, Setting, Statistics, aligned_ranks, hollow


class Channel(Pass):
    """Fewer filters, then a 1x1 convolution that restores the channels."""

    name = "channel"
    rank_names = ("d'",)

    def refusal(self, layer: Layer) -> str | None:
        """Refuse grouped convolutions."""
        return f"group={layer.group}" if layer.group > 1 else None

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield every aligned ``d'``; the energy is that of the responses' principal components (Eq. 13)."""
        energy = cumulative_energy(statistics[RESPONSE].covariance)
        for rank in aligned_ranks(layer.outputs, block):
            candidate = self.candidate(layer, (rank,), float(energy[rank]))
            if candidate.cost < layer.macs:
                yield candidate

    def limits(self, layer: Layer) -> Setting:
        """Return the number of filters."""
        return (layer.outputs,)

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes."""
        (rank,) = setting
        return _chain(layer, hollow(rank, *layer.weight.shape[1:]), hollow(layer.outputs, rank), hollow(layer.outputs))

    def features(self, layer: Layer, setting: Setting, statistics: Statistics) -> Features:
        """Ask for the layer's own responses in the rewritten prefix."""
        return Features(layer.output)

    def fit(
        self, layer: Layer, setting: Setting, statistics: Statistics, samples: Samples, nonlinear: bool = True
    ) -> Chain:
        """Return the fitted chain."""
        (rank,) = setting
        fitted = fit_low_rank(samples, rank, prior=np.eye(layer.outputs), nonlinear=nonlinear)
        bias = fitted.bias
        if layer.bias is not None:  # the features hold the layer's bias, the new filters don't
            bias = bias + fitted.left @ (fitted.right.T @ layer.bias)
        reduced = np.tensordot(fitted.right.T, layer.weight, axes=1)
        return _chain(layer, reduced, fitted.left, bias)


def _chain(layer: Layer, reduced: np.ndarray, restore: np.ndarray, bias: np.ndarray) -> Chain:
    pointwise = restore.reshape(*restore.shape, *(1,) * len(layer.kernel))
    return Chain(
        (
            Step("reduced", np.asarray(reduced, np.float32), layer.geometry),
            Step("restore", np.asarray(pointwise, np.float32), Geometry.pointwise(layer.geometry.axes)),
        ),
        np.asarray(bias, np.float32),
    )

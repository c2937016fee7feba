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

from onnxlowrank.decompose.regression import Samples, fit_low_rank
from onnxlowrank.decompose.spectrum import Float64Array, principal_axes
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


class Channel(Pass):
    """Fewer filters, then a 1x1 convolution that restores the channels."""

    name = "channel"
    ops = ("Conv", "ConvTranspose")
    rank_names = ("d'",)

    def refusal(self, layer: Layer) -> str | None:
        """Refuse grouped convolutions."""
        return f"group={layer.group}" if layer.group > 1 else None

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield every aligned ``d'``; the energy is that of the responses' principal components (Eq. 13)."""
        yield from self.by_rank(layer, statistics.response_energy, block)

    def limits(self, layer: Layer) -> Setting:
        """Return the number of filters."""
        return (layer.outputs,)

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes."""
        (rank,) = setting
        return _chain(
            layer,
            placeholder(rank, *layer.weight.shape[1:]),
            placeholder(layer.outputs, rank),
            placeholder(layer.outputs),
        )

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the projection onto the responses' principal axes (Eq. 4); ask for the layer's own responses."""
        moments = statistics.moments[RESPONSE]
        _, axes = principal_axes(moments.covariance, setting[0])
        bias = moments.mean - axes @ (axes.T @ moments.mean)
        return Draft(_project(layer, axes, axes, bias), Features(layer.output))

    def spread(self, layer: Layer) -> Float64Array | None:
        """Return the covariance that responses are thought to have before any was seen; None for the identity."""
        return None

    def fit(self, layer: Layer, setting: Setting, draft: Draft, samples: Samples, nonlinear: bool = True) -> Chain:
        """Return the chain of the low-rank regression of the responses on those in the rewritten prefix."""
        prior, spread = np.eye(layer.outputs), self.spread(layer)
        fitted = fit_low_rank(samples, setting[0], prior=prior, nonlinear=nonlinear, spread=spread)
        return _project(layer, fitted.left, fitted.right, fitted.bias)


def _project(layer: Layer, left: np.ndarray, right: np.ndarray, bias: np.ndarray) -> Chain:
    """Return the chain for ``y -> P Q' y + b`` behind the layer."""
    if layer.bias is not None:  # the responses hold the layer's bias, the new filters don't
        bias = bias + left @ (right.T @ layer.bias)
    return _chain(layer, np.tensordot(right.T, layer.weight, axes=1), left, bias)


def _chain(layer: Layer, reduced: np.ndarray, restore: np.ndarray, bias: np.ndarray) -> Chain:
    pointwise = restore.reshape(*restore.shape, *(1,) * len(layer.kernel))
    return Chain(
        (
            Step("reduced", np.asarray(reduced, np.float32), layer.geometry),
            Step("restore", np.asarray(pointwise, np.float32), Geometry.pointwise(layer.geometry.axes)),
        ),
        np.asarray(bias, np.float32),
    )

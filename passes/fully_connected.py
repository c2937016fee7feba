"""A fully connected layer as two: truncated SVD, on the weights or on the responses (Denton 2014, Sec. 3.2.1).

Algebra. ``W [F, C] ~ P (Q' W)`` with ``P, Q [F, K]``. With ``P = Q`` = the leading left singular vectors of ``W``
this is its truncated SVD, the best approximation under inputs of covariance I; with the leading eigenvectors of the
responses' covariance ``W S W'`` it is the SVD of ``W S^(1/2)``, the best under inputs of covariance ``S``. The fit
starts there and goes on to the asymmetric nonlinear regression of :mod:`onnxlowrank.decompose.regression`, as for
convolutions.

One input gives one response here, so a rank may exceed the number of samples. What they leave open the weights decide:
to the samples' covariance comes, as if one more had been seen, that of the responses to white inputs, ``W W'``, and the
ridge of the regression is in proportion to it. Beyond the samples' subspace this is the truncated SVD of ``W`` again.

A layer that widens its input, ``F > C``, has responses in ``C`` dimensions: they are regressed on the input instead,
``y ~ P Q' x + b`` with ``Q [C, K]`` and ``W'`` as what the ridge draws to, and their principal axes are the left
singular vectors of ``W S^(1/2)``. Nothing is as large as ``F^2`` then.

Subgraph:    Gemm(K) -> Gemm(F, bias), or MatMul(K) -> MatMul(F) -> Add
MACs:        K (C + F), against C F
Parameters:  K (C + F) + F
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxlowrank.decompose.regression import Samples, fit_low_rank
from onnxlowrank.decompose.spectrum import Float64Array
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.passes.base import Draft, Features, Setting, Statistics
from onnxlowrank.passes.channel import Channel, two_links


class FullyConnected(Channel):
    """Two thin matrices in place of one: the channel pass without a kernel to slide."""

    name = "fully_connected"
    ops = ("Gemm", "MatMul")
    rank_names = ("K",)

    def limits(self, layer: Layer) -> Setting:
        """Return the rank of the weight, as far as its shape tells."""
        return (min(layer.weight.shape),)

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the projection onto the responses' principal axes; ask for the responses, or the narrower input."""
        draft = super().draft(layer, setting, statistics)
        return replace(draft, features=Features(layer.input)) if layer.widens else draft

    def fit(self, layer: Layer, setting: Setting, draft: Draft, samples: Samples, nonlinear: bool = True) -> Chain:
        """Return the chain of the low-rank regression on what was asked for."""
        if not layer.widens:
            return super().fit(layer, setting, draft, samples, nonlinear)
        fitted = fit_low_rank(samples, setting[0], prior=layer.weight.T.astype(np.float64), nonlinear=nonlinear)
        return two_links(layer, fitted.right.T, fitted.left, fitted.bias)

    def spread(self, layer: Layer) -> Float64Array:
        """Return the covariance of responses to white inputs."""
        return layer.white

"""A fully connected layer as two: truncated SVD, on the weights or on the responses (Denton 2014, Sec. 3.2.1).

Algebra. ``W [F, C] ~ P (Q' W)`` with ``P, Q [F, K]``. With ``P = Q`` = the leading left singular vectors of ``W``
this is its truncated SVD, the best approximation under inputs of covariance I; with the leading eigenvectors of the
responses' covariance ``W S W'`` it is the SVD of ``W S^(1/2)``, the best under inputs of covariance ``S``. The fit
starts there and goes on to the asymmetric nonlinear regression of :mod:`onnxlowrank.decompose.regression`, as for
convolutions.

One input gives one response here, so a rank may exceed the number of samples. What they leave open the weights decide:
to the samples' covariance comes, as if one more had been seen, that of the responses to white inputs, ``W W'``, and the
ridge of the regression is in proportion to it. Beyond the samples' subspace this is the truncated SVD of ``W`` again.

Subgraph:    Gemm(K) -> Gemm(F, bias), or MatMul(K) -> MatMul(F) -> Add
MACs:        K (C + F), against C F
Parameters:  K (C + F) + F
"""

from __future__ import annotations

from onnxlowrank.decompose.spectrum import Float64Array
from onnxlowrank.graph.layer import Layer
from onnxlowrank.passes.channel import Channel


class FullyConnected(Channel):
    """Two thin matrices in place of one: the channel pass without a kernel to slide."""

    name = "fully_connected"
    ops = ("Gemm", "MatMul")
    rank_names = ("K",)

    def spread(self, layer: Layer) -> Float64Array:
        """Return the covariance of responses to white inputs."""
        return layer.white

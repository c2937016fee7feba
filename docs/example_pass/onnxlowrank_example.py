"""Fewer input maps: 1x1, then ``k x k`` on ``K`` mixtures of the maps.

Algebra. With ``T = kh kw`` taps, the kernel folded to ``[C, F T]`` is replaced by a matrix of rank ``K``:

    W[f, c, t] ~ sum_k core[f, k, t] A[c, k]

Under the separable form of :mod:`onnxlowrank.decompose.metric`, whose part for the input maps is ``M [C, C]``, the best
``A`` spans the leading axes of the whitened kernel. It is returned with ``A' M A = I``, so the best core for it is
``(M A)' W``, and at ``K = C`` the product is ``W`` itself. The core is then refitted to the responses.

Subgraph:    Conv(1x1, K) -> Conv(k x k, F, the layer's strides, pads, dilations, bias)
MACs:        C K at (H_in, W_in) positions + K F k^2 at (H_out, W_out), against C F k^2
Parameters:  C K + K F k^2 + F
"""

from collections.abc import Iterator

import numpy as np

from onnxlowrank.decompose.spectrum import Float64Array, cumulative_energy, principal_axes
from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.layer import FloatArray, Geometry, Layer
from onnxlowrank.passes.base import (
    Candidate,
    Draft,
    KernelPass,
    Setting,
    Statistics,
    draft_of,
    placeholder,
    pointwise,
)


class FewerInputs(KernelPass):
    """A 1x1 convolution to fewer maps, then the layer's own filters on these."""

    name = "fewer_inputs"
    rough_energy = True
    rank_names = ("K",)

    def limits(self, layer: Layer) -> Setting:
        """Return the number of input maps."""
        return (layer.inputs,)

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield every aligned ``K``, with what the axes keep of the whitened kernel."""
        whitened = statistics.data.whiten(layer.folded)
        yield from self.by_rank(layer, cumulative_energy(_by_inputs(whitened)), block)

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes."""
        mixing, core = placeholder(*setting, layer.inputs), placeholder(layer.outputs, *setting, layer.taps)
        return _chain(layer, mixing, core, placeholder(layer.outputs))

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the decomposition of the kernel under the metric."""
        metric, kernel = statistics.metric, layer.folded
        _, axes = principal_axes(_by_inputs(metric.whiten(kernel)), *setting)
        mixing = metric.unwhiten_inputs(axes)  # A [C, K]
        core = np.einsum("ck,fct->fkt", metric.inputs @ mixing, kernel)
        return draft_of(layer, _chain(layer, mixing.T, core, layer.bias))


def _by_inputs(kernel: Float64Array) -> Float64Array:
    """Return the Gram matrix ``[C, C]`` of a kernel ``[F, C, T]`` folded to ``[C, F T]``."""
    folded = np.swapaxes(kernel, 0, 1).reshape(kernel.shape[1], -1)
    return folded @ folded.T


def _chain(layer: Layer, mixing: FloatArray, core: FloatArray, bias: FloatArray | None) -> Chain:
    kernel = core.astype(np.float32, copy=False).reshape(*core.shape[:2], *layer.kernel)
    flat = Geometry.pointwise(layer.geometry.axes)
    return Chain((Step("mixing", pointwise(mixing, layer), flat), Step("core", kernel, layer.geometry)), bias)

"""Two successive SVDs: 1x1, ``k x k``, 1x1 (Denton 2014, Sec. 3.2.2; today called Tucker-2).

Algebra. The kernel, folded to ``[C, T F]`` with ``T = kh kw`` taps, is replaced by its SVD of rank ``K1``, and what
remains, folded to ``[K1 T, F]``, by its SVD of rank ``K2``:

    W[f, c, t] ~ sum_{k2, k1} P[f, k2] core[k2, k1, t] A[c, k1]

The two are then improved together by higher-order orthogonal iteration, all under the metric of
:mod:`onnxlowrank.decompose.metric`, and ``P`` is refitted to the responses.

Grouped convolutions are taken apart group by group, all to the same ranks; all links have the layer's groups then.

Subgraph:    Conv(1x1, K1) -> Conv(k x k, K2, the layer's strides, pads, dilations) -> Conv(1x1, F, bias)
MACs:        C K1 at (H_in, W_in) positions + K1 K2 k^2 + K2 F at (H_out, W_out)
Parameters:  C K1 + K1 K2 k^2 + K2 F + F
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxlowrank.decompose.metric import Metric
from onnxlowrank.decompose.refine import refine
from onnxlowrank.decompose.tucker import Tucker2, hooi, tucker_energy, two_svds
from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.layer import FloatArray, Geometry, Layer
from onnxlowrank.passes.base import (
    Candidate,
    Draft,
    KernelPass,
    Setting,
    Statistics,
    aligned_ranks,
    draft_of,
    placeholder,
    pointwise,
)
from onnxlowrank.passes.groups import block_of, kernel_energy, kernels_of


class Svd(KernelPass):
    """Fewer input maps, fewer filters, then a 1x1 convolution that restores the channels."""

    name = "svd"
    ops = ("Conv", "ConvTranspose")
    rough_energy = True
    rank_names = ("K1", "K2")
    by_group = True

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield every aligned ``(K1, K2)`` with what the two SVDs keep."""
        energy, step = kernel_energy(layer, statistics.data, tucker_energy), block_of(layer, block)
        for k1 in aligned_ranks(layer.inputs // layer.group, step):
            for k2 in aligned_ranks(layer.outputs // layer.group, step):
                candidate = self.candidate(layer, (k1, k2), float(energy[k1, k2]))
                if candidate.macs >= layer.macs:
                    break
                yield candidate

    def limits(self, layer: Layer) -> Setting:
        """Return the numbers of input and of output maps, of a group."""
        return layer.inputs // layer.group, layer.outputs // layer.group

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes."""
        k1, k2 = setting
        inputs = placeholder(k1 * layer.group, layer.weight.shape[1])
        core = placeholder(k2 * layer.group, k1, layer.taps)
        return _chain(layer, inputs, core, placeholder(layer.outputs, k2), placeholder(layer.outputs))

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the decomposition of the kernel under the metric."""
        parts = [_factors(kernel, metric, setting) for kernel, metric in kernels_of(layer, statistics.metric)]
        inputs, core, outputs = (np.concatenate(factors) for factors in zip(*parts, strict=True))
        return draft_of(layer, _chain(layer, inputs, core, outputs, layer.bias))


def _factors(kernel: FloatArray, metric: Metric, setting: Setting) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return ``A' [K1, C]``, the core ``[K2, K1, T]`` and ``P [F, K2]`` of one kernel."""

    def solve(target: FloatArray, start: Tucker2 | None) -> Tucker2:
        return hooi(target, two_svds(target, *setting) if start is None else start, sweeps=2)

    found = refine(metric, kernel, solve, Tucker2.dense)
    core = metric.unwhiten_taps(found.core.reshape(-1, kernel.shape[2]).T).T.reshape(found.core.shape)
    return metric.unwhiten_inputs(found.inputs).T, core, metric.unwhiten_outputs(found.outputs)


def _chain(layer: Layer, inputs: FloatArray, core: FloatArray, outputs: FloatArray, bias: FloatArray | None) -> Chain:
    flat = Geometry.pointwise(layer.geometry.axes)
    kernel = core.astype(np.float32, copy=False).reshape(*core.shape[:2], *layer.kernel)
    steps = (
        Step("inputs", pointwise(inputs, layer), flat, layer.group),
        Step("core", kernel, layer.geometry, layer.group),
        Step("outputs", pointwise(outputs, layer), flat, layer.group),
    )
    return Chain(steps, bias)

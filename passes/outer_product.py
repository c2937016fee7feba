"""A sum of ``K`` outer products: 1x1, depthwise ``k x k``, 1x1 (Denton 2014, Sec. 3.2.2, Eq. 4-5).

Algebra. With ``T = kh kw`` taps, the kernel is a 3-tensor and

    W[f, c, t] ~ sum_k gamma_k[f] alpha_k[c] beta_k[t]

Terms are found one after the other by alternating least squares, each on what the former leave (Eq. 5), or all in
closed form, from the SVDs of the slices in the principal axes of the taps, whichever is nearer; beyond 64 terms in
closed form alone. Then all terms are improved at once, under the metric of :mod:`onnxlowrank.decompose.metric`, and
the ``gamma`` are refitted to the responses.

Grouped convolutions are taken apart group by group, all to as many terms; the 1x1 links have the layer's groups then.

Subgraph:    Conv(1x1, K) -> Conv(k x k, K, group=K, the layer's strides, pads, dilations) -> Conv(1x1, F, bias)
MACs:        C K at (H_in, W_in) positions + K k^2 + K F at (H_out, W_out)
Parameters:  K (C + k^2 + F) + F
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxlowrank.decompose._als import Terms, joint_als
from onnxlowrank.decompose.metric import Metric
from onnxlowrank.decompose.outer_product import greedy_terms, slice_energy, slice_terms
from onnxlowrank.decompose.refine import refine
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
from onnxlowrank.passes.groups import block_of, kernel_energy, kernels_of

MOST_GREEDY = 64
"""Terms that are found one by one; the time for each grows with the kernel."""


class OuterProduct(KernelPass):
    """Separate filters on mixtures of the input maps, mixed again."""

    name = "outer_product"
    rough_energy = True
    rank_names = ("K",)
    by_group = True

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield every aligned ``K`` with what the closed form keeps; all terms together keep more."""
        energy = kernel_energy(layer, statistics.data, slice_energy)
        yield from self.by_rank(layer, energy, block_of(layer, block))

    def limits(self, layer: Layer) -> Setting:
        """Return the number of terms that every kernel, of a group, is a sum of."""
        return (layer.taps * min(layer.inputs, layer.outputs) // layer.group,)

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes."""
        (rank,) = setting
        terms, outputs = rank * layer.group, placeholder(layer.outputs, rank)
        inputs, taps = placeholder(terms, layer.weight.shape[1]), placeholder(terms, 1, layer.taps)
        return _chain(layer, inputs, taps, outputs, placeholder(layer.outputs))

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the decomposition of the kernel under the metric."""
        parts = [_factors(kernel, metric, setting[0]) for kernel, metric in kernels_of(layer, statistics.metric)]
        inputs, taps, outputs = (np.concatenate(factors) for factors in zip(*parts, strict=True))
        return draft_of(layer, _chain(layer, inputs, taps, outputs, layer.bias))


def _factors(kernel: FloatArray, metric: Metric, rank: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return ``alpha [K, C]``, ``beta [K, T]`` and ``gamma [F, K]`` of one kernel."""
    found = refine(metric, kernel, lambda target, start: best_terms(target, rank, start), Terms.dense)
    outputs, inputs, taps = found.factors
    return metric.unwhiten_inputs(inputs).T, metric.unwhiten_taps(taps).T, metric.unwhiten_outputs(outputs)


def best_terms(kernel: FloatArray, rank: int, start: Terms | None) -> Terms:
    """Return the sum of ``rank`` outer products near a kernel ``[F, C, T]``, from ``start`` where there is one."""
    if start is not None:
        return joint_als(kernel, start, sweeps=2)
    starts = [slice_terms(kernel, rank)]
    if rank <= MOST_GREEDY:
        starts.append(greedy_terms(kernel, rank))
    return joint_als(kernel, min(starts, key=lambda terms: terms.squared_error(kernel)), sweeps=10)


def _chain(layer: Layer, inputs: FloatArray, taps: FloatArray, outputs: FloatArray, bias: FloatArray | None) -> Chain:
    rank, flat = len(inputs), Geometry.pointwise(layer.geometry.axes)
    kernel = taps.astype("float32", copy=False).reshape(rank, 1, *layer.kernel)
    steps = (
        Step("inputs", pointwise(inputs, layer), flat, layer.group),
        Step("taps", kernel, layer.geometry, group=rank),
        Step("outputs", pointwise(outputs, layer), flat, layer.group),
    )
    return Chain(steps, bias)

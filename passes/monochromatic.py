"""Every filter looks at one colour: 1x1 to ``C'`` colours, then ``k x k`` on one map each (Denton 2014, Sec. 3.3).

Algebra. A filter ``W_f [C, T]`` (``C`` input maps, ``T = kh kw`` taps) of rank one is a colour ``u [C]`` times a
spatial filter ``v [T]``; the best is given by its SVD. The filters are clustered into ``C'`` clusters of equal size,
each with one colour, and every filter is refitted on its cluster's:

    W_f ~ u_c v_f',    v_f = W_f' u_c                                       for f in cluster c

Clusters are those of balanced k-means under the subspace projection distance ``|W_f|^2 - |u_c' W_f|^2``, the error
itself, so neither the sign nor the scale of a filter matters to its cluster's colour; all under the metric of
:mod:`onnxlowrank.decompose.metric`. Then the ``v_f`` are refitted to the responses. Any number of input maps will do,
but the method is made for the few of a first layer. A ``C'`` that does not divide ``F`` fills the groups with zeros.

Subgraph:    Conv(1x1, C') -> Conv(k x k, F, group=C', the layer's strides, pads, dilations, bias), or Split -> C' Conv
             of one map -> Concat; then one Gather that brings the output maps back into their order, unless it can
             be folded into the weights that follow
MACs:        C C' at (H_in, W_in) positions + k^2 F at (H_out, W_out)
Parameters:  C C' + k^2 F + F
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxlowrank.decompose.clusters import balanced_clusters, cluster_bases, group_size, slots
from onnxlowrank.decompose.refine import refine
from onnxlowrank.decompose.spectrum import Float64Array
from onnxlowrank.graph.chain import Chain, IntArray, Step
from onnxlowrank.graph.layer import FloatArray, Geometry, Layer
from onnxlowrank.passes.base import (
    LOWEST_ENERGY,
    Candidate,
    Draft,
    KernelPass,
    Setting,
    Statistics,
    draft_of,
    placeholder,
    pointwise,
)


class Monochromatic(KernelPass):
    """Projection onto a few colours, then filters of one colour each."""

    name = "monochromatic"
    rank_names = ("C'",)

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield every ``C'`` whose clusters of filters are equal, and multiples of half a block."""
        kernel = statistics.data.whiten(layer.folded)
        total = float((kernel**2).sum())
        best = float((np.linalg.norm(kernel, ord=2, axis=(1, 2)) ** 2).sum())
        if best < LOWEST_ENERGY * total:  # not even a colour for every filter would do
            return
        step = max(block // 2, 1)
        for size in range(step, layer.outputs, step):
            candidate = self.candidate(layer, (layer.outputs // size,), 1.0)
            if layer.outputs % size == 0 and candidate.macs < layer.macs:
                labels = balanced_clusters(kernel, layer.outputs // size, restarts=1)
                kept = float((_Colours.of(kernel, labels).filters ** 2).sum())
                if kept < LOWEST_ENERGY * total:  # nor will fewer colours do
                    return
                yield self.candidate(layer, candidate.setting, kept / total if total else 1.0)

    def limits(self, layer: Layer) -> Setting:
        """Return one colour for each filter."""
        return (layer.outputs,)

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes."""
        (count,) = setting
        labels = np.arange(layer.outputs) % count
        return _chain(
            layer,
            labels,
            placeholder(count, layer.inputs),
            placeholder(layer.outputs, layer.taps),
            placeholder(layer.outputs),
        )

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the decomposition of the kernel under the metric."""
        metric = statistics.metric
        labels = balanced_clusters(metric.whiten(layer.folded), setting[0])
        found = refine(metric, layer.folded, lambda kernel, _: _Colours.of(kernel, labels), _Colours.dense)
        colours = metric.unwhiten_inputs(found.colours.T).T
        filters = metric.unwhiten_outputs(metric.unwhiten_taps(found.filters.T).T)
        return draft_of(layer, _chain(layer, labels, colours, filters, layer.bias))


@dataclass(frozen=True, eq=False)
class _Colours:
    """Colours ``[C', C]`` of norm 1, the filters ``[F, T]`` on them, and the labels ``[F]``: which is on which."""

    colours: Float64Array
    filters: Float64Array
    labels: IntArray

    @staticmethod
    def of(kernel: Float64Array, labels: IntArray) -> _Colours:
        """Return the best colours and filters of a kernel ``[F, C, T]`` with these clusters."""
        colours = cluster_bases(kernel, labels)[..., 0]
        return _Colours(colours, np.einsum("fct,fc->ft", kernel, colours[labels]), labels)

    def dense(self) -> Float64Array:
        """Return the kernel ``[F, C, T]``."""
        dense: Float64Array = self.colours[self.labels][:, :, None] * self.filters[:, None]
        return dense


def _chain(layer: Layer, labels: IntArray, colours: FloatArray, filters: FloatArray, bias: FloatArray | None) -> Chain:
    """Return the chain; clusters that are smaller than the largest are filled up with zeros."""
    count, slot = len(colours), slots(labels)
    kernel = np.zeros((count * group_size(labels), 1, *layer.kernel), np.float32)
    kernel[slot] = filters.reshape(-1, 1, *layer.kernel)
    steps = (
        Step("colours", pointwise(colours, layer), Geometry.pointwise(layer.geometry.axes)),
        Step("filters", kernel, layer.geometry, count, give=slot),
    )
    return Chain(steps, bias)

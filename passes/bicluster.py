"""Input and output maps clustered, every pair of clusters decomposed by itself (Denton 2014, Sec. 3.4).

Algebra. Balanced k-means under the subspace projection distance parts the input maps into ``G`` clusters of equal size
and the output maps into ``H``. Every one of the ``G H`` sub-tensors ``[F/H, C/G, T]`` (``T = kh kw`` taps) is then
replaced by ``P core A'``:

* ``bicluster_svd``: two successive SVDs, ``A [C/G, K1]``, ``core [K2, K1, T]``, ``P [F/H, K2]``, as in
  :mod:`onnxlowrank.passes.svd`;
* ``bicluster_outer``: ``K`` outer products, as in :mod:`onnxlowrank.passes.outer_product`, where the core is depthwise,

under the part of the metric that concerns the sub-tensor. Then all ``P`` are refitted to the responses together. A
``G`` or ``H`` that does not divide the maps makes clusters that differ by one; the smaller are filled with zeros.

Subgraph:    Conv(1x1, group=G) -> Conv(k x k, group=G H or depthwise) -> Conv(1x1, group=H, bias); what permutes the
             maps folds into the 1x1 convolutions when they are written densely, and is a Gather where they are not
MACs:        per position, with the 1x1 written in groups,
             svd    G H (C/G K1 + K1 K2 k^2 + K2 F/H)
             outer  G H K (C/G + k^2 + F/H)
Parameters:  the same, + F
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from onnxlowrank.decompose._als import Terms
from onnxlowrank.decompose.clusters import balanced_clusters, group_size, slots
from onnxlowrank.decompose.metric import Metric
from onnxlowrank.decompose.outer_product import slice_energy
from onnxlowrank.decompose.refine import refine
from onnxlowrank.decompose.tucker import Tucker2, hooi, tucker_energy, two_svds
from onnxlowrank.graph.chain import Chain, IntArray, Step
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
from onnxlowrank.passes.outer_product import best_terms

Factors = tuple[FloatArray, FloatArray, FloatArray]
"""``A [C/G, K1]``, the core ``[K2, K1 or 1, T]`` and ``P [F/H, K2]`` of one sub-tensor."""

_OUTPUT_CLUSTERS = (2, 4)
_MOST_PAIRED = 128


class _Bicluster(KernelPass):
    """What both decompositions of sub-tensors share."""

    @abstractmethod
    def input_clusters(self, layer: Layer, block: int) -> Sequence[int]:
        """Return the numbers ``G`` worth trying."""

    @abstractmethod
    def ranks(self, layer: Layer, g: int, h: int, block: int) -> Iterator[Setting]:
        """Yield the ranks worth trying, each entry nested in order."""

    @abstractmethod
    def energies(self, kernel: FloatArray) -> FloatArray:
        """Return the squared norm of a whitened sub-tensor that is kept, indexed by the ranks."""

    @abstractmethod
    def factors(self, metric: Metric, kernel: FloatArray, ranks: Setting) -> Factors:
        """Decompose one sub-tensor under its metric; ranks beyond its size are filled with zeros."""

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield aligned ranks for a few numbers of clusters, with what the sub-tensors' decompositions keep."""
        data, kernel = statistics.data, layer.folded
        filters = {h: cluster_filters(data, kernel, h) for h in _OUTPUT_CLUSTERS if layer.outputs >= h * block}
        for g in self.input_clusters(layer, block):
            maps = cluster_maps(data, kernel, g)
            for h, labels in filters.items():
                parts = [(np.flatnonzero(labels == i), np.flatnonzero(maps == j)) for i in range(h) for j in range(g)]
                whitened = [data.block(*part).whiten(kernel[np.ix_(*part)]) for part in parts]
                table = _summed([self.energies(piece) for piece in whitened])
                for ranks in self.ranks(layer, g, h, block):
                    candidate = self.candidate(layer, (g, h, *ranks), 1.0)
                    if candidate.macs < layer.macs:
                        kept = float(table[tuple(map(min, ranks, np.subtract(table.shape, 1)))])
                        total = float(table.flat[-1])
                        yield replace(candidate, energy=min(kept / total, 1.0) if total > 0 else 1.0)

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the clusters of maps and the decompositions of the sub-tensors under the metric."""
        g, h, *ranks = setting
        metric, kernel = statistics.metric, layer.folded
        maps, filters = cluster_maps(metric, kernel, g), cluster_filters(metric, kernel, h)
        blocks = []
        for i in range(h):
            for j in range(g):
                part = np.flatnonzero(filters == i), np.flatnonzero(maps == j)
                blocks.append(self.factors(metric.block(*part), kernel[np.ix_(*part)], tuple(ranks)))
        return draft_of(layer, _chain(layer, maps, filters, *_joined(maps, filters, blocks), layer.bias))

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes."""
        g, h, *ranks = setting
        maps, filters = np.arange(layer.inputs) % g, np.arange(layer.outputs) % h
        core = self.core(ranks, layer.taps)
        return _chain(
            layer,
            maps,
            filters,
            placeholder(g, h, ranks[0], group_size(maps)),
            placeholder(g * h * len(core), *core.shape[1:]),
            placeholder(h, group_size(filters), g, ranks[-1]),
            placeholder(layer.outputs),
        )

    @abstractmethod
    def core(self, ranks: Sequence[int], taps: int) -> FloatArray:
        """Return a hollow core."""


class BiclusterSvd(_Bicluster):
    """Clusters of maps, two SVDs each."""

    name = "bicluster_svd"
    rank_names = ("G", "H", "K1", "K2")

    def input_clusters(self, layer: Layer, block: int) -> Sequence[int]:
        """Return 2, as in the paper, as long as two blocks of maps remain in a cluster."""
        return [2] if layer.inputs >= 4 * block else []

    def ranks(self, layer: Layer, g: int, h: int, block: int) -> Iterator[Setting]:
        """Yield aligned ``(K1, K2)``."""
        for k1 in aligned_ranks(layer.inputs // g, block):
            for k2 in aligned_ranks(layer.outputs // h, block):
                yield k1, k2

    def energies(self, kernel: FloatArray) -> FloatArray:
        """Return ``[C/G + 1, F/H + 1]``."""
        return tucker_energy(kernel) * float((kernel**2).sum())

    def factors(self, metric: Metric, kernel: FloatArray, ranks: Setting) -> Factors:
        """Return the Tucker-2 factors."""
        k1, k2 = min(ranks[0], kernel.shape[1]), min(ranks[1], kernel.shape[0])

        def solve(target: FloatArray, start: Tucker2 | None) -> Tucker2:
            return hooi(target, two_svds(target, k1, k2) if start is None else start, sweeps=2)

        found = refine(metric, kernel, solve, Tucker2.dense)
        core = np.zeros((ranks[1], ranks[0], kernel.shape[2]))
        core[:k2, :k1] = metric.unwhiten_taps(found.core.reshape(-1, kernel.shape[2]).T).T.reshape(found.core.shape)
        inputs, outputs = metric.unwhiten_inputs(found.inputs), metric.unwhiten_outputs(found.outputs)
        return _wider(inputs, ranks[0]), core, _wider(outputs, ranks[1])

    def limits(self, layer: Layer) -> Setting:
        """Return one map a cluster, and all maps."""
        return layer.inputs, layer.outputs, layer.inputs, layer.outputs

    def core(self, ranks: Sequence[int], taps: int) -> FloatArray:
        """Return ``[K2, K1, T]``."""
        return placeholder(ranks[1], ranks[0], taps)


class BiclusterOuter(_Bicluster):
    """Clusters of maps, ``K`` outer products each."""

    name = "bicluster_outer"
    rank_names = ("G", "H", "K")

    def input_clusters(self, layer: Layer, block: int) -> Sequence[int]:
        """Return 2 and, as in the paper (48 of 96 maps), pairs of maps as long as they are not too many to cluster."""
        pairs = layer.inputs // 2
        return sorted({g for g in (2, pairs) if 1 <= g <= pairs and (g == 2 or layer.inputs <= _MOST_PAIRED)})

    def ranks(self, layer: Layer, g: int, h: int, block: int) -> Iterator[Setting]:
        """Yield every ``K`` that makes ``G H K`` a multiple of the block."""
        step = block // math.gcd(block, g * h)
        most = layer.taps * layer.inputs * layer.outputs // (layer.inputs * h + layer.outputs * g)
        return ((k,) for k in range(step, most + 1, step))

    def energies(self, kernel: FloatArray) -> FloatArray:
        """Return ``[T min(C/G, F/H) + 1]``."""
        return slice_energy(kernel) * float((kernel**2).sum())

    def factors(self, metric: Metric, kernel: FloatArray, ranks: Setting) -> Factors:
        """Return the factors of the terms."""
        rank = min(ranks[0], kernel.shape[2] * min(kernel.shape[:2]))
        found = refine(metric, kernel, lambda target, start: best_terms(target, rank, start), Terms.dense)
        outputs, inputs, taps = found.factors
        core = _wider(metric.unwhiten_taps(taps), ranks[0]).T[:, None]
        return (
            _wider(metric.unwhiten_inputs(inputs), ranks[0]),
            core,
            _wider(metric.unwhiten_outputs(outputs), ranks[0]),
        )

    def limits(self, layer: Layer) -> Setting:
        """Return one map a cluster, and as many terms as any kernel is a sum of."""
        return layer.inputs, layer.outputs, layer.taps * min(layer.inputs, layer.outputs)

    def core(self, ranks: Sequence[int], taps: int) -> FloatArray:
        """Return ``[K, 1, T]``."""
        return placeholder(ranks[0], 1, taps)


def cluster_maps(metric: Metric, kernel: FloatArray, count: int) -> IntArray:
    """Return the labels ``[C]`` of the input maps of a kernel ``[F, C, T]``, whose own scale alone weighs them."""
    alone = replace(metric, inputs=np.diag(np.diag(metric.inputs)), covariance=None, weights=None)
    return _clusters(np.moveaxis(alone.whiten(kernel), 1, 0), count)


def cluster_filters(metric: Metric, kernel: FloatArray, count: int) -> IntArray:
    """Return the labels ``[F]`` of the output maps of a kernel ``[F, C, T]``."""
    return _clusters(metric.whiten(kernel), count)


def _clusters(items: FloatArray, count: int) -> IntArray:
    vectors = items.reshape(len(items), -1)
    dimension = min(max(len(items) // count // 4, 1), 8, vectors.shape[1])
    return balanced_clusters(vectors, count, dimension=dimension, restarts=2)


def _summed(tables: Sequence[FloatArray]) -> FloatArray:
    """Return the sum of tables by rank; ranks beyond the size of one keep what its last ones keep."""
    shape = np.max([table.shape for table in tables], axis=0)
    padded = [np.pad(one, [(0, n - m) for n, m in zip(shape, one.shape, strict=True)], mode="edge") for one in tables]
    summed: FloatArray = np.sum(padded, axis=0)
    return summed


def _wider(factor: FloatArray, columns: int) -> FloatArray:
    """Return a factor with zeros for the columns it lacks."""
    return np.pad(factor, ((0, 0), (0, columns - factor.shape[1])))


def _joined(maps: IntArray, filters: IntArray, blocks: Sequence[Factors]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the sub-tensors' factors, those of the first cluster of filters first, side by side: see ``_chain``."""
    g, h = int(maps.max()) + 1, int(filters.max()) + 1
    map_slot, filter_slot, c, f = slots(maps), slots(filters), group_size(maps), group_size(filters)
    k2, k1 = len(blocks[0][1]), blocks[0][0].shape[1]
    inputs, outputs = np.zeros((g, h, k1, c), np.float32), np.zeros((h, f, g, k2), np.float32)
    for index, (a, _, p) in enumerate(blocks):
        i, j = divmod(index, g)
        inputs[j, i][:, map_slot[maps == j] - j * c] = a.T
        outputs[i, filter_slot[filters == i] - i * f, j] = p
    return inputs, np.concatenate([core for _, core, _ in blocks]).astype(np.float32, copy=False), outputs


def _chain(
    layer: Layer,
    maps: IntArray,
    filters: IntArray,
    inputs: FloatArray,
    core: FloatArray,
    outputs: FloatArray,
    bias: FloatArray | None,
) -> Chain:
    """Return the chain of ``inputs [G, H, K1, C/G]``, ``core [G H K2, K1 or 1, T]`` and ``outputs [H, F/H, G, K2]``."""
    g, h, k1, c = inputs.shape
    take = np.repeat([np.flatnonzero(maps == j)[0] for j in range(g)], c)
    take[slots(maps)] = np.arange(layer.inputs)
    by_filters = np.arange(g * h * k1).reshape(g, h, k1).transpose(1, 0, 2).ravel()
    flat, width = Geometry.pointwise(layer.geometry.axes), core.shape[1]
    steps = (
        Step(
            "inputs",
            pointwise(inputs.reshape(-1, c), layer),
            flat,
            g,
            take=None if g == 1 else take,
            give=None if 1 in (g, h) else by_filters,
        ),
        Step("core", core.reshape(-1, width, *layer.kernel), layer.geometry, g * h * k1 // width),
        Step(
            "outputs",
            pointwise(outputs.reshape(h * outputs.shape[1], -1), layer),
            flat,
            h,
            give=None if h == 1 else slots(filters),
        ),
    )
    return Chain(steps, bias)

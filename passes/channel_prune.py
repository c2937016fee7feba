"""Fewer input maps, chosen among those there are, and the filters that no longer make them gone (He 2017).

Algebra. Of the ``C`` input maps ``C'`` are kept, so that the response ``y = W x + b`` is still well predicted by them:

    min  | y - V x_K - b' |^2    over the maps K, |K| = C', and the kernel V [F, C', k, k]           (He 2017, Eq. 1)

He et al. choose ``K`` by a LASSO and find ``V`` by least squares. Here both come from the covariance of the input
patches: maps are taken away one by one, each time the one that the others replace best, all with the exact loss
(:mod:`onnxlowrank.decompose.prune`). Then ``V`` and ``b'`` are fitted to the true responses on what the rewritten
prefix gives, through the activation (:func:`onnxlowrank.passes.base.refit_last`), as the last link of every pass is.

Subgraph:    Gather(C' of the maps) -> Conv(k x k, F, the layer's strides, pads, dilations, bias)
MACs:        C' F k^2 per output position, against C F k^2
Parameters:  C' F k^2 + F

The Gather is no part of the result where it can be helped: :mod:`onnxlowrank.graph.cut_maps` moves it up to the layers
that make the maps and takes out their filters, of the last link where they are chains themselves. A layer in front with
``F0`` filters then has ``C'/C`` of its multiply-accumulates; that is what pruning is about, and it is counted with the
network, not here. Behind a residual Add, or where something else reads the maps, the Gather stays and samples.

Grouped convolutions keep ``C'`` maps of each group; ``C`` and ``F`` are then those of one group. A transposed one stays
transposed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from onnxlowrank.decompose.prune import Elimination, eliminate, without_others
from onnxlowrank.graph.chain import Chain, IntArray, Step
from onnxlowrank.graph.layer import FloatArray, Layer
from onnxlowrank.passes.base import Candidate, Draft, Pass, Setting, Statistics, draft_of, placeholder
from onnxlowrank.passes.groups import kernels_of


class ChannelPrune(Pass):
    """The layer's own convolution on some of its input maps."""

    name = "channel_prune"
    ops = ("Conv", "ConvTranspose")
    rank_names: ClassVar[tuple[str, ...]] = ("C'",)
    uses_metric = True
    chooses_maps = True
    by_default = False

    def refusal(self, layer: Layer) -> str | None:
        """Refuse what has a single input map, or one a group."""
        if layer.weight.shape[1] > 1:
            return None
        return "one input map" if layer.group == 1 else f"group={layer.group}"

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield every aligned ``C'`` with what the kept maps tell of the response."""
        whole = statistics.data.norm2(_on_all_maps(layer))
        lost = sum(one.lost for one in eliminations(layer, statistics))
        energy = np.ones(layer.weight.shape[1] + 1) - (lost / whole if whole > 0 else 0.0)
        yield from self.by_rank(layer, np.clip(energy, 1e-9, 1.0), block)

    def limits(self, layer: Layer) -> Setting:
        """Return the number of input maps of a group."""
        return (layer.weight.shape[1],)

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes; the maps are evenly spread."""
        maps, (count,) = layer.weight.shape[1], setting
        weight, chosen = placeholder(layer.outputs, count, *layer.kernel), [evenly_spread(count, maps)] * layer.group
        return _chain(layer, weight, chosen, placeholder(layer.outputs))

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the maps that go last and the best kernel on them, by the covariance of the patches."""
        chosen, kernels = [], []
        found = eliminations(layer, statistics)
        for one, (kernel, metric) in zip(found, kernels_of(layer, statistics.data), strict=True):
            chosen.append(one.kept(setting[0]))
            kernels.append(without_others(kernel, chosen[-1], metric))
        weight = np.concatenate(kernels).astype(np.float32).reshape(layer.outputs, setting[0], *layer.kernel)
        return draft_of(layer, _chain(layer, weight, chosen, layer.bias))


def eliminations(layer: Layer, statistics: Statistics) -> tuple[Elimination, ...]:
    """Return for every group its input maps in the order in which they are missed least; that is found once."""
    known: tuple[Elimination, ...] | None = statistics.memo.get("eliminations")
    if known is None:
        known = tuple(eliminate(kernel, metric) for kernel, metric in kernels_of(layer, statistics.data))
        statistics.memo["eliminations"] = known
    return known


def evenly_spread(count: int, maps: int) -> IntArray:
    """Return so many of the maps."""
    return np.floor((np.arange(count) + 0.5) * maps / count).astype(np.intp)


def _on_all_maps(layer: Layer) -> FloatArray:
    """Return the kernel ``[F, C, T]`` with zeros for the maps of other groups."""
    maps, filters = layer.weight.shape[1], layer.outputs // layer.group
    kernel = np.zeros((layer.outputs, layer.inputs, layer.taps))
    for g in range(layer.group):
        rows = slice(g * filters, (g + 1) * filters)
        kernel[rows, g * maps : (g + 1) * maps] = layer.folded[rows]
    return kernel


def _chain(layer: Layer, weight: FloatArray, chosen: Sequence[IntArray], bias: FloatArray | None) -> Chain:
    maps = layer.weight.shape[1]
    take = np.concatenate([one + g * maps for g, one in enumerate(chosen)])
    return Chain((Step("pruned", weight, layer.geometry, layer.group, take=take, among=layer.inputs),), bias)

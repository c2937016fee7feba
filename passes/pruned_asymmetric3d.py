"""Pruned, then vertical, horizontal and channel reduction: "3C", all at once (He 2017, Sec. 4.1.2).

Algebra. ``C'`` of the input maps are chosen, and the kernel that makes the most of them found, as
:mod:`onnxlowrank.passes.channel_prune` does. That kernel ``V [F, C', k, k]`` is taken apart as
:mod:`onnxlowrank.passes.asymmetric3d` takes a layer apart that has no other maps:

    y ~ P (Q' (V' x_K)) + b

with the ``d''`` vertical filters ``V'`` from the SVD of ``V`` under the covariance of the kept maps' vertical patches,
and ``1 x k`` and 1x1 fitted together to the true responses. He et al. fit each step to what the one before left; here
the last two see the true responses at once.

Subgraph:    Gather(C') -> Conv(kh x 1, d'') -> Conv(1 x kw, d') -> Conv(1x1, d, bias)
MACs:        d'' C' kh at (H_out, W_in) positions + d' d'' kw + d d' at (H_out, W_out); less in the layers in front
Parameters:  d'' C' kh + d' d'' kw + d d' + d

The Gather goes where that of :mod:`onnxlowrank.passes.channel_prune` does. Energies take the three reductions as
independent of each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from onnxlowrank.decompose.prune import without_others
from onnxlowrank.decompose.regression import Samples
from onnxlowrank.graph.chain import Chain, IntArray
from onnxlowrank.graph.layer import FloatArray, Layer
from onnxlowrank.passes.asymmetric3d import Asymmetric3D
from onnxlowrank.passes.base import Candidate, Draft, Features, Setting, Statistics
from onnxlowrank.passes.channel_prune import eliminations, evenly_spread
from onnxlowrank.passes.spatial import COLUMNS, taps_of

_SHARES = (0.5, 0.625, 0.75, 0.875)
"""Of the input maps that are kept: more kinds would make many candidates, and differ little."""


class PrunedAsymmetric3D(Asymmetric3D):
    """Three convolutions on some of the input maps."""

    name = "pruned_asymmetric3d"
    rank_names = ("C'", "d''", "d'")
    uses_metric = True
    chooses_maps = True
    by_default = False

    def refusal(self, layer: Layer) -> str | None:
        """Refuse what the layer without pruning is refused for, and grouped convolutions."""
        return f"group={layer.group}" if layer.group > 1 else super().refusal(layer)

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield the aligned ``(d'', d')`` of the unpruned layer on a few aligned numbers of input maps each."""
        whole = statistics.data.norm2(layer.folded)
        (elimination,) = eliminations(layer, statistics)
        lost = elimination.lost / whole if whole > 0 else np.zeros(layer.inputs + 1)
        counts = {max(round(share * layer.inputs / block) * block, block) for share in _SHARES}
        for inner in Asymmetric3D().candidates(layer, statistics, block):
            for count in sorted(counts):
                if count < layer.inputs:
                    energy = inner.energy * float(np.clip(1 - lost[count], 1e-9, 1))
                    yield self.candidate(layer, (count, *inner.setting), energy)

    def limits(self, layer: Layer) -> Setting:
        """Return the number of input maps, and the limits on all of them."""
        return layer.inputs, *super().limits(layer)

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes; the maps are evenly spread."""
        kept = evenly_spread(setting[0], layer.inputs)
        narrow = replace(layer, weight=layer.weight[:, kept])
        return _on_maps(super().outline(narrow, setting[1:]), kept, layer)

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the decomposition of the best kernel on the kept maps."""
        (elimination,) = eliminations(layer, statistics)
        kept = elimination.kept(setting[0])
        weight = without_others(layer.folded, kept, statistics.data)
        narrow = replace(layer, weight=weight.astype(np.float32).reshape(layer.outputs, len(kept), *layer.kernel))
        taps = taps_of(layer)[0]
        columns = (kept[:, None] * taps + np.arange(taps)).ravel()
        moments = {**statistics.moments, COLUMNS: statistics.moments[COLUMNS].part(columns)}
        found = super().draft(narrow, setting[1:], replace(statistics, moments=moments))
        chain = _on_maps(found.chain, kept, layer)
        return Draft(chain, Features(layer.input, chain.steps[:1], found.features.window))

    def fit(self, layer: Layer, setting: Setting, draft: Draft, samples: Samples, nonlinear: bool = True) -> Chain:
        """Return the draft's vertical filters, and the low-rank map fitted behind them."""
        first = draft.chain.steps[0]
        narrow: FloatArray = layer.weight[:, first.taken]
        found = super().fit(replace(layer, weight=narrow), setting[1:], draft, samples, nonlinear)
        return _on_maps(found, first.taken, layer)


def _on_maps(chain: Chain, kept: IntArray, layer: Layer) -> Chain:
    """Return a chain whose first link takes some of the maps of the layer's input."""
    first = replace(chain.steps[0], take=kept, among=layer.inputs)
    return Chain((first, *chain.steps[1:]), chain.bias)

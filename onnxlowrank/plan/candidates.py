"""The candidates of every layer: the settings of the passes that suit it, "keep", or ranks given by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxlowrank.decompose.spectrum import as_checked
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.graph.layer import Layer
from onnxlowrank.parallel import in_parallel
from onnxlowrank.passes.base import CHECKED_AT, LOWEST_ENERGY, Candidate, Pass, keep
from onnxlowrank.plan.manual_ranks import ManualRank
from onnxlowrank.progress import Advance


def layer_candidates(layer: Layer, drafts: Drafts, manual: Mapping[str, ManualRank], block: int) -> list[Candidate]:
    """Return the candidates of a layer: "keep", and every sensible setting of every pass; or what was set by hand."""
    return _offered(layer, drafts, manual, block)[0]


def _offered(
    layer: Layer, drafts: Drafts, manual: Mapping[str, ManualRank], block: int
) -> tuple[list[Candidate], str | None]:
    """Return the candidates of a layer, and why there are none but "keep" where passes suit and there are none."""
    asked, passes = manual.get(layer.name), drafts.applicable.get(layer.name, {})
    if not passes:
        return [keep(layer)], None
    if asked is not None and asked.method is not None and asked.setting:
        return [passes[asked.method].candidate(layer, asked.setting, energy=1.0)], None
    found = [
        candidate
        for one in passes.values()
        if asked is None or asked.method in (None, one.name)
        for candidate in _checked(layer, one, list(one.candidates(layer, drafts.statistics[layer.name], block)), drafts)
    ]
    least = LOWEST_ENERGY if asked is None else asked.energy
    enough = [candidate for candidate in found if candidate.energy >= least]
    if asked is None:
        candidates = [keep(layer), *enough]
    else:
        candidates = [min(enough, key=lambda candidate: candidate.macs, default=keep(layer))]
    if enough:
        return candidates, None
    if found:
        most = max(candidate.energy for candidate in found)
        lacks = f"no cheaper setting keeps {100 * least:g} % of its response's variance ({100 * most:.3g} % at most)"
        return candidates, lacks
    narrow = all(min(one.limits(layer)) <= block for one in passes.values())
    ranks = f"rank in multiples of {block}"
    return candidates, f"too narrow for any {ranks}" if narrow else f"no setting is cheaper ({ranks})"


def _checked(layer: Layer, method: Pass, candidates: Sequence[Candidate], drafts: Drafts) -> Sequence[Candidate]:
    """Return the candidates of a pass whose energies are rough as a draft tells them."""
    if not (method.rough_energy and candidates):
        return candidates
    tried = min(candidates, key=lambda candidate: (abs(candidate.energy - CHECKED_AT), candidate.macs))
    lost = drafts.lost(layer, tried)
    checked = {} if lost is None else {1 - tried.energy: lost}
    energies = 1 - as_checked(1 - np.array([one.energy for one in candidates]), checked)
    return [replace(one, energy=float(energy)) for one, energy in zip(candidates, energies, strict=True)]


def find_candidates(
    layers: Sequence[Layer], drafts: Drafts, manual: Mapping[str, ManualRank], block: int, advance: Advance
) -> tuple[dict[str, list[Candidate]], dict[str, str]]:
    """Return the candidates of every layer, in the order of the layers, and why some that passes suit have none.

    The largest layers are seen to first.
    """
    ordered = sorted(layers, key=lambda layer: -layer.weight.size)
    everything = in_parallel(lambda layer: _offered(layer, drafts, manual, block), ordered)
    by_layer, reasons = {}, {}
    for layer, (candidates, reason) in zip(ordered, everything, strict=True):
        by_layer[layer.name] = candidates
        if reason is not None:
            reasons[layer.name] = reason
        advance(1)
    return {layer.name: by_layer[layer.name] for layer in layers}, reasons

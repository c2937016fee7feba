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

_SMALL = 2**16
"""Weights of a kernel up to which promises are checked twice; drafts of larger ones take long."""


def layer_candidates(layer: Layer, drafts: Drafts, manual: Mapping[str, ManualRank], block: int) -> list[Candidate]:
    """Return the candidates of a layer: "keep", and every sensible setting of every pass; or what was set by hand."""
    asked, passes = manual.get(layer.name), drafts.applicable.get(layer.name, {})
    if not passes:
        return [keep(layer)]
    if asked is not None and asked.method is not None and asked.setting:
        return [passes[asked.method].candidate(layer, asked.setting, energy=1.0)]
    found = [
        candidate
        for one in passes.values()
        if asked is None or asked.method in (None, one.name)
        for candidate in _checked(layer, one, list(one.candidates(layer, drafts.statistics[layer.name], block)), drafts)
    ]
    if asked is not None:
        enough = [candidate for candidate in found if candidate.energy >= asked.energy]
        return [min(enough, key=lambda candidate: candidate.macs, default=keep(layer))]
    return [keep(layer), *(candidate for candidate in found if candidate.energy >= LOWEST_ENERGY)]


def _checked(layer: Layer, method: Pass, candidates: Sequence[Candidate], drafts: Drafts) -> Sequence[Candidate]:
    """Return the candidates of a pass whose energies are rough with those of a draft, or of two for a small layer."""
    if not (method.rough_energy and candidates):
        return candidates
    checked = {}
    for energy in CHECKED_AT if layer.weight.size <= _SMALL else CHECKED_AT[:1]:
        tried = min(candidates, key=lambda candidate: (abs(candidate.energy - energy), candidate.macs))
        lost = drafts.lost(layer, tried)
        if lost is not None:
            checked[1 - tried.energy] = lost
    energies = 1 - as_checked(1 - np.array([one.energy for one in candidates]), checked)
    return [replace(one, energy=float(energy)) for one, energy in zip(candidates, energies, strict=True)]


def find_candidates(
    layers: Sequence[Layer], drafts: Drafts, manual: Mapping[str, ManualRank], block: int, advance: Advance
) -> dict[str, list[Candidate]]:
    """Return the candidates of every layer, in the order of the layers; the largest layers are seen to first."""
    ordered = sorted(layers, key=lambda layer: -layer.weight.size)
    everything = in_parallel(lambda layer: layer_candidates(layer, drafts, manual, block), ordered)
    by_layer = {}
    for layer, candidates in zip(ordered, everything, strict=True):
        by_layer[layer.name] = candidates
        advance(1)
    return {layer.name: by_layer[layer.name] for layer in layers}

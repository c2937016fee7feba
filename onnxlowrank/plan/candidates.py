"""What every layer offers: the passes that suit it, their settings, ranks given by hand, and reasons to keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxlowrank.decompose.spectrum import as_checked
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.graph.layer import Layer
from onnxlowrank.parallel import in_parallel
from onnxlowrank.passes.base import CHECKED_AT, LOWEST_ENERGY, Candidate, Pass, keep
from onnxlowrank.plan.manual_ranks import ByHand
from onnxlowrank.progress import Advance

_SMALL = 2**16
"""Weights of a kernel up to which promises are checked twice; drafts of larger ones take long."""


def offer(layer: Layer, drafts: Drafts, by_hand: Mapping[str, ByHand], block: int) -> list[Candidate]:
    """Return what a layer offers: "keep", and every sensible setting of every pass; or what was chosen by hand."""
    asked, passes = by_hand.get(layer.name), drafts.suited.get(layer.name, {})
    if asked is not None and asked.method is not None and asked.setting:
        return [passes[asked.method].candidate(layer, asked.setting, energy=1.0)]
    offered = [
        candidate
        for one in passes.values()
        if asked is None or asked.method in (None, one.name)
        for candidate in _checked(layer, one, list(one.candidates(layer, drafts.statistics[layer.name], block)), drafts)
    ]
    if asked is not None:
        enough = [candidate for candidate in offered if candidate.energy >= asked.energy]
        return [min(enough, key=lambda candidate: candidate.macs, default=keep(layer))]
    return [keep(layer), *(candidate for candidate in offered if candidate.energy >= LOWEST_ENERGY)]


def _checked(layer: Layer, method: Pass, candidates: Sequence[Candidate], drafts: Drafts) -> Sequence[Candidate]:
    """Return the candidates of a careful pass with energies as a draft has them, or two of a small layer."""
    if not (method.careful and candidates):
        return candidates
    checked = {}
    for energy in CHECKED_AT if layer.weight.size <= _SMALL else CHECKED_AT[:1]:
        tried = min(candidates, key=lambda candidate: (abs(candidate.energy - energy), candidate.macs))
        lost = drafts.lost(layer, tried)
        if lost is not None:
            checked[1 - tried.energy] = lost
    energies = 1 - as_checked(1 - np.array([one.energy for one in candidates]), checked)
    return [replace(one, energy=float(energy)) for one, energy in zip(candidates, energies, strict=True)]


def offer_all(
    layers: Sequence[Layer], drafts: Drafts, by_hand: Mapping[str, ByHand], block: int, advance: Advance
) -> dict[str, list[Candidate]]:
    """Return what every layer offers, in the order of the layers; the largest layers are seen to first."""
    ordered = sorted(layers, key=lambda layer: -layer.weight.size)
    everything = in_parallel(lambda layer: offer(layer, drafts, by_hand, block), ordered)
    found = {}
    for layer, offered in zip(ordered, everything, strict=True):
        found[layer.name] = offered
        advance(1)
    return {layer.name: found[layer.name] for layer in layers}

"""What every layer offers: the passes that suit it, their settings, ranks given by hand, and reasons to keep it."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxlowrank.decompose.spectrum import as_checked
from onnxlowrank.errors import OptionError
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.graph.layer import Layer
from onnxlowrank.parallel import in_parallel
from onnxlowrank.passes.base import CHECKED_AT, LOWEST_ENERGY, Candidate, Pass, Setting, keep
from onnxlowrank.progress import Advance

_SMALL = 2**16
"""Weights of a kernel up to which promises are checked twice; drafts of larger ones take long."""

Suited = Mapping[str, Mapping[str, Pass]]
"""For every layer that may be rewritten, the passes that suit it, by their names."""


@dataclass(frozen=True)
class ByHand:
    """What ``--rank`` asks for in one layer: ranks, or the share of the response's variance to keep.

    Attributes:
        setting: The ranks; empty for the cheapest setting that is predicted to keep ``energy``.
        energy: In (0, 1).
        method: Name of the pass, or None for any.
    """

    setting: Setting = ()
    energy: float = 0.0
    method: str | None = None

    def __str__(self) -> str:
        ranks = "x".join(map(str, self.setting)) or f"{100 * self.energy:g}%"
        return ranks if self.method is None else f"{self.method}:{ranks}"


Ranks = Setting | ByHand


def suit(
    layers: Sequence[Layer], methods: Sequence[Pass], only: Sequence[str], exclude: Sequence[str], conv_only: bool
) -> tuple[Suited, dict[str, str]]:
    """Return the passes that suit every layer, and for the layers without any the reasons."""
    for option, patterns in (("--only", only), ("--exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(layer.name, pattern) for layer in layers):
                raise OptionError(f"{option} {pattern} matches no layer; layers are {_some_names(layers)}")
    suited: dict[str, dict[str, Pass]] = {}
    reasons: dict[str, str] = {}
    for layer in layers:
        if only and not any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in only):
            reasons[layer.name] = "not in --only"
        elif any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in exclude):
            reasons[layer.name] = "excluded"
        elif conv_only and not layer.is_conv:
            reasons[layer.name] = "--target macs counts convolutions"
        else:
            refusals = {one.name: one.refusal(layer) for one in methods if layer.op in one.ops}
            willing = {one.name: one for one in methods if refusals.get(one.name, "") is None}
            if willing:
                suited[layer.name] = willing
            else:
                reasons[layer.name] = (
                    "; ".join(sorted(set(filter(None, refusals.values())))) or f"no pass for {layer.op} chosen"
                )
    return suited, reasons


def set_by_hand(layers: Sequence[Layer], suited: Suited, ranks: Mapping[str, Ranks]) -> dict[str, ByHand]:
    """Return what was asked for by hand, checked and with the pass that does it.

    Where no pass is named, ranks are for the first one, in the order of names, that takes so many.
    """
    chosen = {}
    known = {layer.name: layer for layer in layers}
    for name, given in ranks.items():
        asked = given if isinstance(given, ByHand) else ByHand(tuple(given))
        shown = f"--rank {name}={asked}"
        if name not in known:
            raise OptionError(f"{shown}: there is no layer {name}; layers are {_some_names(layers)}")
        offered = suited.get(name, {})
        if asked.method is not None and asked.method not in offered:
            raise OptionError(f"{shown}: no pass {asked.method} suits this layer; choose from {', '.join(offered)}")
        willing = [one for one in offered.values() if asked.method in (None, one.name)]
        if not asked.setting:
            if not 0 < asked.energy < 1:
                raise OptionError(f"{shown}: the share of the response to keep is between 0 and 100 %")
            chosen[name] = asked
            continue
        fitting = [one for one in willing if len(one.rank_names) == len(asked.setting)]
        if not fitting:
            raise OptionError(f"{shown}: no pass chosen for this layer takes {len(asked.setting)} rank(s)")
        limits = fitting[0].limits(known[name])
        if any(not 1 <= rank <= limit for rank, limit in zip(asked.setting, limits, strict=True)):
            raise OptionError(f"{shown}: {fitting[0].name} takes ranks from 1 to {'x'.join(map(str, limits))} here")
        chosen[name] = replace(asked, method=fitting[0].name)
    return chosen


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


def _some_names(layers: Sequence[Layer]) -> str:
    return ", ".join([layer.name for layer in layers[:8]] + ["..."] * (len(layers) > 8))

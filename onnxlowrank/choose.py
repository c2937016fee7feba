"""What every layer offers: the passes that suit it, their settings, ranks given by hand, and reasons to keep it."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from onnxlowrank.errors import OptionError
from onnxlowrank.layer import Layer
from onnxlowrank.passes.base import KEEP, Candidate, Pass, Setting, Statistics

Suited = Mapping[str, Mapping[str, Pass]]
"""For every layer that may be rewritten, the passes that suit it, by their names."""

LOWEST_ENERGY = 0.8
"""A setting predicted to lose more than a fifth of a response's variance is no approximation and is not offered."""


def suit(
    layers: Sequence[Layer], methods: Sequence[Pass], only: Sequence[str], exclude: Sequence[str], target: str
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
        elif target == "macs" and not layer.is_conv:
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


def set_by_hand(layers: Sequence[Layer], suited: Suited, ranks: Mapping[str, Setting]) -> dict[str, Candidate]:
    """Return a candidate for every layer whose ranks were given by hand: of the first pass with that many ranks."""
    chosen = {}
    known = {layer.name: layer for layer in layers}
    for name, setting in ranks.items():
        shown = f"--rank {name}={'x'.join(map(str, setting))}"
        if name not in known:
            raise OptionError(f"{shown}: there is no layer {name}; layers are {_some_names(layers)}")
        fitting = [one for one in suited.get(name, {}).values() if len(one.rank_names) == len(setting)]
        if not fitting:
            raise OptionError(f"{shown}: no pass chosen for this layer takes {len(setting)} rank(s)")
        limits = fitting[0].limits(known[name])
        if any(not 1 <= rank <= limit for rank, limit in zip(setting, limits, strict=True)):
            raise OptionError(f"{shown}: {fitting[0].name} takes ranks from 1 to {'x'.join(map(str, limits))} here")
        chosen[name] = fitting[0].candidate(known[name], setting, energy=1.0)
    return chosen


def offer(
    layer: Layer,
    suited: Suited,
    statistics: Mapping[str, Statistics],
    by_hand: Mapping[str, Candidate],
    block: int,
) -> list[Candidate]:
    """Return what a layer offers: "keep", and every sensible setting of every pass; or the setting chosen by hand."""
    if layer.name in by_hand:
        return [by_hand[layer.name]]
    offered = [Candidate(layer.name, KEEP, (), layer.macs, 1.0)]
    for one in suited.get(layer.name, {}).values():
        offered += [c for c in one.candidates(layer, statistics[layer.name], block) if c.energy >= LOWEST_ENERGY]
    return offered


def _some_names(layers: Sequence[Layer]) -> str:
    return ", ".join([layer.name for layer in layers[:8]] + ["..."] * (len(layers) > 8))

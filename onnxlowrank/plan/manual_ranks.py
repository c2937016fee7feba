"""Ranks given by hand, checked against the layers and the passes that suit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnxlowrank.errors import OptionError
from onnxlowrank.graph.layer import Layer
from onnxlowrank.passes.base import ApplicablePasses, Setting


@dataclass(frozen=True)
class ManualRank:
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


Ranks = Setting | ManualRank


def manual_ranks(
    layers: Sequence[Layer], applicable: ApplicablePasses, ranks: Mapping[str, Ranks]
) -> dict[str, ManualRank]:
    """Return what was asked for by hand, checked and with the pass that does it.

    A layer of several places goes by the name of any. Where no pass is named, ranks are for the first one, in the order
    of names, that takes so many.
    """
    chosen: dict[str, ManualRank] = {}
    known = {place.name: layer for layer in layers for place in layer.places}
    for node, given in ranks.items():
        asked = given if isinstance(given, ManualRank) else ManualRank(tuple(given))
        shown = f"--rank {node}={asked}"
        if node not in known:
            raise OptionError(f"{shown}: there is no layer {node}; layers are {some_names(layers)}")
        layer = known[node]
        name = layer.name
        if name in chosen:
            raise OptionError(f"{shown}: that is layer {name}, with the same weight, for which --rank is given as well")
        passes = applicable.get(name, {})
        if asked.method is not None and asked.method not in passes:
            raise OptionError(f"{shown}: no pass {asked.method} suits this layer; choose from {', '.join(passes)}")
        willing = [one for one in passes.values() if asked.method in (None, one.name)]
        if not asked.setting:
            if not 0 < asked.energy < 1:
                raise OptionError(f"{shown}: the share of the response to keep is between 0 and 100 %")
            chosen[name] = asked
            continue
        fitting = [one for one in willing if len(one.rank_names) == len(asked.setting)]
        if not fitting:
            raise OptionError(f"{shown}: no pass chosen for this layer takes {len(asked.setting)} rank(s)")
        limits = fitting[0].limits(layer)
        if any(not 1 <= rank <= limit for rank, limit in zip(asked.setting, limits, strict=True)):
            raise OptionError(f"{shown}: {fitting[0].name} takes ranks from 1 to {'x'.join(map(str, limits))} here")
        chosen[name] = replace(asked, method=fitting[0].name)
    return chosen


def some_names(layers: Sequence[Layer]) -> str:
    """Return the names of the first layers, for messages."""
    return ", ".join([layer.name for layer in layers[:8]] + ["..."] * (len(layers) > 8))

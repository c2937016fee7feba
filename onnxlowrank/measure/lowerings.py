"""Chooses the forms in which the links of chains are written, and remembers them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.measure.chain_timer import GAIN, ChainTimer, fastest_lowering, signature
from onnxlowrank.measure.inside_timer import LinkTimes

TimeChains = Callable[[Sequence[Mapping[str, Chain]]], Sequence[Mapping[str, LinkTimes]]]
"""Returns what the links of chains take, by layer, in each of several networks, where this can be told."""


class Lowerings:
    """Chooses how chains are lowered: once for every shape of a chain in a layer."""

    def __init__(self, timer: ChainTimer | None) -> None:
        """Choose nothing yet.

        Args:
            timer: Times chains of which nothing else is known; None leaves those in the forms to take unmeasured.
        """
        self._timer = timer
        self._chosen: dict[str, tuple[str, ...]] = {}

    def __call__(self, layer: Layer, chain: Chain) -> tuple[str, ...]:
        """Return the form of every link of a chain."""
        if self._timer is None:
            return chain.lowerings
        key = _key(layer, chain)
        if key not in self._chosen:
            self._chosen[key] = fastest_lowering(self._timer, layer, chain)
        return self._chosen[key]

    def choose_together(
        self, layers: Mapping[str, Layer], outlines: Mapping[str, Chain], time: TimeChains
    ) -> dict[str, float]:
        """Choose how chains of one network are lowered, and return the milliseconds they take in it.

        All the links are tried in their first form, all in their second and all in their third, in networks timed in
        turns. Then the best of each are tried together, since what a form costs also depends on its neighbours'.

        Args:
            layers: The layers.
            outlines: Chains by layer.
            time: Times them together.
        """
        keys = {name: _key(layers[name], chain) for name, chain in outlines.items()}
        usual = {name: self._chosen.get(keys[name], chain.lowerings) for name, chain in outlines.items()}
        open_ = {
            name: [step.lowerings for step in chain.steps]
            for name, chain in outlines.items()
            if keys[name] not in self._chosen
        }
        most = max((len(forms) for links in open_.values() for forms in links), default=1)
        tried = [
            usual
            | {name: tuple(forms[min(number, len(forms) - 1)] for forms in links) for name, links in open_.items()}
            for number in range(most)
        ]
        first, *others = times = list(time([_lowered(outlines, forms) for forms in tried]))
        best = {
            name: tuple(
                _best(forms, [one[name][link] for one in times if name in one]) for link, forms in enumerate(links)
            )
            for name, links in open_.items()
            if name in first
        }
        if any(all(forms[name] != best[name] for forms in tried) for name in best):
            tried.append(usual | best)
            others += time([_lowered(outlines, tried[-1])])
        found = {name: sum(links) for name, links in first.items()}
        for forms, links in zip(tried[1:], others, strict=True):
            better = [name for name in best if name in links and sum(links[name]) < (1 - GAIN) * found[name]]
            usual |= {name: forms[name] for name in better}
            found |= {name: sum(links[name]) for name in better}
        self._chosen |= {keys[name]: usual[name] for name in best}
        return found


def _best(forms: Sequence[str], times: Sequence[float]) -> str:
    """Return the fastest form, the first one where others save no more than noise."""
    number = min(range(len(forms)), key=lambda one: times[one])
    return forms[number] if times[number] < (1 - GAIN) * times[0] else forms[0]


def _lowered(outlines: Mapping[str, Chain], forms: Mapping[str, tuple[str, ...]]) -> dict[str, Chain]:
    return {name: chain.lowered(forms[name]) for name, chain in outlines.items()}


def _key(layer: Layer, chain: Chain) -> str:
    return json.dumps([signature(place, chain) for place in layer.one_by_one()])

"""Chooses the forms in which the links of chains are written, and remembers them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.measure.chain_timer import GAIN, ChainTimer, fastest_lowering, signature

TimeChains = Callable[[Mapping[str, Chain]], Mapping[str, float]]
"""Returns the milliseconds of chains, by layer, in the network they make together, where these can be told."""


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

        As in :func:`fastest_lowering`, the forms of one link after the other are tried, but in all the chains at once.

        Args:
            layers: The layers.
            outlines: Chains by layer.
            time: Times them together.
        """
        keys = {name: _key(layers[name], chain) for name, chain in outlines.items()}
        forms = {name: self._chosen.get(keys[name], chain.lowerings) for name, chain in outlines.items()}
        best = dict(time(_lowered(outlines, forms)))
        new = {name: outlines[name].steps for name in best if keys[name] not in self._chosen}
        for link in range(max(map(len, new.values()), default=0)):
            options = {name: steps[link].lowerings for name, steps in new.items() if link < len(steps)}
            for number in range(1, max(map(len, options.values()), default=0)):
                tried = {
                    name: (*forms[name][:link], its[number], *forms[name][link + 1 :])
                    for name, its in options.items()
                    if number < len(its)
                }
                found = time(_lowered(outlines, forms | tried))
                better = [name for name in tried if found.get(name, best[name]) < (1 - GAIN) * best[name]]
                forms |= {name: tried[name] for name in better}
                best |= {name: found[name] for name in better}
        self._chosen |= {keys[name]: forms[name] for name in new}
        return best


def _lowered(outlines: Mapping[str, Chain], forms: Mapping[str, tuple[str, ...]]) -> dict[str, Chain]:
    return {name: chain.lowered(forms[name]) for name, chain in outlines.items()}


def _key(layer: Layer, chain: Chain) -> str:
    return json.dumps([signature(place, chain) for place in layer.one_by_one()])

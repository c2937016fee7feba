"""Milliseconds of chains inside the network they belong to, all those of one outline at once.

A chain on its own and a chain among others differ in what the caches hold and in the layouts its neighbours leave. One
brief run under onnxruntime's profiler tells the times of all the chains of a network where they are, and takes little
longer than timing one of them alone. The original network runs in turns with it: what slows the machine down slows
both, and a chain's time is its share of the time that its layer took there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property

import onnx
import onnxruntime as ort

from onnxlowrank.graph.chain import Chain, as_chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.cache import Cache, Timing, timing_key
from onnxlowrank.measure.calm import Calm
from onnxlowrank.measure.chain_timer import signature
from onnxlowrank.measure.latency import measure
from onnxlowrank.measure.layer_times import time_per_layer, time_per_link
from onnxlowrank.measure.node_times import profile_beside
from onnxlowrank.measure.sessions import Target, open_session

_DENSE_S, _BRIEF_S = 2.0, 0.4
_TRIES = 3  # while other work slows the network down
_METHOD = 2  # to be raised when times taken in another way would not compare to those remembered
_NUMBERED = re.compile(r"_\d+$")
_LEAST = 1e-3  # of the layer's time, that of a chain lost in noise


LinkTimes = tuple[float, ...]
"""Milliseconds of the links of a chain."""
Write = Callable[[Mapping[str, Chain]], onnx.ModelProto]
"""Makes a network with chains in place of layers."""


class InsideTimer:
    """Times the layers of one network, and the chains in their place, on one target.

    Attributes:
        rest: Milliseconds of what belongs to no layer, beside the chains that were timed last; None before.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        layers: Sequence[Layer],
        feeds: Feeds,
        target: Target,
        cache: Cache,
        subject: Mapping[str, str] | None = None,
    ) -> None:
        """Time nothing yet.

        Args:
            model: The network.
            layers: Its layers.
            feeds: One input.
            target: The CPU; on CUDA the profiler sees nothing but launches, and no layer's time is known.
            cache: Remembers times.
            subject: What else than the shapes of layers and chains their times depend on.
        """
        self._subject = subject or {}
        self._model, self._feeds, self._target, self._cache = model, feeds, target, cache
        self._layers = {layer.name: layer for layer in layers}
        self._calm = Calm()
        self.rest: float | None = None

    @property
    def dense(self) -> dict[str, float]:
        """The milliseconds of the layers as they are, of those that can be told."""
        return self._dense[0]

    @property
    def whole(self) -> float:
        """The milliseconds of the whole network."""
        return self._dense[1]

    def milliseconds(self, networks: Sequence[Mapping[str, Chain]], write: Write) -> list[dict[str, LinkTimes]]:
        """Return what the links of chains take in place of their layers, of those layers whose time can be told.

        Networks are timed in turns, those that are not remembered.

        Args:
            networks: The chains of each by layer, lowered.
            write: Makes the network with these chains.
        """
        found = [
            {name: self._remembered(name, chain) for name, chain in chains.items() if name in self.dense}
            for chains in networks
        ]
        new = [index for index, one in enumerate(found) if None in one.values()]
        for index, times in zip(new, self._measured([networks[index] for index in new], write), strict=True):
            found[index] |= times
        return [{name: times for name, times in one.items() if times is not None} for one in found]

    def _measured(self, networks: Sequence[Mapping[str, Chain]], write: Write) -> list[dict[str, LinkTimes]]:
        """Time chains inside the networks they make, remember the times and return them."""
        if not networks:
            return []
        models = [write(chains) for chains in networks]
        for _ in range(_TRIES):
            profiles, beside = profile_beside(models, self._session, self._feeds, self._target, _BRIEF_S)
            if self._calm.quiet([beside]):
                break
        else:
            self._calm.settle([beside])
        scale, found = self._beside / beside, []
        for chains, times in zip(networks, profiles, strict=True):
            inside, rest = time_per_link(times, list(self._layers.values()), self._own)
            self.rest = rest * scale
            told = [name for name in chains if name in self.dense and inside[name]]  # others left no node
            found.append({name: self._taken(name, chains[name], inside[name], scale) for name in told})
        return found

    def _taken(self, name: str, chain: Chain, links: Mapping[str, float], scale: float) -> LinkTimes:
        """Return and remember what the links of a chain take, given the time of what they became."""
        taken, least = [0.0] * len(chain.steps), _LEAST * self.dense[name]
        for link, milliseconds in links.items():
            taken[_place_of(link, chain)] += milliseconds * scale
        known = self._cache.get(self._key(name, None))
        if known is None:
            self._cache.put(self._key(name, None), known := Timing(self.dense[name], 0.0))
        times = tuple(max(one, least / len(taken)) for one in taken)
        for number, one in enumerate(times):
            self._cache.put(self._key(name, chain, number), Timing(one / self.dense[name] * known.ms, 0.0))
        return times

    def _remembered(self, name: str, chain: Chain) -> LinkTimes | None:
        known = self._cache.get(self._key(name, None))
        found = [self._cache.get(self._key(name, chain, number)) for number in range(len(chain.steps))]
        links = [one.ms for one in found if one is not None]
        if known is None or len(links) < len(found):
            return None
        return tuple(one / known.ms * self.dense[name] for one in links)

    def _key(self, name: str, chain: Chain | None, link: int = 0) -> str:
        places = [signature(one, chain or as_chain(one)) for one in self._layers[name].one_by_one()]
        about = {"inside": _METHOD, "places": places, "link": link, **self._subject}
        return timing_key(about, self._target)

    @cached_property
    def _dense(self) -> tuple[dict[str, float], float, float]:
        """The milliseconds of the layers, of the whole network by the profiler, and without it."""
        if self._target.kind != "cpu":
            (latency,) = measure([self._model], self._feeds, self._target, _DENSE_S)
            return {}, latency.median, latency.median
        (times,), beside = profile_beside([self._model], self._session, self._feeds, self._target, _DENSE_S)
        self._calm.quiet([beside])
        inside, rest = time_per_layer(times, list(self._layers.values()), self._own)
        return {name: one for name, one in inside.items() if one}, rest + sum(inside.values()), beside

    @property
    def _beside(self) -> float:
        return self._dense[2]

    @cached_property
    def _session(self) -> ort.InferenceSession:
        return open_session(self._model, self._target)

    @cached_property
    def _own(self) -> Collection[str]:
        return frozenset(node.name for node in self._model.graph.node)


def _place_of(link: str, chain: Chain) -> int:
    """Return the number of the link that nodes of this name belong to; a bias of its own is of the last one."""
    names = [step.name for step in chain.steps]
    plain = _NUMBERED.sub("", link)
    return names.index(link) if link in names else names.index(plain) if plain in names else len(names) - 1

"""Milliseconds of chains inside the network they belong to, all those of one outline at once.

A chain on its own and a chain among others differ in what the caches hold and in the layouts its neighbours leave. One
brief run under onnxruntime's profiler tells the times of all the chains of a network where they are, and takes little
longer than timing one of them alone. The original network runs in turns with it: what slows the machine down slows
both, and a chain's time is its share of the time that its layer took there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property

import onnx
import onnxruntime as ort

from onnxlowrank.graph.chain import Chain, as_chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.cache import Cache, Timing, timing_key
from onnxlowrank.measure.chain_timer import signature
from onnxlowrank.measure.latency import measure
from onnxlowrank.measure.node_times import profile_beside, time_per_layer
from onnxlowrank.measure.sessions import Target, open_session

_DENSE_S, _BRIEF_S = 2.0, 0.4
_METHOD = 1  # to be raised when times taken in another way would not compare to those remembered
_LEAST = 1e-3  # of the layer's time, that of a chain lost in noise


class InsideTimer:
    """Times the layers of one network, and the chains in their place, on one target."""

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

    @property
    def dense(self) -> dict[str, float]:
        """The milliseconds of the layers as they are, of those that can be told."""
        return self._dense[0]

    @property
    def whole(self) -> float:
        """The milliseconds of the whole network."""
        return self._dense[1]

    def milliseconds(
        self, chains: Mapping[str, Chain], write: Callable[[Mapping[str, Chain]], onnx.ModelProto]
    ) -> dict[str, float]:
        """Return what chains take in place of their layers, of those layers whose time can be told.

        Args:
            chains: By layer, lowered.
            write: Makes the network with these chains.
        """
        told = {name: chain for name, chain in chains.items() if name in self.dense}
        found = {name: self._remembered(name, chain) for name, chain in told.items()}
        if any(time is None for time in found.values()):
            found |= self._measured(told, write(chains))
        return {name: time for name, time in found.items() if time is not None}

    def _measured(self, chains: Mapping[str, Chain], model: onnx.ModelProto) -> dict[str, float]:
        """Time chains inside ``model``, remember the times and return them."""
        times, beside = profile_beside(model, self._session, self._feeds, self._target, _BRIEF_S)
        inside, _ = time_per_layer(times, list(self._layers.values()), self._own)
        found = {}
        for name, chain in chains.items():
            dense = self.dense[name]
            if not inside[name]:  # none of its nodes was recognised
                continue
            found[name] = max(inside[name] * self._beside / beside, _LEAST * dense)
            known = self._cache.get(self._key(name, None))
            if known is None:
                self._cache.put(self._key(name, None), known := Timing(dense, 0.0))
            self._cache.put(self._key(name, chain), Timing(found[name] / dense * known.ms, 0.0))
        return found

    def _remembered(self, name: str, chain: Chain) -> float | None:
        known, timed = (self._cache.get(self._key(name, one)) for one in (None, chain))
        return None if known is None or timed is None else timed.ms / known.ms * self.dense[name]

    def _key(self, name: str, chain: Chain | None) -> str:
        places = [signature(one, chain or as_chain(one)) for one in self._layers[name].one_by_one()]
        return timing_key({"inside": _METHOD, "places": places, **self._subject}, self._target)

    @cached_property
    def _dense(self) -> tuple[dict[str, float], float, float]:
        """The milliseconds of the layers, of the whole network by the profiler, and without it."""
        if self._target.kind != "cpu":
            (latency,) = measure([self._model], self._feeds, self._target, _DENSE_S)
            return {}, latency.median, latency.median
        times, beside = profile_beside(self._model, self._session, self._feeds, self._target, _DENSE_S)
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

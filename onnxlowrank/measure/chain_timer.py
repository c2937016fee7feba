"""Milliseconds of chains of one layer on an execution provider, and the forms in which a chain is fastest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxlowrank.graph.chain import Chain, as_chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.measure.cache import Cache, Timing, timing_key
from onnxlowrank.measure.latency import measure
from onnxlowrank.measure.one_layer import frame, framed, random_feeds
from onnxlowrank.measure.sessions import Target

_Times = NDArray[np.floating]

SECONDS = (0.05, 0.1, 0.45)
"""About how long a chain is timed; where that is too noisy, so much longer, and once more."""
_NOISE = 0.02  # more than this standard error of a time, as a share of it, is too noisy
_LEAST = 1e-3  # of the layer's time, that of a chain lost in noise
_AT_ONCE = 8  # as many chains are timed in turns
GAIN = 0.03  # of the time that another form has to save
_METHOD = 2  # to be raised when times taken in another way would not compare to those remembered


class ChainTimer:
    """Times chains on one target, each shape of chain and layer once: times are remembered in a cache.

    Attributes:
        timed: How many chains were timed, not remembered.
        noisy: How many of them stayed too noisy.
    """

    def __init__(
        self,
        target: Target,
        cache: Cache,
        prepare: Callable[[ModelProto], ModelProto] = lambda model: model,
        subject: Mapping[str, str] | None = None,
    ) -> None:
        """Time nothing yet.

        Args:
            target: Where.
            cache: Remembers times.
            prepare: Makes of a layer or chain in its frame what is timed.
            subject: What else than the shapes of layers and chains their times then depend on.
        """
        self._target = target
        self._cache = cache
        self._prepare, self._subject = prepare, subject or {}
        self.timed = self.noisy = 0

    def milliseconds(self, layer: Layer, chain: Chain | None) -> Timing:
        """Return the time of ``chain`` in place of ``layer``, or of the layer itself, inside a network.

        It is that of all places of the layer together.
        """
        return self.many(layer, [chain])[0]

    def many(self, layer: Layer, chains: Sequence[Chain | None]) -> list[Timing]:
        """Return the time of every one of ``chains``; None stands for the layer as it is.

        Those that are not remembered are timed in turns with the layer. What is kept is the median share of the layer's
        time they take, since what slows the machine down, now or since the layer was timed first, slows both down. The
        layer's own time has nothing to be compared with but other layers; other work on the machine can only add to it,
        so it is the lower quartile.
        """
        by_place = [self._alone(one, chains) for one in layer.one_by_one()]
        return [_summed(timings) for timings in zip(*by_place, strict=True)]

    def _alone(self, layer: Layer, chains: Sequence[Chain | None]) -> list[Timing]:
        """Return the times at the one place of a layer."""
        wanted = [chain or as_chain(layer) for chain in chains]
        keys = [self._key(layer, chain) for chain in wanted]
        found = {key: timing for key in keys if (timing := self._cache.get(key)) is not None}
        missing = [(key, chain) for key, chain in dict(zip(keys, wanted, strict=True)).items() if key not in found]
        for start in range(0, len(missing), _AT_ONCE):
            found |= self._measured(layer, dict(missing[start : start + _AT_ONCE]))
        return [found[key] for key in keys]

    def _key(self, layer: Layer, chain: Chain) -> str:
        return timing_key({"method": _METHOD, **signature(layer, chain), **self._subject}, self._target)

    def _measured(self, layer: Layer, chains: Mapping[str, Chain]) -> dict[str, Timing]:
        """Time ``chains``, remember the times by their keys and return them."""
        reference, dense = self._key(layer, as_chain(layer)), as_chain(layer)
        total, shares = self._shares(layer, {**chains, reference: dense}, reference)
        known = self._cache.get(reference)
        if known is None:
            own = total * shares[reference]
            known = Timing(float(np.percentile(own, 25)), _spread(own))
        scale = known.ms / float(np.median(shares[reference]))
        found = {key: Timing(scale * float(np.median(share)), scale * _spread(share)) for key, share in shares.items()}
        found[reference] = known
        for key, timing in found.items():
            self._cache.put(key, timing)
        return found

    def _shares(self, layer: Layer, chains: Mapping[str, Chain], reference: str) -> tuple[_Times, dict[str, _Times]]:
        """Return the times of one of ``chains`` in its frame, and those of all without it as shares of these."""
        outer = frame(layer, self._target.kind)
        models = [framed(layer, chain, self._target.kind) for chain in chains.values()]
        if outer is not None:
            models.append(outer)
        feeds, rounds = random_feeds(models[0]), np.empty((len(models), 0))
        models = [self._prepare(model) for model in models]
        for seconds in SECONDS:
            taken = measure(models, feeds, self._target, seconds * len(models))
            rounds = np.append(rounds, [latency.milliseconds for latency in taken], axis=1)
            total = rounds[list(chains).index(reference)]
            net = rounds[: len(chains)] - (0 if outer is None else rounds[-1])
            shares = np.maximum(net / total, _LEAST)
            noisy = sum(map(_is_noisy, shares))
            if not (noisy or _is_noisy(total)):
                break
        self.timed += len(chains)
        self.noisy += noisy
        return total, dict(zip(chains, shares, strict=True))


def fastest_lowering(timer: ChainTimer, layer: Layer, chain: Chain) -> tuple[str, ...]:
    """Return the form of every link of ``chain`` with which it is fastest.

    Starting from those to take unmeasured, the forms of one link after the other are tried; a form is changed where
    that saves more than the noise of a measurement. Nothing is timed where every link has one form only.
    """
    lowerings = list(chain.lowerings)
    for i, step in enumerate(chain.steps):
        options = [[*lowerings[:i], lowering, *lowerings[i + 1 :]] for lowering in step.lowerings]
        if len(options) == 1:
            continue
        before, *others = (timing.ms for timing in timer.many(layer, [chain.lowered(option) for option in options]))
        best = min(others)
        if best < (1 - GAIN) * before:
            lowerings = options[1 + others.index(best)]
    return tuple(lowerings)


def signature(layer: Layer, chain: Chain) -> dict[str, Any]:
    """Return what the time of ``chain`` in place of ``layer`` depends on; the values of weights it does not."""
    return {
        "op": layer.op + " of columns" * layer.columns,
        "input": list(layer.input_shape),
        "activation": layer.activation.name,
        "shortcut": layer.shortcut is not None,
        "bias": chain.bias is not None,
        "chain": [
            [
                list(step.weight.shape),
                [list(values) for values in (step.geometry.strides, step.geometry.pads, step.geometry.dilations)],
                step.geometry.auto_pad + f" transposed {step.geometry.output_padding}" * step.geometry.transposed,
                step.group,
                None if step.take is None else len(step.take),
                None if step.give is None else len(step.give),
                step.split,
            ]
            for step in chain.steps
        ],
    }


def _summed(timings: Sequence[Timing]) -> Timing:
    """Return the time of all of these, one after the other."""
    return Timing(sum(one.ms for one in timings), math.hypot(*(one.spread for one in timings)))


def _spread(values: _Times) -> float:
    """Return half the distance between the 10th and the 90th percentile."""
    low, high = np.percentile(values, [10, 90])
    return float(high - low) / 2


def _is_noisy(values: _Times) -> bool:
    """Return whether the median of ``values`` is uncertain."""
    # For normal noise, the standard error of a median is about the spread over the root of the number of values.
    return _spread(values) > _NOISE * float(np.median(values)) * math.sqrt(len(values))

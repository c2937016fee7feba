"""Optimisation without a stopwatch, or with one that is soon put away: tests look at what comes out, not how fast."""

import pytest

from onnxlowrank import pipeline
from onnxlowrank.measure import inside_timer
from onnxlowrank.measure.cache import Timing
from onnxlowrank.measure.latency import Latency
from onnxlowrank.plan import builder, goals, mixed_goals, mixing, network, search
from onnxlowrank.plan.network import Network
from onnxlowrank.studies import int8_analysis

_SECONDS = (
    (builder, "_FITTED_S"),
    (inside_timer, "_BRIEF_S"),
    (inside_timer, "_DENSE_S"),
    (int8_analysis, "_SECONDS"),
    (mixing, "_SECONDS"),
    (network, "_DENSE_S"),
    (search, "LONG_S"),
)


def time_briefly() -> None:
    """Time whole networks for a tenth of the seconds from now on."""
    for module, name in _SECONDS:
        setattr(module, name, getattr(module, name) / 10)


def no_stopwatch(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Let all networks take a millisecond, and layers as long as they have operations; align ranks to ``block``."""
    monkeypatch.setattr(pipeline, "channel_block", lambda provider: block)
    monkeypatch.setattr(pipeline, "ChainTimer", CountingTimer)
    monkeypatch.setattr(mixed_goals, "ChainTimer", CountingTimer)
    monkeypatch.setattr(Network, "layer_times", lambda self, *models: [{} for _ in models])
    monkeypatch.setattr(Network, "dense_times", ({}, 1.0))
    monkeypatch.setattr(Network, "original_time", 1.0)
    for module in (builder, goals, mixed_goals, mixing, search):
        monkeypatch.setattr(module, "measure_in_sessions", lambda models, *_, **__: [Latency((1.0,) * 7)] * len(models))


class CountingTimer:
    """A thousand multiply-accumulates a millisecond."""

    timed = noisy = 0

    def __init__(self, target, cache, prepare=None, subject=None):
        pass

    def milliseconds(self, layer, chain):
        return Timing((layer.macs if chain is None else chain.macs(layer.input_shape)) / 1000, 0.0)

    def many(self, layer, chains):
        return [self.milliseconds(layer, chain) for chain in chains]

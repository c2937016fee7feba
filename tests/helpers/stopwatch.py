"""Optimisation without a stopwatch: networks are never timed, and ranks small."""

import pytest

from onnxlowrank import pipeline
from onnxlowrank.measure.cache import Timing
from onnxlowrank.measure.latency import Latency
from onnxlowrank.plan import builder, goals, mixed_goals, mixing, search
from onnxlowrank.plan.network import Network


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

"""Optimisation without a stopwatch: networks are never timed, and ranks small."""

import pytest

from onnxlowrank import pipeline
from onnxlowrank.measure.latency import Latency
from onnxlowrank.plan import builder, goals
from onnxlowrank.plan.network import Network


def no_stopwatch(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Let all networks take a millisecond, and align ranks to ``block``; for goals that are counted."""
    monkeypatch.setattr(pipeline, "channel_block", lambda provider: block)
    monkeypatch.setattr(Network, "layer_times", lambda self, *models: [{} for _ in models])
    for module in (builder, goals):
        monkeypatch.setattr(module, "measure_in_sessions", lambda *_, **__: [Latency((1.0,) * 7)] * 2)

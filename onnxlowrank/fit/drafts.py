"""Drafts of the layers' settings, each made once: to check energies, to measure sensitivities and to begin fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnxlowrank.graph.layer import Layer
from onnxlowrank.passes.base import NO_METRIC, Candidate, Draft, Pass, Setting, Statistics

_Key = tuple[str, str, Setting]


class Drafts:
    """Drafts by candidate, whatever energy it is predicted to keep.

    Attributes:
        applicable: For every layer that may be rewritten, and has statistics, the passes that suit it, by their names.
        statistics: What calibration found out about these layers.
    """

    def __init__(self, applicable: Mapping[str, Mapping[str, Pass]], statistics: Mapping[str, Statistics]) -> None:
        self.applicable = {name: passes for name, passes in applicable.items() if name in statistics}
        self.statistics = statistics
        self._made: dict[_Key, Draft] = {}

    def of(self, layer: Layer, candidate: Candidate) -> Draft:
        """Return the draft of a candidate of ``layer``; different layers' may be made in parallel."""
        key = _key(candidate)
        if key not in self._made:
            method = self.applicable[layer.name][candidate.method]
            self._made[key] = method.draft(layer, candidate.setting, self.statistics[layer.name])
        return self._made[key]

    def lost(self, layer: Layer, candidate: Candidate) -> float | None:
        """Return the share of the response's variance that a draft loses, if the layer's metric is known."""
        statistics = self.statistics[layer.name]
        return None if statistics.data is NO_METRIC else statistics.lost(layer, self.of(layer, candidate).chain)

    def keep_only(self, candidates: Iterable[Candidate]) -> None:
        """Forget all drafts but those of ``candidates``: they take as much memory as the network's weights."""
        kept = set(map(_key, candidates))
        self._made = {key: draft for key, draft in self._made.items() if key in kept}


def _key(candidate: Candidate) -> _Key:
    return candidate.layer, candidate.method, candidate.setting

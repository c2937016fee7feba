"""The latency model: what candidates cost inside a network, in milliseconds.

A network's layers have tens of thousands of candidates. So only those are timed that a selection chooses, all those of
one plan together, inside the network they make (:mod:`onnxlowrank.measure.inside_timer`). The others are estimated from
the timed ones of the same pass in layers of the same shape: what is interpolated is the throughput, MACs a millisecond,
over the logarithms of the ranks, since between the edges of the staircase it changes little. What is far from
everything that was timed is taken to be a little faster than the dense layers are: an optimistic prior, which makes the
selection choose it, and so have it timed, before it is given up.

Layers that the profiler cannot tell apart, and all of them on CUDA, are timed alone. Times of chains are in proportion
to what the first plan that was measured as a whole says of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.measure.chain_timer import ChainTimer
from onnxlowrank.passes.base import KEEP, Candidate, Plan, Setting
from onnxlowrank.plan.network import Network
from onnxlowrank.plan.selection import Item, Losses

_Floats = NDArray[np.float64]

_OPTIMISTIC_PRIOR = 1.15
"""Throughput of chains before any was timed, in that of the dense layers."""
_FAR = np.log(4.0)
"""Distance between settings, in the logarithm of a rank, at which a timing counts as much as the prior."""


class LatencyModel:
    """Times of the candidates of one network on one target.

    Attributes:
        rest: Milliseconds of what belongs to no layer, beside the chains that were timed last.
        whole: Milliseconds of the original network.
        dense: Milliseconds of every layer that is kept.
    """

    def __init__(
        self,
        network: Network,
        candidates: Mapping[str, Sequence[Candidate]],
        losses: Losses,
        timer: ChainTimer,
    ) -> None:
        """Time the network that keeps all layers, and each of its layers alone.

        Args:
            network: Whose layers they replace.
            candidates: Of every layer.
            losses: What candidates take from the network.
            timer: Times chains on the network's target.
        """
        inside, whole = network.dense_times
        self._network, self._timer = network, timer
        self._layers = {layer.name: layer for layer in network.layers}
        self._kinds = {layer.name: _kind(layer) for layer in network.layers}
        self._losses = losses
        self._tables = {name: _CandidateTable(items, losses) for name, items in candidates.items()}
        self._chains = 1.0
        self._timed: dict[tuple[Hashable, str], dict[Setting, _Timed]] = defaultdict(dict)
        alone = {layer.name: timer.milliseconds(layer, None).ms for layer in network.layers if layer.name not in inside}
        self._told = inside.keys()
        self.dense = alone | inside
        self.whole = network.original_time
        self.rest = max(whole - sum(self.dense.values()), 0.0)
        for name in self._layers:  # of several equal layers the first one stands for all, and what scales tell apart
            times = self._timed[self._kinds[name], KEEP]
            times.setdefault((), _Timed(self._layers[name].macs, self.dense[name]))
        usual = sum(layer.macs for layer in network.layers) / sum(self.dense.values())
        self._scales, self._priors = {}, {}
        for name in self._layers:
            timed = self._timed[self._kinds[name], KEEP][()]
            self._scales[name] = self.dense[name] / timed.ms
            self._priors[name] = _OPTIMISTIC_PRIOR * max(timed.speed, usual)

    def of(self, candidate: Candidate) -> float:
        """Return the milliseconds of a candidate that was timed."""
        return self._scale(candidate.layer, candidate.method) * self._times(candidate)[candidate.setting].ms

    def total(self, plan: Plan) -> float:
        """Return the predicted milliseconds of the network under a plan whose candidates were timed."""
        return self.rest + sum(self.of(candidate) for candidate in plan.values())

    def choices(self, timed: bool = False) -> dict[str, list[Item]]:
        """Return for every layer the items that no other beats, by what is known so far.

        Args:
            timed: Whether to leave out what was not timed.
        """
        return {name: self._items(name, table, timed) for name, table in self._tables.items()}

    def learn(self, plan: Plan) -> bool:
        """Time the candidates of a plan or, when they have been, refine its losses; return whether anything is new."""
        return self._time(plan) or self._refine(plan)

    def _refine(self, plan: Plan) -> bool:
        refined = self._losses.refine(plan)
        for name in refined:
            self._tables[name] = _CandidateTable(self._tables[name].candidates, self._losses)
        return bool(refined)

    def _time(self, plan: Plan) -> bool:
        """Time all chains of a plan where they are, if one is new, and alone what cannot be told there."""
        new = [candidate for candidate in plan.values() if candidate.setting not in self._times(candidate)]
        told = [one for one in plan.values() if one.method != KEEP and one.layer in self._told]
        if any(one.layer in self._told for one in new):
            outlines = {one.layer: self._outline(one) for one in told}
            found = self._network.lowering.choose_together(self._layers, outlines, self._network.chain_times)
            self.rest = self.rest if self._network.rest_time is None else self._network.rest_time
            for one in told:
                if one.layer in found:
                    self._take(one, found[one.layer] / self._scales[one.layer])
        for one in new:
            if one.setting not in self._times(one):  # by now a layer of the same kind may have been timed
                self._take(one, self._alone(one))
        return bool(new)

    def _outline(self, candidate: Candidate) -> Chain:
        layer = self._layers[candidate.layer]
        return self._network.applicable[layer.name][candidate.method].outline(layer, candidate.setting)

    def _alone(self, candidate: Candidate) -> float:
        """Return what a candidate takes alone, in proportion to what layers of its kind take in the network."""
        layer, outline = self._layers[candidate.layer], self._outline(candidate)
        chain = outline.lowered(self._network.lowering(layer, outline))
        dense, taken = (self._timer.milliseconds(layer, one).ms for one in (None, chain))
        return taken / dense * self._timed[self._kinds[layer.name], KEEP][()].ms

    def _take(self, candidate: Candidate, milliseconds: float) -> None:
        """Take in a measurement: what is measured again is the mean."""
        times = self._times(candidate)
        known = times.get(candidate.setting, _Timed(candidate.macs, 0.0, 0))
        mean = (known.ms * known.count + milliseconds) / (known.count + 1)
        times[candidate.setting] = _Timed(candidate.macs, mean, known.count + 1)

    def calibrate(self, plan: Plan, milliseconds: float) -> None:
        """Take in what a plan takes in truth: its chains, and those of all plans, are as much slower or faster."""
        chains = sum(self.of(candidate) for candidate in plan.values() if candidate.method != KEEP)
        others = self.total(plan) - chains
        if chains and milliseconds > others:
            self._chains *= (milliseconds - others) / chains

    def _scale(self, layer: str, method: str) -> float:
        dense = self._scales[layer]
        return dense if method == KEEP else dense * self._chains

    def _times(self, candidate: Candidate) -> dict[Setting, _Timed]:
        return self._timed[self._kinds[candidate.layer], candidate.method]

    def _items(self, name: str, table: _CandidateTable, timed: bool) -> list[Item]:
        costs, allowed = np.empty(len(table.candidates)), np.ones(len(table.candidates), bool)
        for method, rows in table.rows.items():
            times = self._timed[self._kinds[name], method]
            costs[rows] = table.macs[rows] / _speeds(table.ranks[method], times, self._priors[name])
            known = [row for setting in times if (row := table.row.get((method, setting))) is not None]
            costs[known] = [times[table.candidates[row].setting].ms for row in known]
            if timed:
                allowed[np.setdiff1d(rows, known)] = False
            costs[rows] *= self._scale(name, method)
        order = np.flatnonzero(allowed)
        order = order[np.lexsort((table.losses[order], costs[order]))]
        least = np.minimum.accumulate(table.losses[order])
        front = order[np.append(True, least[1:] < least[:-1])]
        return [Item(table.candidates[i], float(costs[i]), float(table.losses[i])) for i in front.tolist()]


@dataclass(frozen=True)
class _Timed:
    macs: int
    ms: float
    count: int = 1

    @property
    def speed(self) -> float:
        """MACs a millisecond."""
        return self.macs / self.ms


class _CandidateTable:
    """The candidates of one layer, as arrays: rows of them by pass, and the logarithms of their ranks."""

    def __init__(self, candidates: Sequence[Candidate], losses: Losses) -> None:
        self.candidates = candidates
        self.losses = np.array([losses.of(candidate) for candidate in candidates])
        self.macs = np.array([candidate.macs for candidate in candidates], float)
        methods = np.array([candidate.method for candidate in candidates])
        self.row = {(candidate.method, candidate.setting): row for row, candidate in enumerate(candidates)}
        self.rows = {method: np.flatnonzero(methods == method) for method in dict.fromkeys(methods.tolist())}
        self.ranks = {
            method: np.log([candidates[row].setting for row in rows.tolist()]).reshape(len(rows), -1)
            for method, rows in self.rows.items()
        }


def _speeds(ranks: _Floats, timed: Mapping[Setting, _Timed], prior: float) -> _Floats:
    """Return the throughput expected at logarithms of ranks ``[n, k]``, by distance from what was timed.

    Weights are inverse squared distances (Shepard's interpolation); the prior is as far from everywhere.
    """
    known = np.log([list(setting) for setting in timed]).reshape(len(timed), ranks.shape[1])
    squared = ((ranks[:, None] - known) ** 2).sum(axis=2)
    weights = 1 / (squared + 1e-6)
    speeds = np.log([one.speed for one in timed.values()])
    logs: _Floats = (weights @ speeds + np.log(prior) / _FAR**2) / (weights.sum(axis=1) + 1 / _FAR**2)
    return np.exp(logs)


def _kind(layer: Layer) -> Hashable:
    """Return what equal layers share: chains of equal shape take equally long in them."""
    about = layer.op, layer.columns, layer.weight.shape, layer.geometry, layer.group, layer.bias is None
    places = tuple((place.input_shape, place.activation.name, place.shortcut is None) for place in layer.places)
    return *about, places

"""The ways to a goal: plan, fit, look at what was reached, and correct the plan, a bounded number of times."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxlowrank.errors import ModelError
from onnxlowrank.evaluate.agreement import compare_outputs
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.goal import DEFAULT_SPEEDUP
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.interleaved import measure_afresh
from onnxlowrank.measure.latency import Latency, ratio
from onnxlowrank.passes.base import Candidate, Plan, keep
from onnxlowrank.plan.latency_model import Prices
from onnxlowrank.plan.network import Network, written
from onnxlowrank.plan.search import search_plan
from onnxlowrank.plan.selection import Losses, Select, offers_of
from onnxlowrank.progress import Progress

_LOG = logging.getLogger(__name__)

_FITS = 3
"""How often a plan is fitted, should the network turn out slower than its outline."""
TOO_FAST = 1.1
"""Networks faster than this times what was asked for gave away accuracy, and are planned anew."""
_DROP_FITS = 6
"""How many networks are fitted in search of the fastest one within a drop of accuracy."""
_NEAR = 1.1
"""That search ends between two speed-ups whose ratio this is."""


@dataclass(frozen=True, eq=False)
class Workbench:
    """All that it takes to make a network.

    Attributes:
        network: What is rewritten, and where it is timed.
        candidates: What its layers offer.
        losses: What candidates take from the network.
        select: Makes plans.
        fitter: Fits them.
        progress: Told how far the work is.
    """

    network: Network
    candidates: Mapping[str, Sequence[Candidate]]
    losses: Losses
    select: Select
    fitter: Fitter
    progress: Progress

    def make(self, plan: Plan, predicted: float | None = None) -> Made:
        """Return the network of a plan, fitted and timed side by side with the original."""
        network = self.network
        chains = self.fitter.fit(plan, self.progress)
        model = written(network.model, network.layers, chains) if chains else network.original
        advance = self.progress.stage("measure", 1.0)
        before, after = measure_afresh([network.original, model], network.feeds, network.target, 5.0, fewest=2)
        advance(1.0)
        _LOG.info("speed-up of the fitted network %.3f", ratio(before, after))
        return Made(plan, chains, model, before, after, predicted)


@dataclass(frozen=True, eq=False)
class Made:
    """A network that was made.

    Attributes:
        plan: Its plan.
        chains: What its layers became.
        model: The network.
        before: Times of the original network.
        after: Its times, taken in turns with these.
        predicted: The speed-up that the plan's prices promise, if there are any.
    """

    plan: Plan
    chains: Mapping[str, Chain]
    model: onnx.ModelProto
    before: Latency
    after: Latency
    predicted: float | None

    @property
    def speedup(self) -> float:
        """Time before / time after."""
        return ratio(self.before, self.after)


def reach_speedup(bench: Workbench, prices: Prices, speedup: float) -> Made:
    """Return the most accurate network found that is ``speedup`` times faster; the fastest one if there is none."""
    made: list[Made] = []
    wanted = speedup
    for _ in range(_FITS):
        found = search_plan(bench.network, prices, bench.select, wanted, bench.progress)
        if any(found.plan == one.plan for one in made):
            break
        made.append(bench.make(found.plan, found.predicted))
        if not found.reached or speedup <= made[-1].speedup <= TOO_FAST * speedup:
            break
        wanted = max(speedup * found.speedup / made[-1].speedup, 1.0)
    reached = [one for one in made if one.speedup >= speedup]
    return min(reached, key=lambda one: one.speedup) if reached else max(made, key=lambda one: one.speedup)


def reach_latency(bench: Workbench, prices: Prices, milliseconds: float) -> Made:
    """Return the most accurate network found that takes so long; the fastest one if there is none."""
    network = bench.network
    (now,) = measure_afresh([network.original], network.feeds, network.target, seconds=5.0)
    if now.median <= milliseconds:
        return bench.make(unchanged(network.layers))
    return reach_speedup(bench, prices, now.median / milliseconds)


def reach_drop(bench: Workbench, prices: Prices, unseen: Inputs, points: float) -> Made:
    """Return the fastest network found that loses at most so many points on inputs the fit has not seen."""
    original = bench.network.original
    if math.isnan(compare_outputs(original, original, unseen[:1], lambda amount: None).drop):
        raise ModelError("--max-drop counts classes, but the first output of the network is no [N, classes]")
    best = bench.make(unchanged(bench.network.layers))
    low, high, speedup = 1.0, math.inf, DEFAULT_SPEEDUP
    for _ in range(_DROP_FITS):
        found = search_plan(bench.network, prices, bench.select, speedup, bench.progress)
        made = bench.make(found.plan, found.predicted)
        advance = bench.progress.stage("compare", len(unseen))
        if compare_outputs(original, made.model, unseen, advance).drop <= points:
            low, best = speedup, max(best, made, key=lambda one: one.speedup)
            if not found.reached:
                break  # there is none faster
        else:
            high = speedup
        if high / low < _NEAR:
            break
        speedup = 2 * low if math.isinf(high) else math.sqrt(low * high)
    return best


def reach_conv_macs(bench: Workbench, speedup: float) -> Made:
    """Return the network whose convolutions have so many times fewer multiply-accumulates, or as few as possible."""
    return bench.make(plan_by_macs(bench.network.layers, bench.candidates, speedup, bench.select, bench.losses))


def reach_macs(bench: Workbench, most: float) -> Made:
    """Return the network of at most so many multiply-accumulates for one sample, or of as few as possible."""
    if sum(layer.macs for layer in bench.network.layers) <= most:
        return bench.make(unchanged(bench.network.layers))
    return bench.make(plan_by(lambda candidate: candidate.macs, bench.candidates, most, bench.select, bench.losses))


def reach_size(bench: Workbench, most: float) -> Made:
    """Return the network whose file has at most so many bytes, or as few as possible."""
    network = bench.network
    if network.original.ByteSize() <= most:
        return bench.make(unchanged(network.layers))

    def in_bytes(candidate: Candidate) -> int:
        return 4 * candidate.parameters

    plan, size = unchanged(network.layers), network.model.ByteSize()
    for _ in range(_FITS):  # what a plan adds to the parameters, names and shapes, depends on the plan
        around = size - sum(map(in_bytes, plan.values()))
        plan = plan_by(in_bytes, bench.candidates, most - around, bench.select, bench.losses)
        size = network.outline(plan).ByteSize()
        if size <= most:
            break
    return bench.make(plan)


def plan_by_macs(
    layers: Sequence[Layer],
    candidates: Mapping[str, Sequence[Candidate]],
    speedup: float,
    select: Select,
    losses: Losses,
) -> Plan:
    """Return the plan for a theoretical speed-up: multiply-accumulates of all convolutions, kept ones included."""
    convolutions = sum(layer.macs for layer in layers if layer.is_conv)
    others = sum(layer.macs for layer in layers if not layer.is_conv)
    return plan_by(lambda candidate: candidate.macs, candidates, others + convolutions / speedup, select, losses)


def plan_by(
    cost: Callable[[Candidate], float],
    candidates: Mapping[str, Sequence[Candidate]],
    budget: float,
    select: Select,
    losses: Losses,
) -> Plan:
    """Return the plan of a budget of what is counted; the selection is repeated as long as that refines losses."""
    while True:
        plan = select(offers_of(candidates, cost, losses), budget)
        if not losses.refine(plan):
            return plan


def unchanged(layers: Sequence[Layer]) -> Plan:
    """Return the plan that keeps every layer."""
    return {layer.name: keep(layer) for layer in layers}

"""The ways to a goal: plan, fit, look at what was reached, and correct the plan, a bounded number of times."""

from __future__ import annotations

import math

from onnxlowrank.errors import ModelError
from onnxlowrank.evaluate.agreement import compare_outputs
from onnxlowrank.goal import CONV_MACS, DEFAULT_SPEEDUP, LATENCY, MAX_DROP, MAX_MACS, MAX_SIZE, TOO_FAST, Goal
from onnxlowrank.graph.storage import bytes_per_weight
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.chain_timer import ChainTimer
from onnxlowrank.measure.interleaved import measure_in_sessions
from onnxlowrank.passes.base import Candidate
from onnxlowrank.plan.builder import FittedNetwork, NetworkBuilder
from onnxlowrank.plan.counted import plan_by, plan_by_macs, unchanged_plan
from onnxlowrank.plan.latency_model import LatencyModel
from onnxlowrank.plan.search import search_plan

_FITS = 3
"""How often a plan is fitted, should the network turn out slower than its outline."""
_DROP_FITS = 6
"""How many networks are fitted in search of the fastest one within a drop of accuracy."""
_NEAR = 1.1
"""That search ends between two speed-ups whose ratio this is."""


def network_for(goal: Goal, builder: NetworkBuilder, timer: ChainTimer, unseen: Inputs) -> FittedNetwork:
    """Return the network that reaches a goal, or comes closest.

    Args:
        goal: What is asked for.
        builder: Makes networks of plans.
        timer: Times chains, where the goal is a time.
        unseen: Inputs the fit has not seen, to measure a drop on.
    """
    if goal.kind == CONV_MACS:
        return network_for_conv_macs(builder, goal.value)
    if goal.kind == MAX_MACS:
        return network_for_macs(builder, goal.value)
    if goal.kind == MAX_SIZE:
        return network_for_size(builder, goal.value)
    latency_model = LatencyModel(builder.network, builder.candidates, builder.losses, timer)
    if goal.kind == LATENCY:
        return network_for_latency(builder, latency_model, goal.value)
    if goal.kind == MAX_DROP:
        return network_for_drop(builder, latency_model, unseen, goal.value)
    return network_for_speedup(builder, latency_model, goal.value)


def network_for_speedup(builder: NetworkBuilder, latency_model: LatencyModel, speedup: float) -> FittedNetwork:
    """Return the most accurate network found that is ``speedup`` times faster; the fastest one if there is none."""
    fitted: list[FittedNetwork] = []
    wanted = speedup
    for _ in range(_FITS):
        planned = search_plan(builder.network, latency_model, builder.select, wanted, builder.progress)
        if any(planned.plan == one.plan for one in fitted):
            break
        fitted.append(builder.build(planned.plan, planned.predicted))
        if not planned.reached or speedup <= fitted[-1].speedup <= TOO_FAST * speedup:
            break
        wanted = max(speedup * planned.speedup / fitted[-1].speedup, 1.0)
    reached = [one for one in fitted if one.speedup >= speedup]
    return min(reached, key=lambda one: one.speedup) if reached else max(fitted, key=lambda one: one.speedup)


def network_for_latency(builder: NetworkBuilder, latency_model: LatencyModel, milliseconds: float) -> FittedNetwork:
    """Return the most accurate network found that takes so long; the fastest one if there is none."""
    network = builder.network
    (now,) = measure_in_sessions([network.original], network.feeds, network.target, seconds=5.0)
    if now.median <= milliseconds:
        return builder.build(unchanged_plan(network.layers))
    return network_for_speedup(builder, latency_model, now.median / milliseconds)


def network_for_drop(
    builder: NetworkBuilder, latency_model: LatencyModel, unseen: Inputs, points: float
) -> FittedNetwork:
    """Return the fastest network found that loses at most so many points on inputs the fit has not seen."""
    original = builder.network.original
    if math.isnan(compare_outputs(original, original, unseen[:1], lambda amount: None).drop):
        raise ModelError("--max-drop counts classes, but the first output of the network is no [N, classes]")
    best = builder.build(unchanged_plan(builder.network.layers))
    low, high, speedup = 1.0, math.inf, DEFAULT_SPEEDUP
    for _ in range(_DROP_FITS):
        planned = search_plan(builder.network, latency_model, builder.select, speedup, builder.progress)
        fitted = builder.build(planned.plan, planned.predicted)
        advance = builder.progress.stage("compare", len(unseen))
        if compare_outputs(original, fitted.model, unseen, advance).drop <= points:
            low, best = speedup, max(best, fitted, key=lambda one: one.speedup)
            if not planned.reached:
                break  # there is none faster
        else:
            high = speedup
        if high / low < _NEAR:
            break
        speedup = 2 * low if math.isinf(high) else math.sqrt(low * high)
    return best


def network_for_conv_macs(builder: NetworkBuilder, speedup: float) -> FittedNetwork:
    """Return the network whose convolutions have so many times fewer multiply-accumulates, or as few as possible."""
    return builder.build(
        plan_by_macs(builder.network.layers, builder.candidates, speedup, builder.select, builder.losses)
    )


def network_for_macs(builder: NetworkBuilder, most: float) -> FittedNetwork:
    """Return the network of at most so many multiply-accumulates for one sample, or of as few as possible."""
    if sum(layer.macs for layer in builder.network.layers) <= most:
        return builder.build(unchanged_plan(builder.network.layers))
    return builder.build(
        plan_by(lambda candidate: candidate.macs, builder.candidates, most, builder.select, builder.losses)
    )


def network_for_size(builder: NetworkBuilder, most: float) -> FittedNetwork:
    """Return the network whose file has at most so many bytes, or as few as possible."""
    network = builder.network
    if network.original.ByteSize() <= most:
        return builder.build(unchanged_plan(network.layers))

    def in_bytes(candidate: Candidate) -> int:
        return bytes_per_weight(network.stored_types, candidate.layer) * candidate.parameters

    plan, size = unchanged_plan(network.layers), network.written({}).ByteSize()
    for _ in range(_FITS):  # what a plan adds to the parameters, names and shapes, depends on the plan
        around = size - sum(map(in_bytes, plan.values()))
        plan = plan_by(in_bytes, builder.candidates, most - around, builder.select, builder.losses)
        size = network.outline(plan).ByteSize()
        if size <= most:
            break
    return builder.build(plan)

"""The ways to a goal: plan, fit, look at what was reached, and correct the plan, a bounded number of times."""

from __future__ import annotations

from onnxlowrank.goal import CONV_MACS, LATENCY, MAX_DROP, MAX_MACS, MAX_SIZE, TOO_FAST, Goal
from onnxlowrank.graph.outside import byte_count
from onnxlowrank.graph.storage import bytes_per_weight
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.chain_timer import ChainTimer
from onnxlowrank.measure.interleaved import measure_in_sessions
from onnxlowrank.passes.base import Candidate
from onnxlowrank.plan.builder import FittedNetwork, NetworkBuilder
from onnxlowrank.plan.counted import plan_by, plan_by_macs, unchanged_plan
from onnxlowrank.plan.drop import network_for_drop
from onnxlowrank.plan.latency_model import LatencyModel
from onnxlowrank.plan.search import search_plan

_FITS = 3
"""How often a plan is fitted, should the network turn out slower than its outline."""


def network_for(
    goal: Goal, builder: NetworkBuilder, timer: ChainTimer, unseen: Inputs, choosing: Inputs
) -> FittedNetwork:
    """Return the network that reaches a goal, or comes closest.

    Args:
        goal: What is asked for.
        builder: Makes networks of plans.
        timer: Times chains, where the goal is a time.
        unseen: Inputs that neither the fit nor any choice has seen, to confirm a drop on.
        choosing: Others that the fit has not seen, to choose by within a drop.
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
        return network_for_drop(builder, latency_model, unseen, choosing, goal.value)
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
    if byte_count(network.original) <= most:
        return builder.build(unchanged_plan(network.layers))

    def in_bytes(candidate: Candidate) -> int:
        return bytes_per_weight(network.stored_types, candidate.layer) * candidate.parameters

    plan, size = unchanged_plan(network.layers), byte_count(network.written({}))
    for _ in range(_FITS):  # what a plan adds to the parameters, names and shapes, depends on the plan
        around = size - sum(map(in_bytes, plan.values()))
        plan = plan_by(in_bytes, builder.candidates, most - around, builder.select, builder.losses)
        size = byte_count(network.outline(plan))
        if size <= most:
            break
    return builder.build(plan)

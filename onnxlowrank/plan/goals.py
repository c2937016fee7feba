"""The ways to a goal: plan, fit, look at what was reached, and correct the plan, a bounded number of times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnxlowrank.goal import CONV_MACS, COUNTED, LATENCY, MAX_DROP, MAX_MACS, MAX_SIZE, TOO_FAST, Goal
from onnxlowrank.graph.outside import byte_count
from onnxlowrank.graph.storage import bytes_per_weight
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.chain_timer import ChainTimer
from onnxlowrank.measure.interleaved import measure_in_sessions
from onnxlowrank.passes.base import KEEP, Candidate, Plan
from onnxlowrank.plan.builder import FOLDED_IS_ENOUGH, INT8_IS_ENOUGH, FittedNetwork, NetworkBuilder
from onnxlowrank.plan.counted import layer_macs, least_plan, macs_budget, plan_by
from onnxlowrank.plan.cuts import Cost, Cuts, plan_with_cuts
from onnxlowrank.plan.drop import network_for_drop
from onnxlowrank.plan.latency_model import LatencyModel
from onnxlowrank.plan.network import Network
from onnxlowrank.plan.search import PlannedNetwork, search_plan
from onnxlowrank.plan.selection import Choices, choices_of
from onnxlowrank.plan.tradeoff import Tradeoff

_FITS = 4
"""How many plans are looked for, should the network turn out slower than its outline, or much faster."""
_DOUBTFUL = 1.04
"""Networks faster than this times what their outline was are timed again."""
NOT_NEEDED = "the goal is reached without it"


def network_for(
    goal: Goal,
    builder: NetworkBuilder,
    timer: ChainTimer,
    unseen: Inputs,
    choosing: Inputs,
    alone: FittedNetwork | None = None,
) -> FittedNetwork:
    """Return the network that reaches a goal, or comes closest.

    Args:
        goal: What is asked for.
        builder: Makes networks of plans.
        timer: Times chains, where the goal is a time.
        unseen: Inputs that neither the fit nor any choice has seen, to confirm a drop on.
        choosing: Others that the fit has not seen, to choose by within a drop.
        alone: The network with all its layers kept, where that is not the original.
    """
    if goal.kind in COUNTED:
        make = {CONV_MACS: network_for_conv_macs, MAX_MACS: network_for_macs, MAX_SIZE: network_for_size}[goal.kind]
        fitted, tradeoff = make(builder, goal.value), _counted_tradeoff(builder, goal.kind)
    else:
        latency_model = LatencyModel(builder.network, builder.candidates, builder.losses, timer)
        if goal.kind == LATENCY:
            fitted = network_for_latency(builder, latency_model, goal.value, alone)
        elif goal.kind == MAX_DROP:
            fitted = network_for_drop(builder, latency_model, unseen, choosing, goal.value, alone)
        else:
            fitted = network_for_speedup(builder, latency_model, goal.value, alone)
        tradeoff = timed_tradeoff(builder, latency_model)
    return replace(fitted, tradeoff=tradeoff)


def network_for_speedup(
    builder: NetworkBuilder, latency_model: LatencyModel, speedup: float, alone: FittedNetwork | None = None
) -> FittedNetwork:
    """Return the most accurate network found that is ``speedup`` times faster; the fastest one if there is none.

    That is the one with all layers kept, where it is fast enough, or where nothing clearly faster is found.

    A fitted network takes as long as the outline of its plan, which was fast enough, unless chains could not be fitted.
    Where its times say something else it is timed again, in turns with that outline: what differs is then made up for
    by the next plan. What has changed on the machine since the outline was timed, the next search sees for itself. If
    that finds the same plan once more, the network is timed once more.
    """
    others = [] if alone is None or not builder.is_free else [alone]
    if others and others[0].speedup >= speedup:
        return replace(others[0], reason=FOLDED_IS_ENOUGH if builder.network.int8 is None else INT8_IS_ENOUGH)
    fitted: list[FittedNetwork] = []
    wanted = speedup
    for _ in range(_FITS):
        planned = search_plan(builder.network, latency_model, builder.select, wanted, builder.progress)
        known = next((one for one in fitted if one.plan == planned.plan), None)
        one, slower = known or builder.build(planned.plan, planned.predicted), 1.0
        if known or (planned.reached and not _as_asked(one, speedup, planned)):
            one, slower = builder.timed_again(one)
        fitted = [*(other for other in fitted if other is not known), one]
        if not planned.reached or _as_asked(one, speedup, planned):
            break
        wanted = max(wanted * speedup / one.speedup if known else speedup * slower, 1.0)
    reached = [one for one in fitted if one.speedup >= speedup]
    if reached:
        return min(reached, key=lambda one: one.speedup)
    fastest = max(fitted, key=lambda one: one.speedup)
    return builder.faster(fastest, others[0]) if others else fastest


def _as_asked(fitted: FittedNetwork, speedup: float, planned: PlannedNetwork) -> bool:
    """Return whether a network is as fast as was asked for, and not much faster, or no more so than its outline."""
    return speedup <= fitted.speedup <= max(TOO_FAST * speedup, _DOUBTFUL * planned.speedup)


def network_for_latency(
    builder: NetworkBuilder, latency_model: LatencyModel, milliseconds: float, alone: FittedNetwork | None = None
) -> FittedNetwork:
    """Return the most accurate network found that takes so long; the fastest one if there is none."""
    network = builder.network
    (now,) = measure_in_sessions([network.original], network.feeds, network.target, seconds=5.0)
    if now.median <= milliseconds and alone is None:
        return builder.build(least_plan(builder.candidates), reason=NOT_NEEDED)
    return network_for_speedup(builder, latency_model, now.median / milliseconds, alone)


def network_for_conv_macs(builder: NetworkBuilder, speedup: float) -> FittedNetwork:
    """Return the network whose convolutions have so many times fewer multiply-accumulates, or as few as possible."""
    network = builder.network
    kept = sum(one.macs for one in network.kept if one.is_conv)
    return _within_macs(builder, macs_budget(network.layers, speedup, kept))


def network_for_macs(builder: NetworkBuilder, most: float) -> FittedNetwork:
    """Return the network of at most so many multiply-accumulates for one sample, or of as few as possible."""
    for_layers = most - sum(one.macs for one in builder.network.kept)
    plan = least_plan(builder.candidates)
    if sum(candidate.macs for candidate in plan.values()) <= for_layers:
        return builder.build(plan, reason=NOT_NEEDED)
    return _within_macs(builder, for_layers)


def _within_macs(builder: NetworkBuilder, budget: float) -> FittedNetwork:
    """Return the network whose layers have at most so many multiply-accumulates, or as few as possible."""
    network = builder.network

    def make(cost: Cost) -> Plan:
        return plan_by(cost, builder.candidates, budget, builder.select, builder.losses)

    cuts = Cuts(network, builder.candidates)
    if cuts:
        fitted = builder.build(plan_with_cuts(make, cuts, budget, network.layers, builder.losses))
        counted = network.counted(fitted.chains)
        if sum(layer_macs(layer, counted.get(layer.name)) for layer in network.layers) <= budget:
            return fitted
    return builder.build(make(lambda candidate: candidate.macs))


def network_for_size(builder: NetworkBuilder, most: float) -> FittedNetwork:
    """Return the network whose file has at most so many bytes, or as few as possible."""
    network, plan, in_bytes = builder.network, least_plan(builder.candidates), _in_bytes(builder.network)
    is_rewritten = any(candidate.method != KEEP for candidate in plan.values())
    is_lower = network.int8 is not None or network.half is not None
    least = network.outline(plan) if is_rewritten or is_lower else network.original
    if byte_count(least) <= most:
        return builder.build(plan, reason=NOT_NEEDED)

    size = byte_count(least if is_rewritten else network.kept_all)
    for _ in range(_FITS):  # what a plan adds to the parameters, names and shapes, depends on the plan
        around = size - sum(map(in_bytes, plan.values()))
        plan = plan_by(in_bytes, builder.candidates, most - around, builder.select, builder.losses)
        size = byte_count(network.outline(plan))
        if size <= most:
            break
    return builder.build(plan)


def _in_bytes(network: Network) -> Callable[[Candidate], int]:
    """Return what tells the bytes of a candidate's weights, as they are stored."""
    if network.int8 is not None:
        return lambda candidate: candidate.parameters
    if network.half is not None:
        return lambda candidate: 2 * candidate.parameters
    return lambda candidate: bytes_per_weight(network.stored_types, candidate.layer) * candidate.parameters


def _counted_tradeoff(builder: NetworkBuilder, kind: str) -> Tradeoff:
    """Return what a selection by multiply-accumulates, of the convolutions alone or of all, or by bytes chose from."""
    network = builder.network
    if kind == MAX_SIZE:
        whole = byte_count(network.kept_all)
        fixed = whole - sum(map(_in_bytes(network), least_plan(builder.candidates).values()))
    else:
        fixed = sum(one.macs for one in network.kept if one.is_conv or kind == MAX_MACS)
        fixed -= sum(layer.macs for layer in network.layers if kind == CONV_MACS and not layer.is_conv)
        whole = fixed + sum(layer.macs for layer in network.layers)

    def choices() -> Choices:
        cost = _in_bytes(network) if kind == MAX_SIZE else lambda candidate: candidate.macs
        return choices_of(builder.candidates, cost, builder.losses)

    return Tradeoff(choices, whole, fixed, builder.losses, builder.select)


def timed_tradeoff(builder: NetworkBuilder, latency_model: LatencyModel) -> Tradeoff:
    """Return what a selection by time chose from."""
    about = latency_model.whole, latency_model.rest, builder.losses, builder.select
    return Tradeoff(latency_model.choices, *about)

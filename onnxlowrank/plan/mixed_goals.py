"""The ways to a goal where layers may be int8 or float32: the best of an int8 plan, a float32 one and those between."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

from onnxlowrank.goal import LATENCY, MAX_DROP, Goal
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.chain_timer import ChainTimer
from onnxlowrank.measure.interleaved import measure_in_sessions
from onnxlowrank.measure.lowerings import Lowerings
from onnxlowrank.plan.builder import FittedNetwork, NetworkBuilder
from onnxlowrank.plan.drop import network_for_drop, search_for_drop
from onnxlowrank.plan.goals import NOT_NEEDED, network_for_speedup, timed_tradeoff
from onnxlowrank.plan.int8_losses import Int8Losses
from onnxlowrank.plan.latency_model import LatencyModel
from onnxlowrank.plan.mixing import Mixing
from onnxlowrank.plan.selection import EnergyLosses, Losses

_LOG = logging.getLogger(__name__)

_FASTER = 1.25
"""By how much an int8 plan is faster than asked for that has room for layers in float32."""
_PESSIMISM = 10.0
"""By how much the loss that is predicted of a plan, that of its drafts, may exceed what its fitted chains lose."""


@dataclass(frozen=True, eq=False)
class _Way:
    """One precision to plan in."""

    builder: NetworkBuilder
    latency_model: LatencyModel


def mixed_network_for(
    goal: Goal,
    builder: NetworkBuilder,
    timer: ChainTimer,
    unseen: Inputs,
    choosing: Inputs,
    alone: FittedNetwork | None = None,
) -> FittedNetwork:
    """Return the network that reaches a goal, or comes closest, whose layers are int8 or float32, whichever is better.

    Args:
        goal: A speed-up, a latency or a drop.
        builder: Makes int8 networks of plans.
        timer: Times int8 chains.
        unseen: Inputs that neither the fit nor any choice has seen, to confirm a drop on.
        choosing: Others that the fit has not seen, to choose by within a drop.
        alone: The network that is int8 and nothing else.
    """
    network = builder.network
    assert network.int8 is not None
    float32_timer = ChainTimer(network.target, network.times)
    float32_network = replace(network, int8=None, lowering=Lowerings(float32_timer))
    int8 = _Way(builder, LatencyModel(network, builder.candidates, builder.losses, timer))
    losses = builder.losses.float32 if isinstance(builder.losses, Int8Losses) else builder.losses
    float32_builder = replace(builder, network=float32_network, losses=losses)
    float32 = _Way(float32_builder, LatencyModel(float32_network, builder.candidates, losses, float32_timer))
    mixing = Mixing(builder, network.int8)
    if goal.kind == MAX_DROP:
        fitted = network_for_drop(
            builder,
            int8.latency_model,
            unseen,
            choosing,
            goal.value,
            alone,
            lambda: search_for_drop(float32.builder, float32.latency_model, choosing, goal.value, len(unseen)),
            mixing.quieter,
        )
    else:
        speedup = goal.value
        if goal.kind == LATENCY:
            (now,) = measure_in_sessions([network.original], network.feeds, network.target, seconds=5.0)
            speedup = now.median / goal.value
        if speedup <= 1:
            return builder.original(NOT_NEEDED)
        fitted = _for_speedup(int8, float32, mixing, speedup, alone)
    way = int8 if any(node.op_type == "DequantizeLinear" for node in fitted.model.graph.node) else float32
    return replace(fitted, tradeoff=timed_tradeoff(way.builder, way.latency_model))


def _for_speedup(
    int8: _Way, float32: _Way, mixing: Mixing, speedup: float, alone: FittedNetwork | None
) -> FittedNetwork:
    """Return the most accurate network found that is so much faster; the fastest one if there is none."""
    found: list[tuple[float, FittedNetwork]] = []

    def add(one: FittedNetwork) -> None:
        found.append((mixing.loss(one) if one.speedup >= speedup else math.inf, one))
        _LOG.info("%.2fx, %d layers in float32, loses %.6f", one.speedup, len(one.float32), found[-1][0])

    def least() -> float:
        return min(loss for loss, _ in found)

    losses = float32.builder.losses
    add(network_for_speedup(int8.builder, int8.latency_model, speedup, alone))
    if least() < math.inf:
        room = _FASTER * speedup
        if (alone is None or alone.speedup < room) and _may_lose_less(int8, losses, room, least()):
            add(network_for_speedup(int8.builder, int8.latency_model, room, alone))
        for one in {id(one): one for _, one in found}.values():
            mixed = mixing.relaxed(one, speedup)
            if mixed is not None:
                add(mixed)
    if _may_lose_less(float32, losses, speedup, least()):
        add(network_for_speedup(float32.builder, float32.latency_model, speedup))
    if least() == math.inf:
        return max((one for _, one in found), key=lambda one: one.speedup)
    return min(found, key=lambda pair: pair[0])[1]


def _may_lose_less(way: _Way, losses: Losses, speedup: float, loss: float) -> bool:
    """Return whether decomposed layers of that speed-up, where they are as fast as hoped, may lose less than this.

    Losses that are not those of the outputs tell nothing.
    """
    if isinstance(losses, EnergyLosses):
        return True
    model = way.latency_model
    plan = way.builder.select(model.choices(), model.whole / speedup - model.rest)
    return sum(map(losses.of, plan.values())) < _PESSIMISM * loss

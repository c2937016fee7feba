"""Plans by what is counted, multiply-accumulates or bytes: no stopwatch has a part in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onnxlowrank.graph.layer import Layer
from onnxlowrank.passes.base import Candidate, Plan, keep
from onnxlowrank.plan.selection import Losses, Select, choices_of


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
        plan = select(choices_of(candidates, cost, losses), budget)
        if not losses.refine(plan):
            return plan


def unchanged_plan(layers: Sequence[Layer]) -> Plan:
    """Return the plan that keeps every layer."""
    return {layer.name: keep(layer) for layer in layers}

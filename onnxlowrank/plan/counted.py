"""Plans by what is counted, multiply-accumulates or bytes: no stopwatch has a part in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.passes.base import KEEP, Candidate, Plan
from onnxlowrank.plan.builder import FittedNetwork
from onnxlowrank.plan.network import Network
from onnxlowrank.plan.selection import Losses, Select, choices_of


def plan_by_macs(
    layers: Sequence[Layer],
    candidates: Mapping[str, Sequence[Candidate]],
    speedup: float,
    select: Select,
    losses: Losses,
    kept: int = 0,
) -> Plan:
    """Return the plan for a theoretical speed-up: multiply-accumulates of all convolutions, kept ones included.

    Args:
        layers: All layers.
        candidates: Of these.
        speedup: How many times fewer there are to be.
        select: Makes the plan.
        losses: What candidates take from the network.
        kept: Multiply-accumulates of the convolutions that are no layers.
    """
    budget = macs_budget(layers, speedup, kept)
    return plan_by(lambda candidate: candidate.macs, candidates, budget, select, losses)


def macs_budget(layers: Sequence[Layer], speedup: float, kept: int = 0) -> float:
    """Return the multiply-accumulates of all layers at a theoretical speed-up; the arguments are those of above."""
    convolutions = sum(layer.macs for layer in layers if layer.is_conv) + kept
    others = sum(layer.macs for layer in layers if not layer.is_conv)
    return others + convolutions / speedup - kept


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


def least_plan(candidates: Mapping[str, Sequence[Candidate]]) -> Plan:
    """Return the plan that keeps every layer but those whose ranks were given by hand: they have nothing else."""
    return {layer: next((one for one in items if one.method == KEEP), items[0]) for layer, items in candidates.items()}


def macs_speedup(network: Network, fitted: FittedNetwork) -> float:
    """Return MACs before / MACs after of all convolutions, those that are no layers included."""
    kept = sum(one.macs for one in network.kept if one.is_conv)
    before, after = (conv_macs(network.layers, chains) + kept for chains in ({}, network.counted(fitted.chains)))
    return before / max(after, 1)


def conv_macs(layers: Sequence[Layer], chains: Mapping[str, Chain]) -> int:
    """Return the MACs of the convolutions among layers: what the papers' theoretical speed-ups are about."""
    return sum(layer_macs(layer, chains.get(layer.name)) for layer in layers if layer.is_conv)


def layer_macs(layer: Layer, chain: Chain | None) -> int:
    """Return the multiply-accumulates of a layer, or of a chain in its place."""
    return layer.macs if chain is None else chain.macs_in(layer)

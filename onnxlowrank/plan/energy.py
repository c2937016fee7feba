"""Whole-model rank selection (Zhang 2015, Sec. 3.4), over settings of any pass.

The paper maximises the product of the layers' energies (Eq. 13) under a budget for the summed cost (Eq. 14), removing
one eigenvalue at a time, always the one with the smallest ``(dE / E) / dC``. With ``-log E`` for the loss of a layer
the product becomes a sum, and a removal a step between two of the layer's offers. Steps along the lower convex hull of
a layer's (cost, loss) points are ordered by their measure, so the greedy choice is: sort all steps of all hulls, take
the smallest until the budget is met. For one spectrum a layer this is the paper's algorithm; nothing but the list of
offers changes for two-dimensional settings, several passes, or costs measured in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from onnxlowrank.passes.base import Plan
from onnxlowrank.plan.selection import Offer, Offers, pareto


def frontier(offers: Sequence[Offer]) -> list[Offer]:
    """Return the lower convex hull of (cost, loss), from the dearest offer to the cheapest."""
    hull: list[Offer] = []
    for point in pareto(offers):
        while len(hull) > 1 and _measure(hull[-2], hull[-1]) >= _measure(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def select_by_energy(offers: Offers, budget: float) -> Plan:
    """Return the plan of the greedy rank selection.

    Args:
        offers: For every layer its offers, "keep" among them.
        budget: Highest summed cost.

    Returns:
        One candidate a layer. Where even the cheapest offers exceed the budget, these.
    """
    hulls = {layer: frontier(offered) for layer, offered in offers.items()}
    chosen = {layer: hull[0] for layer, hull in hulls.items()}
    steps = [
        (_measure(before, after), index, layer, after)
        for layer, hull in hulls.items()
        for index, (before, after) in enumerate(pairwise(hull))
    ]
    total = sum(offer.cost for offer in chosen.values())
    for _, _, layer, after in sorted(steps, key=lambda step: step[:3]):
        if total <= budget:
            break
        total += after.cost - chosen[layer].cost
        chosen[layer] = after
    return {layer: offer.candidate for layer, offer in chosen.items()}


def select_uniformly(offers: Offers, budget: float) -> Plan:
    """Return the plan without rank selection: every layer is cut by the same ratio, with the offer that loses least.

    The layers with a single offer stay, and the others make up for them.
    """
    dense = {layer: min(offered, key=lambda offer: (offer.loss, -offer.cost)).cost for layer, offered in offers.items()}
    fixed = sum(dense[layer] for layer, offered in offers.items() if len(offered) == 1)
    free = sum(dense.values()) - fixed
    ratio = max(budget - fixed, 0) / free if free else 1.0
    plan = {}
    for layer, offered in offers.items():
        affordable = [offer for offer in offered if offer.cost <= ratio * dense[layer]]
        cheapest = min(offered, key=lambda offer: offer.cost)
        plan[layer] = min(affordable, key=lambda offer: offer.loss, default=cheapest).candidate
    return plan


def _measure(before: Offer, after: Offer) -> float:
    """Return loss gained per cost saved."""
    return (after.loss - before.loss) / (before.cost - after.cost)

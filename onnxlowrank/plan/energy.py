"""Whole-model rank selection (Zhang 2015, Sec. 3.4), over settings of any pass.

The paper maximises the product of the layers' energies (Eq. 13) under a budget for the summed cost (Eq. 14), removing
one eigenvalue at a time, always the one with the smallest ``(dE / E) / dC``. With ``-log E`` for the loss of a layer
the product becomes a sum, and a removal a step between two of the layer's items. Steps along the lower convex hull of
a layer's (cost, loss) points are ordered by their measure, so the greedy choice is: sort all steps of all hulls, take
the smallest until the budget is met. For one spectrum a layer this is the paper's algorithm; nothing but the list of
items changes for two-dimensional settings, several passes, or costs measured in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from onnxlowrank.passes.base import Plan
from onnxlowrank.plan.selection import Choices, Item, pareto


def lower_hull(choices: Sequence[Item]) -> list[Item]:
    """Return the lower convex hull of (cost, loss), from the dearest item to the cheapest."""
    hull: list[Item] = []
    for point in pareto(choices):
        while len(hull) > 1 and _measure(hull[-2], hull[-1]) >= _measure(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def select_by_energy(choices: Choices, budget: float) -> Plan:
    """Return the plan of the greedy rank selection.

    Args:
        choices: For every layer its items, "keep" among them.
        budget: Highest summed cost.

    Returns:
        One candidate a layer. Where even the cheapest items exceed the budget, these.
    """
    hulls = {layer: lower_hull(items) for layer, items in choices.items()}
    chosen = {layer: hull[0] for layer, hull in hulls.items()}
    steps = [
        (_measure(before, after), index, layer, after)
        for layer, hull in hulls.items()
        for index, (before, after) in enumerate(pairwise(hull))
    ]
    total = sum(item.cost for item in chosen.values())
    for _, _, layer, after in sorted(steps, key=lambda step: step[:3]):
        if total <= budget:
            break
        total += after.cost - chosen[layer].cost
        chosen[layer] = after
    return {layer: item.candidate for layer, item in chosen.items()}


def select_uniformly(choices: Choices, budget: float) -> Plan:
    """Return the plan without rank selection: every layer is cut by the same ratio, with the item that loses least.

    The layers with a single item stay, and the others make up for them.
    """
    dense = {layer: min(items, key=lambda item: (item.loss, -item.cost)).cost for layer, items in choices.items()}
    fixed = sum(dense[layer] for layer, items in choices.items() if len(items) == 1)
    free = sum(dense.values()) - fixed
    ratio = max(budget - fixed, 0) / free if free else 1.0
    plan = {}
    for layer, items in choices.items():
        affordable = [item for item in items if item.cost <= ratio * dense[layer]]
        cheapest = min(items, key=lambda item: item.cost)
        plan[layer] = min(affordable, key=lambda item: item.loss, default=cheapest).candidate
    return plan


def _measure(before: Item, after: Item) -> float:
    """Return loss gained per cost saved."""
    return (after.loss - before.loss) / (before.cost - after.cost)

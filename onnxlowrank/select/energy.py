"""Whole-model rank selection (Zhang 2015, Sec. 3.4), over settings of any pass.

The paper maximises the product of the layers' energies (Eq. 13) under a budget for the summed cost (Eq. 14), removing
one eigenvalue at a time, always the one with the smallest ``(dE / E) / dC``. With ``-log E`` for the loss of a layer
the product becomes a sum, and a removal a step between two of the layer's candidates. Steps along the lower convex
hull of a layer's (cost, loss) points are ordered by their measure, so the greedy choice is: sort all steps of all
hulls, take the smallest until the budget is met. For one spectrum a layer this is the paper's algorithm; nothing but
the list of candidates changes for two-dimensional settings, several passes, or costs measured in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from onnxlowrank.passes.base import Candidate

Plan = dict[str, Candidate]


def loss(candidate: Candidate) -> float:
    """Return what a candidate adds to ``-log`` of the product of energies (Eq. 13)."""
    return -math.log(max(candidate.energy, 1e-12))


def frontier(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the lower convex hull of (cost, loss), from the dearest candidate to the cheapest."""
    hull: list[Candidate] = []
    for point in sorted(candidates, key=lambda c: (-c.cost, loss(c))):
        if hull and point.cost == hull[-1].cost:
            continue
        while hull and loss(point) <= loss(hull[-1]):
            hull.pop()
        while len(hull) > 1 and _measure(hull[-2], hull[-1]) >= _measure(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def select_by_energy(candidates: Mapping[str, Sequence[Candidate]], budget: float) -> Plan:
    """Return the plan of the greedy rank selection.

    Args:
        candidates: For every layer its candidates, "keep" among them.
        budget: Highest summed cost.

    Returns:
        One candidate a layer. Where even the cheapest candidates exceed the budget, these.
    """
    hulls = {layer: frontier(offered) for layer, offered in candidates.items()}
    plan = {layer: hull[0] for layer, hull in hulls.items()}
    steps = [
        (_measure(before, after), index, layer, after)
        for layer, hull in hulls.items()
        for index, (before, after) in enumerate(pairwise(hull))
    ]
    total = sum(candidate.cost for candidate in plan.values())
    for _, _, layer, after in sorted(steps, key=lambda step: step[:3]):
        if total <= budget:
            break
        total += after.cost - plan[layer].cost
        plan[layer] = after
    return plan


def select_uniformly(candidates: Mapping[str, Sequence[Candidate]], budget: float) -> Plan:
    """Return the plan without rank selection: every layer is cut by the same ratio, with the candidate that keeps most.

    The layers that offer "keep" alone stay, and the others make up for them.
    """
    dense = {layer: max(offered, key=lambda c: c.cost) for layer, offered in candidates.items()}
    fixed = sum(dense[layer].cost for layer, offered in candidates.items() if len(offered) == 1)
    free = sum(candidate.cost for candidate in dense.values()) - fixed
    ratio = max(budget - fixed, 0) / free if free else 1.0
    plan = {}
    for layer, offered in candidates.items():
        affordable = [c for c in offered if c.cost <= ratio * dense[layer].cost]
        cheapest = min(offered, key=lambda c: c.cost)
        plan[layer] = max(affordable, key=lambda c: c.energy) if affordable else cheapest
    return plan


def _measure(before: Candidate, after: Candidate) -> float:
    """Return loss gained per cost saved."""
    return (loss(after) - loss(before)) / (before.cost - after.cost)

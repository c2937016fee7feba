"""Exact selection: one item of every layer, the smallest summed loss within the budget.

This is the multiple-choice knapsack problem. HiGHS solves it as a mixed-integer program: a 0/1 variable for each item
that no other of its layer beats in both cost and loss, one of them 1 in every layer, the summed cost within the budget.
The greedy selection (:mod:`onnxlowrank.plan.energy`) sees the convex hulls alone and may leave a part of the budget
unspent.
"""

from __future__ import annotations

import numpy as np
import scipy

from onnxlowrank.passes.base import Plan
from onnxlowrank.plan.selection import Choices, pareto

_GAP = 1e-4
"""Share of the loss by which the result may miss the optimum."""


def select_exactly(choices: Choices, budget: float) -> Plan:
    """Return the plan of the smallest summed loss.

    Args:
        choices: For every layer its items, "keep" among them.
        budget: Highest summed cost.

    Returns:
        One candidate a layer. Where even the cheapest items exceed the budget, these.
    """
    fronts = {layer: pareto(items) for layer, items in choices.items()}
    cheapest = {layer: front[-1] for layer, front in fronts.items()}
    if sum(item.cost for item in cheapest.values()) >= budget:
        return {layer: item.candidate for layer, item in cheapest.items()}
    points = [item for front in fronts.values() for item in front]
    rows = np.repeat(np.arange(len(fronts)), [len(front) for front in fronts.values()])
    one_a_layer = scipy.sparse.csr_array((np.ones(len(points)), (rows, np.arange(len(points)))))
    losses, costs = (np.array([getattr(point, name) for point in points]) for name in ("loss", "cost"))
    solved = scipy.optimize.milp(
        losses / max(losses.max(), 1e-300),
        integrality=np.ones(len(points)),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=[
            scipy.optimize.LinearConstraint(one_a_layer, 1, 1),
            scipy.optimize.LinearConstraint(costs[None] / budget, 0, 1),
        ],
        options={"mip_rel_gap": _GAP},
    )
    if solved.x is None:
        raise RuntimeError(f"HiGHS found no plan: {solved.message}")
    chosen = [points[i].candidate for i in np.flatnonzero(solved.x > 0.5)]
    return dict(zip(fronts, chosen, strict=True))

"""The one loop of the pipeline: plans are tightened until the stopwatch shows the speed-up asked for.

Latency does not depend on the values of weights, so it is measured on outlines, chains of the right shapes, before
anything is fitted. A measured time is taken as linear in the MACs between the two nearest measurements (false
position).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxlowrank.calibrate.specs import Feeds
from onnxlowrank.chain import Chain
from onnxlowrank.choose import Suited
from onnxlowrank.cost.latency import measure, ratio
from onnxlowrank.fit import Forms
from onnxlowrank.graph.permute import fold_gathers
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.layer import Layer
from onnxlowrank.passes.base import KEEP, Candidate
from onnxlowrank.progress import Progress
from onnxlowrank.runtime import Target
from onnxlowrank.select.energy import Plan

Select = Callable[[Mapping[str, Sequence[Candidate]], float], Plan]

ROUNDS = 7
MARGIN = 1.02
"""Plans are accepted from ``MARGIN`` times the speed-up on: noise in the last measurement shall not undo them."""
SLACK = 1.03
"""Plans faster than ``MARGIN * SLACK`` times the speed-up waste accuracy and are loosened."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network to be planned.

    Attributes:
        original: As it was given: what is compared with.
        model: Normalised: what is rewritten.
        layers: Its layers.
        suited: The passes of every layer.
        candidates: What the layers offer, "keep" among it.
        forms: Chooses how chains are written.
    """

    original: onnx.ModelProto
    model: onnx.ModelProto
    layers: Sequence[Layer]
    suited: Suited
    candidates: Mapping[str, Sequence[Candidate]]
    forms: Forms


@dataclass(frozen=True, eq=False)
class Found:
    """A plan, the speed-up its outline was measured to have, and whether that is the one asked for."""

    plan: Plan
    speedup: float
    reached: bool


def search_plan(
    network: Network, speedup: float, select: Select, feeds: Feeds, target: Target, progress: Progress
) -> Found:
    """Return the most accurate plan found whose outline is ``speedup`` times faster than the original network.

    Args:
        network: What is to be planned.
        speedup: Time before / time after.
        select: Makes a plan of candidates and a budget of MACs.
        feeds: One input, for timing.
        target: Where it is timed.
        progress: Told how far it is.

    Returns:
        The plan; where none is faster than the original network, the one that keeps every layer.
    """
    candidates = network.candidates
    total = sum(max(offered, key=lambda c: c.cost).cost for offered in candidates.values())
    cheapest = sum(min(offered, key=lambda c: c.cost).cost for offered in candidates.values())
    advance = progress.stage("plan", ROUNDS)

    def time_share(plan: Plan) -> float:
        """Return the outline's time as a share of the original network's."""
        outline = rewrite(network.model, network.layers, outlines(network, plan))
        before, after = measure([network.original, fold_gathers(outline)], feeds, target, seconds=5.0)
        advance(1)
        return 1 / ratio(before, after)

    wanted = 1 / (speedup * MARGIN)
    slow = (total, 1.0)  # MACs and time share of the fastest plan known to be too slow
    fast: tuple[float, float] | None = None  # of the slowest plan known to be fast enough
    best = Found({name: max(offered, key=lambda c: c.cost) for name, offered in candidates.items()}, 1.0, False)
    budget = total / speedup
    tried: set[tuple[Candidate, ...]] = set()
    for attempt in range(ROUNDS):
        budget = max(budget, cheapest)
        plan = select(candidates, budget)
        key = tuple(plan.values())
        if key in tried:
            if fast is None:
                break
            fast = (budget, fast[1])  # up to this budget the plan is the one known to be fast enough
            budget = (budget + slow[0]) / 2
            continue
        tried.add(key)
        share, cost = time_share(plan), sum(candidate.cost for candidate in plan.values())
        enough = share <= wanted
        found = Found(plan, 1 / share, enough)
        best = max(best, found, key=_merit)
        if enough:
            fast = (cost, share)
            if share * SLACK >= wanted:
                break
        else:
            slow = (cost, share)
            if cost <= cheapest:
                break
        lost = fast is None and attempt >= 2  # lines did not lead there: can it be reached at all?
        budget = cheapest if lost else _false_position(slow, fast, wanted, total)
    return best


def _merit(found: Found) -> tuple[bool, float]:
    """Reached beats not reached; of the former the slowest is the most accurate, of the latter the fastest counts."""
    return found.reached, -found.speedup if found.reached else found.speedup


def outlines(network: Network, plan: Plan) -> dict[str, Chain]:
    """Return for every rewritten layer of a plan a chain of the right shapes, as it would be written."""
    chosen = {}
    for layer in network.layers:
        candidate = plan[layer.name]
        if candidate.method != KEEP:
            outline = network.suited[layer.name][candidate.method].outline(layer, candidate.setting)
            chosen[layer.name] = outline.lowered(network.forms(layer, outline))
    return chosen


def _false_position(slow: tuple[float, float], fast: tuple[float, float] | None, wanted: float, total: float) -> float:
    """Return the MACs at which the line through two measurements takes the wanted share of the time."""
    a, s = slow
    if fast is None:
        if s >= 1:
            return a * wanted / s * 0.98
        return a - 1.02 * (s - wanted) * (total - a) / (1 - s)  # the other point is the original network
    b, f = fast
    middle = (wanted / 1.01 - f) / (s - f) if s > f else 0.5
    return b + (a - b) * min(max(middle, 0.1), 0.9)

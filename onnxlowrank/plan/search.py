"""The one loop of the pipeline: plans are tightened until the stopwatch shows the speed-up asked for.

Latency does not depend on the values of weights, so it is measured on outlines, chains of the right shapes, before
anything is fitted. Within the network the sum of the layers' predicted times is nearly its time; what it misses is
taken to be the same share of the time in the next plan.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from onnxlowrank.measure.interleaved import measure_in_sessions
from onnxlowrank.measure.latency import median_speedup, speedup_noise
from onnxlowrank.passes.base import Candidate, Plan
from onnxlowrank.plan.latency_model import LatencyModel
from onnxlowrank.plan.network import Network
from onnxlowrank.plan.selection import Item, Select
from onnxlowrank.progress import Progress

_LOG = logging.getLogger(__name__)

ROUNDS = 7
"""How many outlines are measured."""
PLANS = 20
"""How many plans are made to find these: most between two that were measured are one of the two."""
MOST_SELECTIONS = 15
"""How often a selection is repeated since something was learnt about the candidates it chose."""
MARGIN = 1.02
"""Plans are accepted from ``MARGIN`` times the speed-up on: noise in the last measurement shall not undo them."""
SLACK = 1.03
"""Plans faster than ``MARGIN * SLACK`` times the speed-up waste accuracy and are loosened."""
_ERRORS = 2.0
"""Or than so many standard errors of the measurement, where these are more: what noise adds cannot be loosened."""
_NEAR = 1.05
"""A plan that takes no longer than this times what it may is near: the next ones will be fast enough."""
_LEAST_STEP = 0.98
"""Of the predicted time, the next plan's where none was fast enough: noise hides what is less."""
SHORT_S, LONG_S = 0.5, 4.0
"""How long outlines are timed: at first, and before they are taken or where the first time is a surprise."""
ENOUGH = 0.005
"""Or until the speed-up is known with this standard error, as a share."""
SURPRISE = 1.1
"""That is one which differs from what was predicted by more than this factor."""


@dataclass(frozen=True, eq=False)
class PlannedNetwork:
    """A plan and the speed-up of its outline.

    Attributes:
        plan: One candidate a layer.
        speedup: As it was measured.
        predicted: By the latency model, before it was measured.
        reached: Whether the plan has the speed-up asked for.
        noise: Standard error of the measurement, as a share.
    """

    plan: Plan
    speedup: float
    predicted: float
    reached: bool
    noise: float = 0.0


def search_plan(
    network: Network, latency_model: LatencyModel, select: Select, speedup: float, progress: Progress
) -> PlannedNetwork:
    """Return the most accurate plan found whose outline is ``speedup`` times faster than the original network.

    By false position: a measured time is linear in the predicted one between two measurements.

    Args:
        network: What is to be planned.
        latency_model: What its candidates cost.
        select: Makes a plan of choices and a budget.
        speedup: Time before / time after.
        progress: Told how far it is.

    Returns:
        The plan; where none is faster than the original network, the one that keeps every layer.
    """
    advance = progress.stage("plan", ROUNDS)
    wanted = 1 / (speedup * MARGIN)
    slow = (1.0, 1.0)  # predicted and measured share of the original's time, of the fastest plan that is too slow
    fast: tuple[float, float] | None = None  # of the slowest plan that is fast enough
    best = PlannedNetwork({name: _dense(items) for name, items in latency_model.choices().items()}, 1.0, 1.0, False)
    share = wanted
    tried: set[tuple[Candidate, ...]] = set()
    for _ in range(PLANS):
        plan = converge(latency_model, select, share * latency_model.whole - latency_model.rest)
        predicted = latency_model.total(plan) / latency_model.whole
        key = tuple(plan.values())
        if key in tried:
            if fast is None:
                break
            fast = (share, fast[1])  # up to here the plan is the one known to be fast enough
            share = (share + slow[0]) / 2
            continue
        tried.add(key)
        planned = _time_outline(network, plan, 1 / predicted, best, speedup * MARGIN)
        advance(1)
        best, measured = max(best, planned, key=_rank_of), 1 / planned.speedup
        _LOG.info(
            "speed-up predicted %.3f, measured %.3f, +- %.3f",
            planned.predicted,
            planned.speedup,
            planned.speedup * planned.noise,
        )
        if len(tried) == 1:
            latency_model.calibrate(plan, measured * latency_model.whole)
            predicted = latency_model.total(plan) / latency_model.whole
        if planned.reached:
            fast = (predicted, measured)
            if measured * max(SLACK, 1 + _ERRORS * planned.noise) >= wanted:
                break
        else:
            slow = (predicted, measured)
        cheapest = _cheapest(latency_model)
        if len(tried) == ROUNDS or (not planned.reached and predicted <= cheapest * (1 + 1e-9)):
            break
        near = slow[1] <= _NEAR * wanted
        lost = fast is None and len(tried) >= 3 and not near  # lines did not lead there: can it be reached at all?
        share = cheapest if lost else max(_false_position(slow, fast, wanted), cheapest)
    return best


def _time_outline(network: Network, plan: Plan, predicted: float, best: PlannedNetwork, asked: float) -> PlannedNetwork:
    """Time the outline of a plan of a predicted speed-up: briefly, and for longer where that would decide much.

    What disturbs two threads may last for seconds, and the first plan that looks right may do so by luck.
    """
    for seconds in (SHORT_S, LONG_S):
        both = network.original, network.outline(plan)
        times = measure_in_sessions(both, network.feeds, network.target, seconds, enough=ENOUGH, calm=network.calm)
        speedup = median_speedup(*times)
        planned = PlannedNetwork(plan, speedup, predicted, speedup >= asked, speedup_noise(*times))
        surprising = max(speedup / predicted, predicted / speedup) > SURPRISE
        if not surprising and not (planned.reached and _rank_of(planned) > _rank_of(best)):
            break
    return planned


def converge(latency_model: LatencyModel, select: Select, budget: float) -> Plan:
    """Return the plan of a budget in milliseconds for the layers, all of whose candidates are timed.

    What the selection chooses is timed, what that loses is looked at, and the selection is repeated with what this
    changes, until it chooses the same.
    """
    for _ in range(MOST_SELECTIONS):
        plan = select(latency_model.choices(), budget)
        if not latency_model.learn(plan):
            return plan
    return select(latency_model.choices(timed=True), budget)


def _rank_of(planned: PlannedNetwork) -> tuple[bool, float]:
    """Reached beats not reached; of the former the slowest is the most accurate, of the latter the fastest counts."""
    return planned.reached, -planned.speedup if planned.reached else planned.speedup


def _dense(items: Sequence[Item]) -> Candidate:
    """Return "keep", or what was chosen by hand."""
    return min(items, key=lambda item: item.loss).candidate


def _cheapest(latency_model: LatencyModel) -> float:
    """Return the smallest share of the time that a plan is predicted to take."""
    least = sum(min(item.cost for item in items) for items in latency_model.choices().values())
    return (latency_model.rest + least) / latency_model.whole


def _false_position(slow: tuple[float, float], fast: tuple[float, float] | None, wanted: float) -> float:
    """Return the predicted share at which the line through two measurements takes the wanted share of the time."""
    a, s = slow
    if fast is None:
        if s >= 1:
            return a * wanted / s * 0.98
        return min(a - 1.02 * (s - wanted) * (1 - a) / (1 - s), _LEAST_STEP * a)  # the original is the other point
    b, f = fast
    middle = (wanted / 1.01 - f) / (s - f) if s > f else 0.5
    least = 0.1 if s < 1 else 0.02  # a step too short would waste an outline, one towards the original lead far off
    return b + (a - b) * min(max(middle, least), 0.9)

"""The one loop of the pipeline: plans are tightened until the stopwatch shows the speed-up asked for.

Latency does not depend on the values of weights, so it is measured on outlines, chains of the right shapes, before
anything is fitted. Within the network the sum of the layers' prices is nearly its time; what it misses is taken to be
the same share of the time in the next plan.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from onnxlowrank.measure.interleaved import measure_afresh
from onnxlowrank.measure.latency import ratio
from onnxlowrank.passes.base import KEEP, Candidate, Plan
from onnxlowrank.plan.latency_model import Prices
from onnxlowrank.plan.network import Network
from onnxlowrank.plan.selection import Offer, Select
from onnxlowrank.progress import Advance, Progress

_LOG = logging.getLogger(__name__)

CORRECTIONS = 3
"""How often the search begins anew since chains turned out slower than their dense layers."""
ROUNDS = 7
"""How many outlines are measured."""
PLANS = 20
"""How many plans are made to find these: most between two that were measured are one of the two."""
SETTLING = 15
"""How often a selection is repeated since something was learnt about the candidates it chose."""
MARGIN = 1.02
"""Plans are accepted from ``MARGIN`` times the speed-up on: noise in the last measurement shall not undo them."""
SLACK = 1.03
"""Plans faster than ``MARGIN * SLACK`` times the speed-up waste accuracy and are loosened."""
GLANCE_S, LOOK_S = 1.0, 4.0
"""How long outlines are timed: at first, and before they are taken or where the first time is a surprise."""
SURPRISE = 1.1
"""That is one which differs from what was predicted by more than this factor."""


@dataclass(frozen=True, eq=False)
class Found:
    """A plan and the speed-up of its outline.

    Attributes:
        plan: One candidate a layer.
        speedup: As it was measured.
        predicted: As the prices had it before it was measured.
        reached: Whether the plan has the speed-up asked for.
    """

    plan: Plan
    speedup: float
    predicted: float
    reached: bool


def search_plan(network: Network, prices: Prices, select: Select, speedup: float, progress: Progress) -> Found:
    """Return the most accurate plan found whose outline is ``speedup`` times faster than the original network.

    Where chains turn out no faster than their dense layers inside the outline, chains there get dearer, and the search
    begins anew; should there still be some in the end, their layers are kept. Single layers are told apart by the
    profiler only, so should this lead away from the speed-up, the stopwatch has the last word.

    Args:
        network: What is to be planned.
        prices: What its candidates cost.
        select: Makes a plan of offers and a budget.
        speedup: Time before / time after.
        progress: Told how far it is.

    Returns:
        The plan; where none is faster than the original network, the one that keeps every layer.
    """
    found: list[Found] = []
    for _ in range(1 + CORRECTIONS):
        found.append(_search(network, prices, select, speedup, progress.stage("plan", ROUNDS)))
        idle = _not_paying(network, prices, found[-1])
        if not idle:
            break
        for candidate, milliseconds in idle.items():
            _LOG.info("%s: %s %s does not pay", candidate.layer, candidate.method, candidate.setting)
            prices.correct(candidate, milliseconds)
    else:
        offers = prices.offers()
        plan = {**found[-1].plan, **{one.layer: _dense(offers[one.layer]) for one in idle}}
        measured = _measured(network, plan, LOOK_S)
        found.append(Found(plan, measured, prices.whole / prices.total(plan), measured >= speedup * MARGIN))
    return found[-1] if found[-1].reached else max(found, key=_merit)


def _search(network: Network, prices: Prices, select: Select, speedup: float, advance: Advance) -> Found:
    """Find the plan by false position: a measured time is linear in the predicted one between two measurements."""
    wanted = 1 / (speedup * MARGIN)
    slow = (1.0, 1.0)  # predicted and measured share of the original's time, of the fastest plan that is too slow
    fast: tuple[float, float] | None = None  # of the slowest plan that is fast enough
    best = Found({name: _dense(offered) for name, offered in prices.offers().items()}, 1.0, 1.0, False)
    share = wanted
    tried: set[tuple[Candidate, ...]] = set()
    for _ in range(PLANS):
        plan = settle(prices, select, share * prices.whole - prices.rest)
        predicted = prices.total(plan) / prices.whole
        key = tuple(plan.values())
        if key in tried:
            if fast is None:
                break
            fast = (share, fast[1])  # up to here the plan is the one known to be fast enough
            share = (share + slow[0]) / 2
            continue
        tried.add(key)
        found = _look(network, plan, 1 / predicted, best, speedup * MARGIN)
        advance(1)
        best, measured = max(best, found, key=_merit), 1 / found.speedup
        _LOG.info("speed-up predicted %.3f, measured %.3f", found.predicted, found.speedup)
        if len(tried) == 1:
            prices.calibrate(plan, measured * prices.whole)
            predicted = prices.total(plan) / prices.whole
        if found.reached:
            fast = (predicted, measured)
            if measured * SLACK >= wanted:
                break
        else:
            slow = (predicted, measured)
        cheapest = _cheapest(prices)
        if len(tried) == ROUNDS or (not found.reached and predicted <= cheapest * (1 + 1e-9)):
            break
        lost = fast is None and len(tried) >= 3  # lines did not lead there: can it be reached at all?
        share = cheapest if lost else max(_false_position(slow, fast, wanted), cheapest)
    return best


def _look(network: Network, plan: Plan, predicted: float, best: Found, asked: float) -> Found:
    """Time the outline of a plan of a predicted speed-up: at a glance, and for longer where that would decide much.

    What disturbs two threads may last for seconds, and the first plan that looks right may do so by luck.
    """
    for seconds in (GLANCE_S, LOOK_S):
        speedup = _measured(network, plan, seconds)
        found = Found(plan, speedup, predicted, speedup >= asked)
        surprising = max(speedup / predicted, predicted / speedup) > SURPRISE
        if not surprising and not (found.reached and _merit(found) > _merit(best)):
            break
    return found


def _measured(network: Network, plan: Plan, seconds: float) -> float:
    """Return the speed-up of a plan's outline."""
    both = network.original, network.outline(plan)
    return ratio(*measure_afresh(both, network.feeds, network.target, seconds))


def settle(prices: Prices, select: Select, budget: float) -> Plan:
    """Return the plan of a budget in milliseconds for the layers, all of whose candidates are timed.

    What the selection chooses is timed, what that loses is looked at, and the selection is repeated with what this
    changes, until it chooses the same.
    """
    for _ in range(SETTLING):
        plan = select(prices.offers(), budget)
        if not prices.learn(plan):
            return plan
    return select(prices.offers(timed=True), budget)


def _not_paying(network: Network, prices: Prices, found: Found) -> dict[Candidate, float]:
    """Return the candidates of a plan that do not pay, and what prices show it.

    Inside the outline they are no faster than their dense layers, by more than noise. What was set by hand, and has no
    "keep" beside it, is left out.
    """
    free = {name for name, offered in prices.offers().items() if any(one.candidate.method == KEEP for one in offered)}
    rewritten = [one for one in found.plan.values() if one.method != KEEP and one.layer in free]
    if not rewritten:
        return {}
    dense, inside = network.layer_times(network.model, network.outline(found.plan))
    idle = [one for one in rewritten if 0 < dense.get(one.layer, 0.0) < MARGIN * inside.get(one.layer, 0.0)]
    return {one: prices.dense[one.layer] * MARGIN * inside[one.layer] / dense[one.layer] for one in idle}


def _merit(found: Found) -> tuple[bool, float]:
    """Reached beats not reached; of the former the slowest is the most accurate, of the latter the fastest counts."""
    return found.reached, -found.speedup if found.reached else found.speedup


def _dense(offers: Sequence[Offer]) -> Candidate:
    """Return "keep", or what was chosen by hand."""
    return min(offers, key=lambda offer: offer.loss).candidate


def _cheapest(prices: Prices) -> float:
    """Return the smallest share of the time that a plan is predicted to take."""
    least = sum(min(offer.cost for offer in offered) for offered in prices.offers().values())
    return (prices.rest + least) / prices.whole


def _false_position(slow: tuple[float, float], fast: tuple[float, float] | None, wanted: float) -> float:
    """Return the predicted share at which the line through two measurements takes the wanted share of the time."""
    a, s = slow
    if fast is None:
        if s >= 1:
            return a * wanted / s * 0.98
        return a - 1.02 * (s - wanted) * (1 - a) / (1 - s)  # the other point is the original network
    b, f = fast
    middle = (wanted / 1.01 - f) / (s - f) if s > f else 0.5
    return b + (a - b) * min(max(middle, 0.1), 0.9)

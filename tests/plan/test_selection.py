"""Rank selection against the paper's algorithm taken literally, and against all plans."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxlowrank.passes.base import KEEP, Candidate
from onnxlowrank.plan.energy import lower_hull, select_by_energy, select_uniformly
from onnxlowrank.plan.knapsack import select_exactly
from onnxlowrank.plan.selection import EnergyLosses, Item, choices_of, lost_energy, pareto


def item(layer, method, setting, cost, energy):
    candidate = Candidate(layer, method, setting, 1, 1, energy)
    return Item(candidate, cost, lost_energy(candidate))


def spectrum_offers(layer, spectrum, cost):
    """One offer a rank, at the paper's cost ``d'/d C``; the full rank is "keep"."""
    energy = np.cumsum(spectrum) / np.sum(spectrum)
    d = len(spectrum)
    ranks = [item(layer, "channel", (r,), cost * r / d, float(energy[r - 1])) for r in range(1, d)]
    return [item(layer, KEEP, (), cost, 1.0), *ranks]


def zhang_greedy(spectra, costs, budget):
    """Sec. 3.4 as printed: remove the eigenvalue with the smallest (dE/E)/dC until the budget holds."""
    ranks = {layer: len(s) for layer, s in spectra.items()}
    while sum(costs[k] * ranks[k] / len(spectra[k]) for k in spectra) > budget:
        measure = {
            k: -math.log1p(-spectra[k][r - 1] / sum(spectra[k][:r])) / (costs[k] / len(spectra[k]))
            for k, r in ranks.items()
            if r > 1
        }
        ranks[min(measure, key=measure.get)] -= 1
    return ranks


@pytest.mark.parametrize("speedup", [1.5, 2, 4])
def test_one_spectrum_a_layer_gives_the_papers_greedy(speedup):
    rng = np.random.default_rng(0)
    spectra = {f"conv{i}": np.sort(rng.gamma(0.3, size=12))[::-1] + 1e-3 for i in range(4)}
    costs = {layer: float(rng.uniform(1, 5)) for layer in spectra}
    budget = sum(costs.values()) / speedup
    plan = select_by_energy({k: spectrum_offers(k, spectra[k], costs[k]) for k in spectra}, budget)
    chosen = {k: c.setting[0] if c.setting else len(spectra[k]) for k, c in plan.items()}
    assert chosen == zhang_greedy(spectra, costs, budget)


points = st.lists(st.tuples(st.integers(1, 50), st.floats(0.5, 0.99)), min_size=0, max_size=5)


def offers_at(layers):
    """Offers of "keep", at a cost of 51, and of the points (cost, energy) of every layer."""
    return {
        f"l{i}": [item(f"l{i}", KEEP, (), 51.0, 1.0), *(item(f"l{i}", "p", (j,), *p) for j, p in enumerate(items))]
        for i, items in enumerate(layers)
    }


def chosen_of(choices, plan):
    return [next(one for one in items if one.candidate == plan[layer]) for layer, items in choices.items()]


def best_loss(choices, budget):
    """The smallest loss of all plans within the budget; infinite if there is none."""
    plans = itertools.product(*choices.values())
    affordable = [plan for plan in plans if sum(one.cost for one in plan) <= budget + 1e-9]
    return min((sum(one.loss for one in plan) for plan in affordable), default=math.inf)


@given(st.lists(points, min_size=1, max_size=3), st.floats(0.1, 1.0))
def test_greedy_keeps_the_budget_or_is_the_cheapest_and_lies_on_the_frontier(layers, share):
    choices = offers_at(layers)
    budget = share * 51 * len(layers)
    chosen = chosen_of(choices, select_by_energy(choices, budget))
    cost = sum(one.cost for one in chosen)
    cheapest = sum(min(one.cost for one in lower_hull(items)) for items in choices.values())
    assert cost <= budget or cost == pytest.approx(cheapest)
    # Greedy on the hull is optimal for the budget it uses up.
    assert sum(one.loss for one in chosen) <= best_loss(choices, cost) + 1e-9


@given(st.lists(points, min_size=1, max_size=4), st.floats(0.01, 1.0))
def test_exact_is_the_best_of_all_plans(layers, share):
    choices = offers_at(layers)
    budget = share * 51 * len(layers)
    chosen = chosen_of(choices, select_exactly(choices, budget))
    best = best_loss(choices, budget)
    if math.isinf(best):
        assert sum(one.cost for one in chosen) == sum(min(one.cost for one in items) for items in choices.values())
    else:
        assert sum(one.cost for one in chosen) <= budget * (1 + 1e-6)
        assert sum(one.loss for one in chosen) <= best * (1 + 2e-4) + 1e-9


def test_exact_spends_what_greedy_leaves():
    """The hull of the first layer goes from 10 to 2; its point at 7 lies above, but is all that is needed."""
    choices = offers_at([[(30, 0.7), (2, 0.69)]])
    assert select_by_energy(choices, 35.0)["l0"].setting == (1,)
    assert select_exactly(choices, 35.0)["l0"].setting == (0,)


@given(points.filter(bool))
def test_pareto_keeps_what_nothing_beats(layer):
    items = offers_at([layer])["l0"]
    front = pareto(items)
    for one in items:
        assert any(other.cost <= one.cost and other.loss <= one.loss for other in front)
    assert all(a.cost > b.cost and a.loss < b.loss for a, b in itertools.pairwise(front))


def test_counted_costs():
    candidates = {"a": [Candidate("a", KEEP, (), 7, 3, 1.0), Candidate("a", "p", (1,), 5, 2, 0.5)]}
    choices = choices_of(candidates, lambda candidate: 4 * candidate.parameters, EnergyLosses())
    assert [one.cost for one in choices["a"]] == [12, 8]
    assert choices["a"][1].loss == pytest.approx(math.log(2))


def test_uniform_cuts_every_layer_and_makes_up_for_fixed_ones():
    spectra = {"a": np.ones(10), "b": np.ones(10)}
    choices = {k: spectrum_offers(k, s, 10.0) for k, s in spectra.items()}
    choices["fixed"] = [item("fixed", KEEP, (), 2.0, 1.0)]
    plan = select_uniformly(choices, 11.0)  # 22 in all, 2 fixed: 20 have to become 9
    assert plan["fixed"].method == KEEP
    assert plan["a"].setting == plan["b"].setting == (4,)

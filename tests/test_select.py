"""Rank selection against the paper's algorithm taken literally, and against all plans."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxlowrank.passes.base import KEEP, Candidate
from onnxlowrank.select.energy import frontier, loss, select_by_energy, select_uniformly


def spectrum_candidates(layer, spectrum, cost):
    """One candidate a rank, at the paper's cost ``d'/d C``; the full rank is "keep"."""
    energy = np.cumsum(spectrum) / np.sum(spectrum)
    d = len(spectrum)
    ranks = [Candidate(layer, "channel", (r,), cost * r / d, float(energy[r - 1])) for r in range(1, d)]
    return [Candidate(layer, KEEP, (), cost, 1.0), *ranks]


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
    plan = select_by_energy({k: spectrum_candidates(k, spectra[k], costs[k]) for k in spectra}, budget)
    chosen = {k: c.setting[0] if c.setting else len(spectra[k]) for k, c in plan.items()}
    assert chosen == zhang_greedy(spectra, costs, budget)


offers = st.lists(st.tuples(st.integers(1, 50), st.floats(0.5, 0.99)), min_size=0, max_size=5)


@given(st.lists(offers, min_size=1, max_size=3), st.floats(0.1, 1.0))
def test_plan_keeps_the_budget_or_is_the_cheapest_and_lies_on_the_frontier(layers, share):
    candidates = {
        f"l{i}": [Candidate(f"l{i}", KEEP, (), 51.0, 1.0), *(Candidate(f"l{i}", "p", (c,), c, e) for c, e in offered)]
        for i, offered in enumerate(layers)
    }
    budget = share * 51 * len(layers)
    plan = select_by_energy(candidates, budget)
    cost = sum(c.cost for c in plan.values())
    cheapest = sum(min(c.cost for c in frontier(offered)) for offered in candidates.values())
    assert cost <= budget or cost == pytest.approx(cheapest)
    # Greedy on the hull is optimal for the budget it uses up.
    best = min(
        sum(loss(c) for c in combination)
        for combination in itertools.product(*candidates.values())
        if sum(c.cost for c in combination) <= cost + 1e-9
    )
    assert sum(loss(c) for c in plan.values()) <= best + 1e-9


def test_uniform_cuts_every_layer_and_makes_up_for_fixed_ones():
    spectra = {"a": np.ones(10), "b": np.ones(10)}
    candidates = {k: spectrum_candidates(k, s, 10.0) for k, s in spectra.items()}
    candidates["fixed"] = [Candidate("fixed", KEEP, (), 2.0, 1.0)]
    plan = select_uniformly(candidates, 11.0)  # 22 in all, 2 fixed: 20 have to become 9
    assert plan["fixed"].method == KEEP
    assert plan["a"].setting == plan["b"].setting == (4,)

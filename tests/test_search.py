"""The closed loop, with a clock that is a function of the plan in place of the stopwatch."""

import math

import numpy as np
import pytest

from onnxlowrank import search
from onnxlowrank.cost.latency import Latency
from onnxlowrank.fit import default_forms
from onnxlowrank.passes.base import KEEP, Candidate
from onnxlowrank.progress import Silent
from onnxlowrank.runtime import Target
from onnxlowrank.select.energy import select_by_energy, select_uniformly


def offers(rng, layers, ranks):
    """Return for every layer "keep" and one candidate a rank, with spectra that fall at different rates."""
    candidates = {}
    for i in range(layers):
        name, cost = f"conv{i}", float(rng.uniform(10, 100))
        energy = np.cumsum(np.exp(-rng.uniform(1, 6) * np.arange(1, ranks + 1) / ranks))
        energy /= energy[-1] * 1.0001
        offered = [Candidate(name, KEEP, (), cost, 1.0)]
        for rank in range(1, ranks):
            offered.append(Candidate(name, "channel", (rank,), 1.2 * cost * rank / ranks, float(energy[rank - 1])))
        candidates[name] = [candidate for candidate in offered if candidate.cost <= cost]
    return candidates


class Clock:
    """Milliseconds of a plan: an overhead, and its cost, rounded up to whole steps in every layer."""

    def __init__(self, candidates, overhead, stairs):
        self.dense = {name: max(offered, key=lambda c: c.cost) for name, offered in candidates.items()}
        self.total = sum(candidate.cost for candidate in self.dense.values())
        self.overhead, self.stairs = overhead, stairs
        self.measured = []

    def time(self, plan):
        spent = 0.0
        for name, candidate in plan.items():
            step = self.dense[name].cost / max(self.stairs, 1)
            spent += math.ceil(candidate.cost / step - 1e-9) * step if self.stairs else candidate.cost
        return self.overhead + (1 - self.overhead) * spent / self.total

    def measure(self, models, feeds, target, seconds):
        original, plan = models
        assert original == "original"
        self.measured.append(plan)
        return Latency((self.time(self.dense),) * 7), Latency((self.time(plan),) * 7)


def run_search(candidates, speedup, overhead=0.0, stairs=0, select=select_by_energy):
    clock = Clock(candidates, overhead, stairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "measure", clock.measure)
        patch.setattr(search, "outlines", lambda network, plan: plan)
        patch.setattr(search, "rewrite", lambda model, layers, chains: chains)
        patch.setattr(search, "fold_gathers", lambda model: model)
        network = search.Network("original", "model", (), {}, candidates, default_forms)
        found = search.search_plan(network, speedup, select, {}, Target("cpu", 1), Silent())
    assert len(clock.measured) <= search.ROUNDS
    settings_measured = [tuple(plan.values()) for plan in clock.measured]
    assert len(set(settings_measured)) == len(settings_measured), "a plan was measured twice"
    assert set(found.plan) == set(candidates)
    assert found.speedup == pytest.approx(clock.time(clock.dense) / clock.time(found.plan))
    return found, clock


def selectable(candidates, clock, select):
    """Return the speed-ups of all plans the selection can make."""
    budgets = np.linspace(0, clock.total, 150)
    plans = {tuple(plan.values()): plan for plan in (select(candidates, budget) for budget in budgets)}
    return [clock.time(clock.dense) / clock.time(plan) for plan in plans.values()]


@pytest.mark.parametrize("select", [select_by_energy, select_uniformly])
@pytest.mark.parametrize("speedup", [1.1, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("overhead", [0.0, 0.1, 0.2, 0.45])
@pytest.mark.parametrize("stairs", [0, 8])
@pytest.mark.parametrize("seed", range(3))
def test_reaches_what_can_be_reached_and_no_more(select, speedup, overhead, stairs, seed):
    rng = np.random.default_rng(seed)
    layers, ranks = int(rng.integers(1, 11)), int(rng.integers(4, 40))
    candidates = offers(rng, layers, ranks)
    found, clock = run_search(candidates, speedup, overhead, stairs, select)
    speedups = selectable(candidates, clock, select)
    enough = [value for value in speedups if value >= search.MARGIN * speedup * (1 + 1e-9)]
    assert found.reached == bool(enough)
    if enough:
        assert found.speedup >= speedup
        assert found.speedup <= max(1.1 * speedup, 1.05 * min(enough))
    else:
        assert found.speedup == pytest.approx(max(1.0, *speedups))
        assert found.speedup == pytest.approx(clock.time(clock.dense) / min(map(clock.time, clock.measured)))


@pytest.mark.parametrize("speedup", [1.5, 2.0, 4.0])
@pytest.mark.parametrize("overhead", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("stairs", [0, 8, 32])
def test_a_network_of_many_layers_comes_close(speedup, overhead, stairs):
    candidates = offers(np.random.default_rng(4), 13, 32)
    found, _ = run_search(candidates, speedup, overhead, stairs)
    assert found.reached
    assert speedup <= found.speedup <= 1.1 * speedup


def test_nothing_to_rewrite():
    candidates = {"a": [Candidate("a", KEEP, (), 10.0, 1.0)]}
    found, clock = run_search(candidates, 2.0)
    assert not found.reached
    assert found.speedup == 1
    assert found.plan["a"].method == KEEP
    assert len(clock.measured) <= 1


def test_plans_slower_than_the_original_are_not_chosen():
    """Cheaper in MACs and slower on the stopwatch, whatever the rank."""
    candidates = offers(np.random.default_rng(0), 3, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Clock,
            "time",
            lambda self, plan: 1.0 + sum(candidate.method != KEEP for candidate in plan.values()),
        )
        found, _ = run_search(candidates, 2.0)
    assert not found.reached
    assert {candidate.method for candidate in found.plan.values()} == {KEEP}
    assert found.speedup == 1


def test_settings_by_hand_are_measured_once():
    candidates = {"a": [Candidate("a", "channel", (4,), 10.0, 1.0)], "b": [Candidate("b", KEEP, (), 5.0, 1.0)]}
    found, clock = run_search(candidates, 2.0)
    assert found.plan["a"].setting == (4,)
    assert len(clock.measured) == 1


def test_progress_is_told():
    done = []

    class Counting:
        def stage(self, title, total):
            assert (title, total) == ("plan", search.ROUNDS)
            return done.append

    candidates = offers(np.random.default_rng(1), 3, 16)
    clock = Clock(candidates, 0.1, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "measure", clock.measure)
        patch.setattr(search, "outlines", lambda network, plan: plan)
        patch.setattr(search, "rewrite", lambda model, layers, chains: chains)
        patch.setattr(search, "fold_gathers", lambda model: model)
        network = search.Network("original", "model", (), {}, candidates, default_forms)
        search.search_plan(network, 2.0, select_by_energy, {}, Target("cpu", 1), Counting())
    assert 0 < sum(done) <= search.ROUNDS

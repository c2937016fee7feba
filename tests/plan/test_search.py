"""The closed loop, with a clock that is a function of the plan in place of the stopwatch."""

import math

import numpy as np
import pytest

from onnxlowrank.measure.latency import Latency
from onnxlowrank.passes.base import KEEP, Candidate
from onnxlowrank.plan import search
from onnxlowrank.plan.energy import select_by_energy, select_uniformly
from onnxlowrank.plan.knapsack import select_exactly
from onnxlowrank.plan.selection import Item, lost_energy
from onnxlowrank.progress import Silent


def candidate(layer, method, setting, cost, energy):
    return Candidate(layer, method, setting, cost, 0, energy)


def choices(rng, layers, ranks):
    """Return for every layer "keep" and one candidate a rank, with spectra that fall at different rates."""
    candidates = {}
    for i in range(layers):
        name, cost = f"conv{i}", float(rng.uniform(10, 100))
        energy = np.cumsum(np.exp(-rng.uniform(1, 6) * np.arange(1, ranks + 1) / ranks))
        energy /= energy[-1] * 1.0001
        items = [candidate(name, KEEP, (), cost, 1.0)]
        for rank in range(1, ranks):
            items.append(candidate(name, "channel", (rank,), 1.2 * cost * rank / ranks, float(energy[rank - 1])))
        candidates[name] = [one for one in items if one.macs <= cost]
    return candidates


class Clock:
    """Milliseconds of a plan: an overhead, and its cost, rounded up to whole steps in every layer."""

    def __init__(self, candidates, overhead, stairs):
        self.dense = {name: max(items, key=lambda c: c.macs) for name, items in candidates.items()}
        self.total = sum(one.macs for one in self.dense.values())
        self.overhead, self.stairs = overhead, stairs
        self.measured = []

    def time(self, plan):
        spent = 0.0
        for name, one in plan.items():
            step = self.dense[name].macs / max(self.stairs, 1)
            spent += math.ceil(one.macs / step - 1e-9) * step if self.stairs else one.macs
        return self.overhead + (1 - self.overhead) * spent / self.total

    def measure(self, models, feeds, target, seconds, enough, calm):
        original, plan = models
        assert original == "original"
        if self.measured[-1:] != [plan]:  # else it is measured again, for longer
            self.measured.append(plan)
        return Latency((self.time(self.dense),) * 7), Latency((self.time(plan),) * 7)


class LatencyModel:
    """The costs, which know neither of the overhead nor of stairs."""

    def __init__(self, candidates, untimed=0):
        self.candidates = {name: list(items) for name, items in candidates.items()}
        self.rest, self.untimed = 0.0, untimed
        self.dense = {name: max(one.macs for one in items) for name, items in candidates.items()}
        self.whole = sum(self.dense.values())

    def choices(self, timed=False):
        return {
            name: [Item(one, self.cost(one), lost_energy(one)) for one in items]
            for name, items in self.candidates.items()
        }

    def learn(self, plan):
        self.untimed -= 1
        return self.untimed >= 0

    def total(self, plan):
        return sum(map(self.cost, plan.values()))

    def cost(self, one):
        return one.macs

    def calibrate(self, plan, milliseconds):
        pass


class Network:
    """A network whose outline is its plan."""

    original, feeds, target, calm = "original", {}, None, None

    def outline(self, plan):
        return plan


def run_search(candidates, speedup, overhead=0.0, stairs=0, select=select_by_energy):
    clock = Clock(candidates, overhead, stairs)
    latency_model = LatencyModel(candidates)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "measure_in_sessions", clock.measure)
        found = search.search_plan(Network(), latency_model, select, speedup, Silent())
    assert len(clock.measured) <= search.ROUNDS
    settings_measured = [tuple(plan.values()) for plan in clock.measured]
    assert len(set(settings_measured)) == len(settings_measured), "a plan was measured twice"
    assert set(found.plan) == set(candidates)
    assert found.speedup == pytest.approx(clock.time(clock.dense) / clock.time(found.plan))
    return found, clock


def selectable(candidates, clock, select):
    """Return the speed-ups of all plans the selection can make."""
    budgets = np.linspace(0, clock.total, 150)
    items = LatencyModel(candidates).choices()
    plans = {tuple(plan.values()): plan for plan in (select(items, budget) for budget in budgets)}
    return [clock.time(clock.dense) / clock.time(plan) for plan in plans.values()]


@pytest.mark.parametrize("select", [select_by_energy, select_uniformly])
@pytest.mark.parametrize("speedup", [1.1, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("overhead", [0.0, 0.1, 0.2, 0.45])
@pytest.mark.parametrize("stairs", [0, 8])
@pytest.mark.parametrize("seed", range(3))
def test_reaches_what_can_be_reached_and_no_more(select, speedup, overhead, stairs, seed):
    rng = np.random.default_rng(seed)
    layers, ranks = int(rng.integers(1, 11)), int(rng.integers(4, 40))
    candidates = choices(rng, layers, ranks)
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
@pytest.mark.parametrize("select", [select_by_energy, select_exactly])
def test_a_network_of_many_layers_comes_close(select, speedup, overhead, stairs):
    candidates = choices(np.random.default_rng(4), 13, 32)
    found, _ = run_search(candidates, speedup, overhead, stairs, select)
    assert found.reached
    assert speedup <= found.speedup <= 1.1 * speedup


def test_nothing_to_rewrite():
    candidates = {"a": [candidate("a", KEEP, (), 10.0, 1.0)]}
    found, clock = run_search(candidates, 2.0)
    assert not found.reached
    assert found.speedup == 1
    assert found.plan["a"].method == KEEP
    assert len(clock.measured) <= 1


def test_plans_slower_than_the_original_are_not_chosen():
    """Cheaper in MACs and slower on the stopwatch, whatever the rank."""
    candidates = choices(np.random.default_rng(0), 3, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Clock,
            "time",
            lambda self, plan: 1.0 + sum(one.method != KEEP for one in plan.values()),
        )
        found, _ = run_search(candidates, 2.0)
    assert not found.reached
    assert {one.method for one in found.plan.values()} == {KEEP}
    assert found.speedup == 1


def test_settings_by_hand_are_measured_once():
    candidates = {"a": [candidate("a", "channel", (4,), 10.0, 1.0)], "b": [candidate("b", KEEP, (), 5.0, 1.0)]}
    found, clock = run_search(candidates, 2.0)
    assert found.plan["a"].setting == (4,)
    assert len(clock.measured) == 1


def test_progress_is_told():
    done = []

    class Counting:
        def stage(self, title, total):
            assert (title, total) == ("plan", search.ROUNDS)
            return done.append

    candidates = choices(np.random.default_rng(1), 3, 16)
    clock, latency_model = Clock(candidates, 0.1, 0), LatencyModel(candidates)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "measure_in_sessions", clock.measure)
        search.search_plan(Network(), latency_model, select_by_energy, 2.0, Counting())
    assert 0 < sum(done) <= search.ROUNDS


def test_settling_times_what_is_chosen_until_nothing_is_new():
    latency_model = LatencyModel(choices(np.random.default_rng(3), 2, 6), untimed=3)
    search.converge(latency_model, select_by_energy, 0.5 * latency_model.whole)
    assert latency_model.untimed == -1


def test_settling_ends():
    asked = []

    class Restless(LatencyModel):
        def choices(self, timed=False):
            asked.append(timed)
            return super().choices(timed)

    latency_model = Restless(choices(np.random.default_rng(3), 2, 6), untimed=1000)
    search.converge(latency_model, select_by_energy, 0.5 * latency_model.whole)
    assert asked == [False] * search.MOST_SELECTIONS + [True]


@pytest.mark.parametrize("disturbed", [False, True])
def test_a_glance_alone_decides_nothing(monkeypatch, disturbed):
    """It flatters plans that are too slow, which seem to be just what was asked for, or makes all plans look slow."""
    candidates = choices(np.random.default_rng(2), 4, 12)
    clock, latency_model, asked = Clock(candidates, 0.1, 0), LatencyModel(candidates), 1.5
    true = clock.time

    def measure(models, feeds, target, seconds, enough, calm):
        before, after = true(clock.dense), true(models[1])
        if seconds < search.LONG_S:
            after = 10 * after if disturbed else min(after, before / (asked * search.MARGIN * 1.001))
        return Latency((before,) * 7), Latency((after,) * 7)

    monkeypatch.setattr(search, "measure_in_sessions", measure)
    found = search.search_plan(Network(), latency_model, select_by_energy, asked, Silent())
    assert found.reached
    assert found.speedup == pytest.approx(true(clock.dense) / true(found.plan))


def test_what_noise_adds_is_not_loosened(monkeypatch):
    """Sessions differ by a fifth, so eight of them tell a speed-up to 7 %; the band that is accepted is as wide."""
    candidates, asked, counts, found = choices(np.random.default_rng(4), 13, 32), 2.0, [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        clock = Clock(candidates, 0.1, 0)

        def measure(models, feeds, target, seconds, enough, calm, clock=clock, rng=rng):
            before, after = clock.measure(models, feeds, target, seconds, enough, calm)
            sessions = after.median * np.exp(rng.normal(0, 0.2, 8))
            return Latency((before.median,) * 8, (1,) * 8), Latency(tuple(sessions), (1,) * 8)

        monkeypatch.setattr(search, "measure_in_sessions", measure)
        planned = search.search_plan(Network(), LatencyModel(candidates), select_by_energy, asked, Silent())
        counts.append(len(clock.measured))
        found.append(clock.time(clock.dense) / clock.time(planned.plan))
        assert planned.reached
    assert np.mean(counts) < 3.5
    assert np.median(found) == pytest.approx(asked, rel=0.1), "in truth"


def test_plans_that_miss_by_a_hair_are_no_reason_to_try_the_cheapest(monkeypatch):
    """Noise makes the first three seem a little too slow, whatever they are."""
    candidates, asked = choices(np.random.default_rng(4), 13, 32), 2.0
    clock = Clock(candidates, 0.1, 0)

    def measure(models, feeds, target, seconds, enough, calm):
        before, after = clock.measure(models, feeds, target, seconds, enough, calm)
        least = 1.004 * before.median / (asked * search.MARGIN) if len(clock.measured) <= 3 else 0.0
        return before, Latency((max(after.median, least),) * 7)

    monkeypatch.setattr(search, "measure_in_sessions", measure)
    found = search.search_plan(Network(), LatencyModel(candidates), select_by_energy, asked, Silent())
    assert found.reached
    assert max(clock.time(clock.dense) / clock.time(plan) for plan in clock.measured) < 1.25 * asked
    assert len(clock.measured) <= 5

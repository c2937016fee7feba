"""Ratios of times and their intervals, against noise whose size is known."""

import numpy as np
import pytest

from onnxlowrank.measure import interleaved as duel
from onnxlowrank.measure.calm import Calm
from onnxlowrank.measure.interleaved import measure_in_sessions, speedup_interval, time_in_sessions
from onnxlowrank.measure.latency import Latency
from onnxlowrank.measure.sessions import Target


def sessions(rng, median, between, within, count=8, rounds=40):
    """Milliseconds whose logarithm varies between sessions and within them."""
    return [median * np.exp(rng.normal(0, between) + rng.normal(0, within, rounds)) for _ in range(count)]


@pytest.mark.parametrize(("between", "within"), [(0.0, 0.05), (0.01, 0.01), (0.02, 0.05)])
def test_the_interval_holds_the_true_ratio_as_often_as_it_says(between, within):
    rng = np.random.default_rng(1)
    hits, widths = 0, []
    for _ in range(150):
        found = speedup_interval(sessions(rng, 6.0, between, within), sessions(rng, 2.0, between, within))
        hits += found.low <= 3.0 <= found.high
        widths.append(found.high - found.low)
        assert found.low <= found.ratio <= found.high
    assert hits / 150 >= 0.91  # 95 %, and what chance allows 150 trials
    spread = np.hypot(between, 1.25 * within / np.sqrt(40)) / 2  # of a median of 8 sessions, twice
    assert np.median(widths) < 3 * 4 * 2 * spread


def test_what_slows_both_down_cancels():
    rng = np.random.default_rng(2)
    load = [np.exp(rng.normal(0, 0.5, 40)) for _ in range(8)]
    found = speedup_interval([4 * one for one in load], [one * np.exp(rng.normal(0, 0.01, 40)) for one in load])
    assert found.ratio == pytest.approx(4, rel=0.005)
    assert found.high / found.low < 1.01


def test_equal_seeds_give_equal_intervals():
    rng = np.random.default_rng(3)
    pair = sessions(rng, 1.0, 0.02, 0.02), sessions(rng, 1.0, 0.02, 0.02)
    assert speedup_interval(*pair, seed=5) == speedup_interval(*pair, seed=5) != speedup_interval(*pair, seed=6)


def test_networks_take_turns_and_each_has_its_own_times(monkeypatch):
    orders = []

    def measured(models, feeds, target, seconds):
        orders.append(list(models))
        return [Latency((float(model), 10.0 * model)) for model in models]

    monkeypatch.setattr(duel, "measure", measured)
    done = []
    times = time_in_sessions([1, 2, 3], {}, Target(), 8.0, done.append)
    assert all(np.array_equal(one, [k + 1, 10 * (k + 1)]) for k, mine in enumerate(times) for one in mine)
    assert [len(mine) for mine in times] == [duel.SESSIONS] * 3
    assert {tuple(order) for order in orders} == {(1, 2, 3), (2, 3, 1), (3, 1, 2)}
    assert sum(done) == pytest.approx(1)


@pytest.mark.parametrize(("seconds", "sessions"), [(0.0, 1), (2.5, 3), (100.0, duel.SESSIONS)])
def test_sessions_are_opened_as_long_as_time_is_left(monkeypatch, seconds, sessions):
    """One network, whose sessions take a second each."""
    clock = iter(range(100))
    monkeypatch.setattr(duel.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(duel, "measure", lambda models, feeds, target, seconds: [Latency((7.0, 8.0))])
    (found,) = measure_in_sessions(["network"], {}, Target(), seconds)
    assert found.milliseconds == (7.0, 8.0) * sessions


@pytest.mark.parametrize(("spread", "sessions"), [(0.0, 3), (0.001, 3), (0.1, duel.SESSIONS)])
def test_no_more_sessions_than_it_takes_to_know_the_ratio(monkeypatch, spread, sessions):
    """The second network takes half as long as the first one; by how much, differs from session to session."""
    rng = np.random.default_rng(0)

    def measured(models, feeds, target, seconds):
        half = 0.5 * float(np.exp(spread * rng.standard_normal()))
        return [Latency((1.0,) * 5) if model == "before" else Latency((half,) * 5) for model in models]

    monkeypatch.setattr(duel, "measure", measured)
    before, after = measure_in_sessions(["before", "after"], {}, Target(), 100.0, fewest=2, enough=0.005)
    assert len(before.milliseconds) == len(after.milliseconds) == 5 * sessions


class Shared:
    """A machine on which a session takes a second, and other work slows networks down during some of them.

    The first network takes 4 then instead of 2 milliseconds, the second one 3 instead of 1.
    """

    def __init__(self, monkeypatch, disturbed):
        self.disturbed, self.seconds = disturbed, 0
        monkeypatch.setattr(duel.time, "perf_counter", lambda: float(self.seconds))
        monkeypatch.setattr(duel, "measure", self.measure)

    def measure(self, models, feeds, target, seconds):
        extra = 2.0 * self.disturbed(self.seconds)
        self.seconds += 1
        return [Latency((float(model) + extra,) * 5) for model in models]


@pytest.mark.parametrize(
    ("disturbed", "ratio", "took"),
    [
        (lambda second: False, 2.0, 3),
        (lambda second: second < 4, 2.0, 5),  # waited out
        (lambda second: second % 2, 2.0, 3),  # left out
        (lambda second: second < 30, 4 / 3, 6),  # it does not end: what there is counts
    ],
)
def test_other_work_is_waited_out(monkeypatch, disturbed, ratio, took):
    """It is known how long the first network takes at best: it was measured before, in the second before the first."""
    machine, calm = Shared(monkeypatch, lambda second: disturbed(second - 1) if second else False), Calm()
    measure_in_sessions([2, 1], {}, Target(), 0.5, calm=calm)
    before, after = measure_in_sessions([2, 1], {}, Target(), 2.5, calm=calm)
    assert np.median(np.divide(before.milliseconds, after.milliseconds)) == pytest.approx(ratio)
    assert machine.seconds == 1 + took


def test_a_machine_that_stays_slow_is_the_usual_one_from_then_on(monkeypatch):
    machine, calm = Shared(monkeypatch, lambda second: second > 0), Calm()
    took = []
    for _ in range(3):
        start = machine.seconds
        measure_in_sessions([2, 1], {}, Target(), 0.5, calm=calm)
        took.append(machine.seconds - start)
    assert took == [1, 4, 1]


def test_without_it_all_sessions_count(monkeypatch):
    Shared(monkeypatch, lambda second: second % 2)
    times = time_in_sessions([2, 1], {}, Target(), 8.0)
    assert [one[0] for one in times[0]] == [2.0, 4.0] * 4

"""Prices with a timer that is a function of the chain in place of the stopwatch."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxlowrank.graph.layer import Geometry, Layer
from onnxlowrank.measure.cache import Timing
from onnxlowrank.measure.lowerings import Lowerings
from onnxlowrank.passes import load_passes
from onnxlowrank.passes.base import Candidate, keep
from onnxlowrank.plan import latency_model as latency_model_module
from onnxlowrank.plan.energy import select_by_energy
from onnxlowrank.plan.latency_model import LatencyModel
from onnxlowrank.plan.selection import EnergyLosses

FLAT = Geometry((1, 1), (1, 1, 1, 1), (1, 1))


class Timer:
    """Milliseconds by the MACs: chains are slower per operation than layers by ``penalty``, by their first link."""

    def __init__(self, **penalties):
        self.penalties, self.asked = penalties, []

    def milliseconds(self, layer, chain):
        if chain is None:
            return Timing(layer.macs / 1e6, 0.0)
        self.asked.append((layer.name, chain))
        return Timing(self.penalties.get(chain.steps[0].name, 1.0) * chain.macs(layer.input_shape) / 1e6, 0.0)


def layer(name, maps=32):
    weight = np.ones((maps, maps, 3, 3), np.float32)
    shape = (1, maps, 8, 8)
    return Layer(name, "Conv", weight, None, FLAT, "x", "y", (name,), "y", input_shape=shape, output_shape=shape)


def network(layers, applicable, inside, whole):
    lowering = Lowerings(None)
    times = {
        "dense_times": (inside, whole),
        "original_time": whole,
        "chain_times": lambda networks: [{} for _ in networks],
        "rest_time": None,
    }
    return SimpleNamespace(layers=layers, applicable=applicable, lowering=lowering, **times)


def make(layers, timer, inside=None, whole=None, methods=("channel", "spatial")):
    passes = {one.name: one for one in load_passes(list(methods))}
    candidates = {
        one.name: [keep(one)]
        + [
            method.candidate(one, (rank,), 1 - 0.1 * (1 - rank / 64) - 0.01 * (method.name == "channel"))
            for method in passes.values()
            for rank in range(8, 24, 8)
        ]
        for one in layers
    }
    inside = {one.name: 2 * one.macs / 1e6 for one in layers} if inside is None else inside
    whole = 1.25 * sum(inside.values()) if whole is None else whole
    applicable = {one.name: passes for one in layers}
    return LatencyModel(network(layers, applicable, inside, whole), candidates, EnergyLosses(), timer), candidates


def converge(latency_model, budget):
    plans = []
    for _ in range(20):
        plans.append(select_by_energy(latency_model.choices(), budget))
        if not latency_model.learn(plans[-1]):
            return plans[-1], plans
    raise AssertionError("never settles")


def test_prices_are_in_proportion_to_the_time_inside_the_network():
    one = layer("a")
    latency_model, candidates = make([one], Timer())
    assert latency_model.of(keep(one)) == pytest.approx(2 * one.macs / 1e6)
    assert latency_model.rest == pytest.approx(0.25 * 2 * one.macs / 1e6)
    candidate = candidates["a"][1]
    latency_model.learn({"a": candidate})
    assert latency_model.of(candidate) == pytest.approx(2 * candidate.macs / 1e6)
    assert latency_model.total({"a": candidate}) == pytest.approx(latency_model.rest + 2 * candidate.macs / 1e6)


def test_a_layer_unknown_inside_takes_what_it_takes_alone():
    latency_model, _ = make([layer("a")], Timer(), inside={}, whole=10.0)
    assert latency_model.dense["a"] == pytest.approx(layer("a").macs / 1e6)
    assert latency_model.rest == pytest.approx(10 - latency_model.dense["a"])


def test_only_what_is_chosen_is_timed_and_layers_of_a_kind_share_it():
    timer = Timer()
    layers = [layer("a"), layer("b"), layer("c", 48)]
    latency_model, candidates = make(layers, timer)
    plan, _ = converge(latency_model, 0.5 * latency_model.whole)
    assert len(timer.asked) < sum(map(len, candidates.values())) - 3
    assert "b" not in {name for name, _ in timer.asked}
    assert not latency_model.learn(plan)


def test_a_pass_that_disappoints_is_given_up():
    """Spatial keeps more, but takes three times as long as its operations say."""
    latency_model, _ = make([layer("a")], Timer(spatial_v=3.0))
    plan, plans = converge(latency_model, 0.45 * latency_model.dense["a"])
    assert plans[0]["a"].method == "spatial"
    assert plan["a"].method == "channel"
    assert latency_model.of(plan["a"]) <= 0.45 * latency_model.dense["a"]


def test_offers_are_a_front_and_timed_ones_only_on_demand():
    latency_model, candidates = make([layer("a")], Timer())
    front = latency_model.choices()["a"]
    assert front[0].cost < front[-1].cost
    assert front[0].loss > front[-1].loss == 0
    assert [item.candidate for item in latency_model.choices(timed=True)["a"]] == [keep(layer("a"))]
    latency_model.learn({"a": candidates["a"][3]})
    assert {item.candidate for item in latency_model.choices(timed=True)["a"]} == {keep(layer("a")), candidates["a"][3]}


def test_calibration_makes_the_plan_right_and_leaves_layers_that_are_kept():
    layers = [layer("a"), layer("b")]
    latency_model, candidates = make(layers, Timer())
    plan = {"a": candidates["a"][1], "b": keep(layers[1])}
    latency_model.learn(plan)
    wanted = 0.9 * latency_model.total(plan)
    kept = latency_model.of(plan["b"])
    latency_model.calibrate(plan, wanted)
    assert latency_model.total(plan) == pytest.approx(wanted)
    assert latency_model.of(plan["b"]) == kept
    assert latency_model.total({one.name: keep(one) for one in layers}) == pytest.approx(latency_model.whole)


@given(st.lists(st.integers(1, 30).map(lambda i: 8 * i), min_size=1, max_size=5, unique=True), st.floats(0.1, 10))
def test_estimates_lie_between_what_was_timed_and_hope(ranks, hope):
    rng = np.random.default_rng(0)
    timed = {
        (rank,): latency_model_module._Timed(100, 100 / speed)
        for rank, speed in zip(ranks, rng.uniform(1, 3, len(ranks)), strict=True)
    }
    wanted = np.log(np.arange(1, 300.0))[:, None]
    speeds = latency_model_module._speeds(wanted, timed, hope)
    known = [one.speed for one in timed.values()]
    assert min(*known, hope) * (1 - 1e-9) <= speeds.min()
    assert speeds.max() <= max(*known, hope) * (1 + 1e-9)
    for (rank,), one in timed.items():
        assert speeds[rank - 1] == pytest.approx(one.speed, rel=0.02)


def test_nothing_timed_is_hope_alone():
    assert latency_model_module._speeds(np.log([[3.0], [5.0]]), {}, 7.0) == pytest.approx([7.0, 7.0])


def test_candidates_by_hand_without_keep():
    one = layer("a")
    (method,) = load_passes(["channel"])
    by_hand: list[Candidate] = [method.candidate(one, (8,), 1.0)]
    inside = {"a": 1.0}
    latency_model = LatencyModel(
        network([one], {"a": {"channel": method}}, inside, 1.0), {"a": by_hand}, EnergyLosses(), Timer()
    )
    plan, _ = converge(latency_model, 0.1)
    assert plan == {"a": by_hand[0]}


def test_losses_are_refined_when_all_has_been_timed():
    class Refining(EnergyLosses):
        found = 1.0

        def of(self, candidate):
            return self.found * super().of(candidate)

        def refine(self, plan):
            changed = [] if self.found == 2.0 else ["a"]
            self.found = 2.0
            return changed

    one = layer("a")
    (method,) = load_passes(["channel"])
    candidates = {"a": [keep(one), method.candidate(one, (8,), 0.9)]}
    latency_model = LatencyModel(
        network([one], {"a": {"channel": method}}, {"a": 1.0}, 1.0), candidates, Refining(), Timer()
    )
    plan = {"a": candidates["a"][1]}

    def loss():
        return max(item.loss for item in latency_model.choices()["a"])

    assert latency_model.learn(plan)
    assert loss() == pytest.approx(-np.log(0.9)), "it was timed, no more"
    assert latency_model.learn(plan)
    assert loss() == pytest.approx(-2 * np.log(0.9))
    assert not latency_model.learn(plan)

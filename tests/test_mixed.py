"""Networks whose layers are int8 or float32, through the whole pipeline, with a stopwatch that is made up."""

import numpy as np
import pytest
from helpers.models import run
from helpers.stopwatch import no_stopwatch
from test_int8 import int8_nodes, network, speeds
from test_pipeline import smooth

from onnxlowrank import OptionError, optimize
from onnxlowrank.plan import builder, drop, mixed_goals, mixing, search
from onnxlowrank.plan.int8_losses import Int8Losses
from onnxlowrank.plan.sensitivity import SensitivityLosses

MIXED = {"precision": "mixed", "passes": ["channel"]}
WEIGHTED = 4


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    no_stopwatch(monkeypatch, 4)
    for module in (builder, search, mixing):
        speeds(monkeypatch, lambda model: 1 + len(int8_nodes(model)) / 2, module)


def test_a_speedup_that_int8_exceeds_leaves_room_for_float32():
    unseen = smooth(16, seed=9)
    result = optimize(network(), calibration=smooth(24), evaluate=unseen, speedup=1.9, **MIXED)
    int8 = optimize(network(), calibration=smooth(24), evaluate=unseen, speedup=1.9, precision="int8",
                    passes=["channel"])  # fmt: skip
    assert result.reached
    assert result.precision == "mixed"
    assert int8.latency_speedup == pytest.approx(1 + WEIGHTED / 2)
    assert 1.9 <= result.latency_speedup < int8.latency_speedup
    precisions = [layer.precision for layer in result.layers]
    assert {"int8", "float32"} == set(precisions)
    assert all(bool(one.float32_because) == (one.precision == "float32") for one in result.layers)
    assert result.agreement.relative_error < int8.agreement.relative_error


def test_what_float32_reaches_with_less_loss_is_float32(monkeypatch):
    for module in (builder, search, mixing):
        speeds(monkeypatch, lambda model: 1.0 if int8_nodes(model) else 2.1, module)
    result = optimize(network(), calibration=smooth(24), evaluate=smooth(16, seed=9), speedup=2, **MIXED)
    assert result.reached
    assert {layer.precision for layer in result.layers} == {"float32"}
    assert {layer.float32_because for layer in result.layers} == {"nothing was found that is int8 and better"}


def test_within_a_drop_layers_that_lose_too_much_are_float32(monkeypatch):
    monkeypatch.setattr(drop, "_FITS", 1)
    given, unseen = network(), smooth(90, seed=4)
    (wanted,) = run(given, x=unseen)

    def closeness(outputs, labels):
        found = np.concatenate([one["y"] for one in outputs])
        which = [int(np.abs(wanted - one).sum(axis=1).argmin()) for one in found]
        return -float(np.abs(found - wanted[which]).mean())

    int8 = optimize(given, calibration=smooth(24), evaluate=unseen, speedup=2, metric=closeness, precision="int8",
                    passes=["channel"])  # fmt: skip
    lost = int8.int8_alone.agreement.drop
    assert lost > 0
    about = {"calibration": smooth(24), "evaluate": unseen, "max_drop": 0.85 * lost, "metric": closeness}
    mixed = optimize(given, **about, **MIXED)
    assert mixed.reached
    assert {layer.precision for layer in mixed.layers} == {"int8", "float32"}
    assert 1 < mixed.latency_speedup < 1 + WEIGHTED / 2


def test_the_plan_in_float32_is_made_without_what_rounding_adds(monkeypatch):
    seen, real = [], mixed_goals.LatencyModel
    monkeypatch.setattr(mixed_goals, "LatencyModel", lambda *about: seen.append(about[2]) or real(*about))
    optimize(network(), calibration=smooth(24), evaluate=smooth(16, seed=9), speedup=1.9, **MIXED)
    assert [type(one) for one in seen] == [Int8Losses, SensitivityLosses]
    assert seen[0].float32 is seen[1]


@pytest.mark.parametrize(("pessimism", "selection"), [(0, "exact"), (1e9, "exact"), (0, "energy")])
def test_what_would_lose_far_more_is_not_looked_for(monkeypatch, pessimism, selection):
    """Searches for faster int8 networks and for float32 ones take minutes; energies do not tell what is lost."""
    sought, real = [], mixed_goals.network_for_speedup
    monkeypatch.setattr(mixed_goals, "_PESSIMISM", pessimism)
    monkeypatch.setattr(
        mixed_goals,
        "network_for_speedup",
        lambda builder, model, speedup, *rest: (
            sought.append((builder.network.int8 is not None, speedup)) or real(builder, model, speedup, *rest)
        ),
    )
    result = optimize(network(), calibration=smooth(24), evaluate=smooth(16, seed=9), speedup=2.6,
                      selection=selection, **MIXED)  # fmt: skip
    assert result.reached
    all_there_is = [(True, 2.6), (True, 2.6 * 1.25), (False, 2.6)]
    assert sought == (all_there_is if pessimism or selection == "energy" else all_there_is[:1])


@pytest.mark.parametrize("goal", [{"max_size": 1000}, {"max_macs": 1000}, {"target": "macs", "speedup": 2}])
def test_counted_goals_are_refused(goal):
    with pytest.raises(OptionError, match="--precision mixed weighs time against accuracy"):
        optimize(network(), calibration=smooth(8), **goal, **MIXED)

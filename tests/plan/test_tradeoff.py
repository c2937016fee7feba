"""What a selection could have chosen, on choices whose answers are known."""

import pytest

from onnxlowrank.evaluate.agreement import Agreement, Noise
from onnxlowrank.passes.base import KEEP, Candidate
from onnxlowrank.plan.energy import select_by_energy
from onnxlowrank.plan.knapsack import select_exactly
from onnxlowrank.plan.notes import is_much_lost, loss_note
from onnxlowrank.plan.selection import Item
from onnxlowrank.plan.tradeoff import Tradeoff


class Squares:
    """A layer cut to a share of its cost loses the square of what is gone, as often as its name says."""

    def of(self, candidate):
        return int(candidate.layer[1:]) * (1 - candidate.macs / 100) ** 2

    def refine(self, plan):
        return ()


def candidate(layer, macs):
    return Candidate(layer, KEEP if macs == 100 else "channel", () if macs == 100 else (macs,), macs, 0, 1.0)


def tradeoff(layers=("x1", "x4"), fixed=0.0, select=select_exactly, **how):
    items = {name: [candidate(name, macs) for macs in range(100, 0, -1)] for name in layers}
    losses = Squares()
    choices = {name: [Item(one, one.macs, losses.of(one)) for one in each] for name, each in items.items()}
    return Tradeoff(lambda: choices, fixed + 100 * len(layers), fixed, losses, select, **how)


def test_the_costliest_layers():
    plan = {"x1": candidate("x1", 40), "x4": candidate("x4", 85), "x9": candidate("x9", 100)}
    assert tradeoff().costliest(plan, 3) == [("x1", pytest.approx(0.36 / 0.45)), ("x4", pytest.approx(0.09 / 0.45))]
    assert tradeoff().costliest(plan, 1) == [("x1", pytest.approx(0.8))]
    assert tradeoff().costliest({"x1": candidate("x1", 100)}, 3) == []


@pytest.mark.parametrize("fixed", [0.0, 50.0])
@pytest.mark.parametrize("select", [select_exactly, select_by_energy])
def test_the_speed_up_at_a_share_of_the_loss(fixed, select):
    """One layer alone: a quarter of the loss is lost where half as much is cut away."""
    one = tradeoff(("x1",), fixed, select)
    plan = {"x1": candidate("x1", 20)}
    speedup = (fixed + 100) / (fixed + 20)
    assert one.speedup_at(0.25, plan, speedup) == pytest.approx((fixed + 100) / (fixed + 60), rel=0.02)
    assert one.speedup_at(1.0, plan, speedup) == pytest.approx(speedup, rel=0.02)
    assert one.speedup_at(0.0, plan, speedup) in (None, pytest.approx(1.0, abs=0.02))


def test_why_layers_are_kept():
    items = {"only": [Item(candidate("only", 100), 1.0, 0.0)], "other": [Item(candidate("other", 50), 1.0, 0.0)]}
    one = Tradeoff(lambda: items, 1.0, 0.0, Squares(), select_exactly)
    assert one.kept_because("only") == "none of its chains is faster, as far as they were measured"
    assert one.kept_because("other") == "no setting saves enough for its loss"


@pytest.mark.parametrize(
    ("about", "much"),
    [
        ({"accuracy": (0.9, 0.885)}, False),
        ({"accuracy": (0.9, 0.875)}, True),
        ({"accuracy": (0.9, 0.89), "top1_agreement": 0.8}, False),
        ({"top1_agreement": 0.96}, False),
        ({"top1_agreement": 0.94}, True),
        ({"relative_error": 0.19}, False),
        ({"relative_error": 0.21}, True),
        ({"relative_error": 0.5, "noise": Noise(0.49, 1.0, None)}, False),
        ({"relative_error": 0.54, "noise": Noise(0.49, 1.0, None)}, True),
        ({"relative_error": 0.21, "noise": Noise(None, None, None)}, True),
        ({"top1_agreement": 0.86, "noise": Noise(0.49, 1.0, 0.9)}, False),
        ({"top1_agreement": 0.84, "noise": Noise(0.49, 1.0, 0.9)}, True),
    ],
)
def test_when_much_is_lost(about, much):
    assert (
        is_much_lost(
            Agreement(**{"inputs": 100, "source": "", "largest_difference": 0.0, "relative_error": 0.0, **about})
        )
        == much
    )


def test_the_note_names_layers_and_half_the_loss():
    plan = {"x1": candidate("x1", 20), "x4": candidate("x4", 80)}
    values = Agreement(inputs=100, source="", largest_difference=0.0, relative_error=0.3)
    note = loss_note(values, plan, tradeoff(), 2.0)
    assert "most of the predicted loss is that of x1 (80 %), x4 (20 %)" in note
    assert "--speedup 1." in note
    assert "--speedup" not in loss_note(values, plan, tradeoff(), None)
    assert loss_note(values, plan, None, 2.0) == (
        "the outputs changed a lot; ask for less, or give more calibration inputs"
    )

"""Forms of several chains at once, against a time that is a function of the forms."""

import numpy as np
import pytest
from helpers.models import normal

from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.layer import Geometry, Layer
from onnxlowrank.measure.lowerings import Lowerings

RNG = np.random.default_rng(0)
FLAT = Geometry((1, 1), (1, 1, 1, 1), (1, 1))
POINT = Geometry.pointwise(2)


def layer(name):
    weight, shape = np.zeros((16, 16, 3, 3), np.float32), (1, 16, 8, 8)
    return Layer(name, "Conv", weight, None, FLAT, "x", "y", (name,), "y", input_shape=shape, output_shape=shape)


def chain(groups):
    return Chain(
        (
            Step("inputs", normal(RNG, 16, 16 // groups, 1, 1), POINT, groups),
            Step("core", normal(RNG, 16, 16 // groups, 3, 3), FLAT, groups),
            Step("outputs", normal(RNG, 16, 16, 1, 1), POINT),
        )
    )


class Clock:
    """Milliseconds by the forms of the links: those wished for save a tenth each; ``told`` layers have one."""

    def __init__(self, wishes, told=("a", "b")):
        self.wishes, self.told, self.runs = wishes, told, []

    def __call__(self, chains):
        self.runs.append(dict(chains))
        return {name: self.time(name, chains[name]) for name in chains if name in self.told}

    def time(self, name, found):
        forms = ["dense" if step.group == 1 else "split" if step.split else "grouped" for step in found.steps]
        return 10.0 - sum(one == other for one, other in zip(forms, self.wishes[name], strict=True))


@pytest.mark.parametrize("a", [("dense", "grouped", "dense"), ("split", "split", "dense"), ("grouped", "split", "-")])
@pytest.mark.parametrize("b", [("grouped", "grouped", "dense"), ("dense", "split", "dense")])
def test_the_fastest_forms_of_all_are_found_at_once(a, b):
    layers, outlines = {name: layer(name) for name in "ab"}, {"a": chain(2), "b": chain(4)}
    clock, lowerings = Clock({"a": a, "b": b}), Lowerings(None)
    times = lowerings.choose_together(layers, outlines, clock)
    best = {"a": 7.0 + (a[2] == "-"), "b": 7.0}
    assert times == best
    assert len(clock.runs) == 1 + 2 + 1, "as they are, two other forms of the first links, one of the second"
    assert all(run.keys() == {"a", "b"} for run in clock.runs), "every run is of the whole network"
    runs = len(clock.runs)
    assert lowerings.choose_together(layers, outlines, clock) == best
    assert len(clock.runs) == runs + 1, "what was chosen is not tried again"


def test_what_cannot_be_told_is_left_to_the_timer(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "onnxlowrank.measure.lowerings.fastest_lowering",
        lambda timer, layer, chain: asked.append(layer.name) or ("split", "split", "dense"),
    )
    layers, outlines = {name: layer(name) for name in "ab"}, {"a": chain(2), "b": chain(4)}
    clock = Clock(dict.fromkeys("ab", ("dense", "split", "dense")), told=("a",))
    lowerings = Lowerings(object())
    assert lowerings.choose_together(layers, outlines, clock) == {"a": 7.0}
    assert lowerings(layers["a"], outlines["a"]) == ("dense", "split", "dense")
    assert asked == []
    for _ in range(2):
        assert lowerings(layers["b"], outlines["b"]) == ("split", "split", "dense")
    assert asked == ["b"]


def test_without_a_timer_nothing_is_measured():
    one = chain(2)
    assert Lowerings(None)(layer("a"), one) == one.lowerings

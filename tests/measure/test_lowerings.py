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
    """Milliseconds of links by their forms: those wished for take 2, others 3; ``told`` layers have one.

    ``apart`` is what a link of the second layer takes longer behind one that is dense, in the same network.
    """

    def __init__(self, wishes, told=("a", "b"), apart=0.0):
        self.wishes, self.told, self.apart, self.runs = wishes, told, apart, []

    def __call__(self, networks):
        self.runs.append([dict(chains) for chains in networks])
        return [{name: self.links(name, one[name]) for name in one if name in self.told} for one in networks]

    def links(self, name, found):
        forms = ["dense" if step.group == 1 else "split" if step.split else "grouped" for step in found.steps]
        times = [3.0 - (one == other) for one, other in zip(forms, self.wishes[name], strict=True)]
        return times[0], times[1] + self.apart * (forms[0] == "dense" and forms[1] == "grouped"), times[2]


@pytest.mark.parametrize("a", [("dense", "grouped", "dense"), ("split", "split", "dense"), ("grouped", "split", "-")])
@pytest.mark.parametrize("b", [("grouped", "grouped", "dense"), ("dense", "split", "dense")])
def test_the_fastest_forms_of_all_are_found_at_once(a, b):
    layers, outlines = {name: layer(name) for name in "ab"}, {"a": chain(2), "b": chain(4)}
    clock, lowerings = Clock({"a": a, "b": b}), Lowerings(None)
    times = lowerings.choose_together(layers, outlines, clock)
    best = {"a": 6.0 + (a[2] == "-"), "b": 6.0}
    assert times == best
    runs = [3] if a[:2] == ("split", "split") else [3, 1]
    assert list(map(len, clock.runs)) == runs, "all in their first, second and third forms; then what is best, if new"
    assert all(one.keys() == {"a", "b"} for run in clock.runs for one in run), "every run is of the whole network"
    assert lowerings.choose_together(layers, outlines, clock) == best
    assert list(map(len, clock.runs)) == [*runs, 1], "what was chosen is not tried again"


def test_forms_that_do_not_go_together_are_given_up():
    """Each is faster than the first by itself; both together are not."""
    clock, lowerings = Clock({"a": ("dense", "grouped", "dense")}, apart=2.0), Lowerings(None)
    assert lowerings.choose_together({"a": layer("a")}, {"a": chain(2)}, clock) == {"a": 7.0}
    assert list(map(len, clock.runs)) == [3, 1]
    assert lowerings(layer("a"), chain(2)) == ("grouped", "grouped", "dense")


def test_no_run_more_than_there_is_to_tell():
    clock, lowerings = Clock({"a": ("grouped", "grouped", "dense")}), Lowerings(None)
    assert lowerings.choose_together({"a": layer("a")}, {"a": chain(2)}, clock) == {"a": 6.0}
    assert list(map(len, clock.runs)) == [3], "the first forms are the fastest ones"
    one = Chain(chain(2).steps[2:])
    assert lowerings.choose_together({"a": layer("a")}, {"a": one}, lambda given: [{"a": (1.0,)}]) == {"a": 1.0}


def test_what_cannot_be_told_is_left_to_the_timer(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "onnxlowrank.measure.lowerings.fastest_lowering",
        lambda timer, layer, chain: asked.append(layer.name) or ("split", "split", "dense"),
    )
    layers, outlines = {name: layer(name) for name in "ab"}, {"a": chain(2), "b": chain(4)}
    clock = Clock(dict.fromkeys("ab", ("dense", "split", "dense")), told=("a",))
    lowerings = Lowerings(object())
    assert lowerings.choose_together(layers, outlines, clock) == {"a": 6.0}
    assert lowerings(layers["a"], outlines["a"]) == ("dense", "split", "dense")
    assert asked == []
    for _ in range(2):
        assert lowerings(layers["b"], outlines["b"]) == ("split", "split", "dense")
    assert asked == ["b"]


def test_without_a_timer_nothing_is_measured():
    one = chain(2)
    assert Lowerings(None)(layer("a"), one) == one.lowerings

"""The whole pipeline over networks drawn at random: no crash, the same interface, unchanged where all is kept.

``pytest -m slow tests/test_random_networks.py`` draws thousands of them.
"""

import onnx
import pytest
from helpers.pipeline import check
from helpers.random_networks import networks
from helpers.stopwatch import no_stopwatch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxlowrank.calibrate.kernel_metrics import METRICS
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.options import SELECTIONS
from onnxlowrank.passes import load_passes
from onnxlowrank.plan.manual_ranks import ManualRank

GOALS = [{"target": "macs", "speedup": 1.5}] * 4 + [
    {"target": "macs", "speedup": 100},
    {"max_macs": 1},
    {"max_macs": 1e12},
    {"max_size": 500},
    {"max_size": 1e12},
]
PASSES = load_passes()


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    no_stopwatch(monkeypatch, block=2)


def by_hand(draw, model: onnx.ModelProto, conv_only: bool) -> dict[str, ManualRank]:
    """Return ranks for one of the layers, and a pass that takes them, if there is any."""
    offers = [
        (layer, method)
        for layer in find_layers(normalise(model))
        for method in PASSES
        if layer.op in method.ops and method.refusal(layer) is None and (layer.is_conv or not conv_only)
    ]
    if not offers:
        return {}
    layer, method = draw(st.sampled_from(offers))
    ranks = tuple(draw(st.sampled_from(sorted({1, min(2, most), most}))) for most in method.limits(layer))
    return {layer.name: ManualRank(ranks, method=method.name)}


@st.composite
def options(draw, model: onnx.ModelProto) -> dict[str, object]:
    """Return the arguments of ``optimize``."""
    names = [one.name for one in PASSES]
    chosen, goal = draw(st.sampled_from([None] * 8 + [[name] for name in names])), draw(st.sampled_from(GOALS))
    manual = chosen is None and draw(st.integers(0, 2)) == 0
    return {
        **goal,
        "selection": draw(st.sampled_from(sorted(SELECTIONS))),
        "kernel_metric": draw(st.sampled_from([name for name in METRICS if name != "mahalanobis"])),
        "passes": chosen,
        "ranks": by_hand(draw, model, "target" in goal) if manual else {},
        "nonlinear": draw(st.sampled_from([True, True, False])),
        "asymmetric": draw(st.sampled_from([True, True, False])),
    }


def some(examples: int):
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples < 1000,
        suppress_health_check=list(HealthCheck),
    )


@some(25)
@given(networks(), st.data())
def test_some_networks(drawn, data):
    check(drawn.model, drawn.feeds, data.draw(options(drawn.model)), twice=data.draw(st.integers(0, 4)) == 0)


INT8_GOALS = [{"target": "macs", "speedup": 1.5}] * 3 + [{"max_size": 500}, {"max_size": 1e12}, {"speedup": 2}]


@some(5)
@given(networks(), st.sampled_from(INT8_GOALS))
def test_some_networks_as_int8(drawn, goal):
    check(drawn.model, drawn.feeds, {**goal, "precision": "int8", "passes": ["channel", "svd", "fully_connected"]})


@pytest.mark.slow
@some(1000)
@given(networks(most_nodes=10), st.sampled_from(INT8_GOALS), st.data())
def test_many_networks_as_int8(drawn, goal, data):
    bits = data.draw(st.sampled_from(["7bit", "8bit"]))
    check(drawn.model, drawn.feeds, {**goal, "precision": "int8", "int8_weights": bits})


@pytest.mark.slow
@some(2000)
@given(networks(most_nodes=10), st.data())
def test_many_networks(drawn, data):
    check(drawn.model, drawn.feeds, data.draw(options(drawn.model)), twice=data.draw(st.integers(0, 9)) == 0)

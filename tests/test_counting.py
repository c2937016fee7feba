"""Goals and reports against networks that hold more than layers: all of their work counts, all of it is listed."""

import json
import math
import sys
from importlib import resources

import jsonschema
import numpy as np
import onnx
import pytest
from helpers.models import normal, parse
from helpers.stopwatch import CountingTimer
from test_pipeline import clock, kernel, measured_by, residual, smooth, vgg

from onnxlowrank import analyze, compare, optimize, pipeline, profile
from onnxlowrank.plan import network, search
from onnxlowrank.plan.manual_ranks import ManualRank

RNG = np.random.default_rng(31)


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    """Align ranks to 4, as the networks are narrow; the stopwatch counts, and says nothing of single layers."""
    monkeypatch.setattr(sys.modules[__name__], "RNG", np.random.default_rng(31))
    monkeypatch.setattr(pipeline, "channel_block", lambda provider: 4)
    monkeypatch.setattr(pipeline, "ChainTimer", CountingTimer)
    measured_by(monkeypatch, clock)
    monkeypatch.setattr(search, "measure_in_sessions", clock)
    monkeypatch.setattr(network.Network, "layer_times", lambda self, *models: [{} for _ in models])
    whole = property(lambda self: ({}, sum(layer.macs for layer in self.layers) / 1000))
    monkeypatch.setattr(network.Network, "dense_times", whole)


def decoder():
    """Return a network of which a third of the work is a transposed convolution, and some inside an If."""
    return parse(
        """g (float[N, 3, 16, 16] x) => (float[N, 8, 32, 32] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, wa)
            ar = Relu (a)
            b = Conv <pads = [1, 1, 1, 1]> (ar, wb)
            br = Relu (b)
            up = ConvTranspose <strides = [2, 2], output_shape = [32, 32]> (br, wu)
            top = ReduceMax <keepdims = 0> (up)
            large = Greater (top, high)
            y = If (large) <
                then_branch = yes () => (float[N, 8, 32, 32] p) { p = Conv (up, wp) },
                else_branch = no () => (float[N, 8, 32, 32] q) { q = Conv (up, wq) }
            >
        }""",
        wa=kernel(16, 3, 3, 3),
        wb=kernel(16, 16, 3, 3),
        wu=kernel(16, 16, 2, 2),
        wp=kernel(8, 16, 1, 1),
        wq=kernel(8, 16, 1, 1),
        high=np.float32(1e6),
    )


OPEN = "its output_shape is given: its padding depends on its input"
A, B, UP, INSIDE = 256 * 16 * 27, 256 * 16 * 144, 256 * 16 * 64, 1024 * 8 * 16


def test_everything_is_counted_and_listed():
    result = optimize(decoder(), max_macs=1e9, calibration=smooth(16))
    assert result.before.macs == result.after.macs == result.achieved == A + B + UP + INSIDE
    assert result.before.parameters == 16 * 27 + 16 * 144 + 16 * 64 + 2 * 128
    listed = {layer.name: (layer.method, layer.energy, layer.macs[0], layer.kept_because) for layer in result.layers}
    not_needed = "the goal is reached without it"
    assert list(listed)[:3] == ["n_a", "n_b", "n_up"]
    assert listed["n_a"] == ("keep", 1.0, A, not_needed)
    assert listed["n_up"] == ("keep", None, UP, OPEN)
    other, taken = sorted((listed[name] for name in list(listed)[3:]), key=lambda one: one[2])
    assert taken == ("keep", 1.0, INSIDE, not_needed)
    assert other == ("keep", None, 0, "inside If 'n_y', a branch that no calibration input takes")


@pytest.mark.parametrize(("share", "reached"), [(0.8, True), (0.6, True), (0.37, False), (0.3, False)])
def test_most_macs_are_those_of_the_whole_network(share, reached):
    """What is no layer is 36 % of the network."""
    most = share * (A + B + UP + INSIDE)
    result = optimize(decoder(), max_macs=most, calibration=smooth(16))
    assert result.reached == reached
    assert (result.after.macs <= most) == reached
    assert result.after.macs > UP + INSIDE


def test_the_papers_convention_counts_convolutions_that_are_kept():
    result = optimize(decoder(), speedup=1.5, target="macs", calibration=smooth(16))
    (a, b), kept = result.layers[:2], UP + INSIDE
    assert result.reached
    assert result.macs_speedup == pytest.approx((A + B + kept) / (a.macs[1] + b.macs[1] + kept))
    assert 1.5 <= result.macs_speedup <= 1.8
    assert not optimize(decoder(), speedup=4, target="macs", calibration=smooth(16)).reached


def test_studies_count_it_too():
    model, x = decoder(), smooth(16)
    found = analyze(model, calibration=x)
    assert {one.name: one.kept_because for one in found.layers if one.kept_because}["n_up"] == OPEN
    assert [one.name for one in found.layers][:3] == ["n_a", "n_b", "n_up"]
    assert sum(one.macs for one in found.layers) == A + B + UP + INSIDE
    assert [one.macs for one in compare([model, model], inputs=x, seconds=0.1).facts] == [A + B + UP + INSIDE] * 2
    nodes = {one.node: one.macs for one in profile(model, inputs=x, seconds=0.1).nodes if one.macs}
    assert nodes == {"n_a": A, "n_b": B, "n_up": UP, "n_y": INSIDE}


@pytest.mark.parametrize(
    "goal",
    [
        {"max_macs": 1e12},
        {"max_size": 1e9},
        {"latency": 1e9},
        {"max_drop": 99.0, "outputs": {"y": "classes"}},
        {"speedup": 1.1},
    ],
    ids=lambda goal: next(iter(goal)),
)
@pytest.mark.parametrize(
    ("rank", "method"), [((5,), None), (ManualRank((6, 4), method="svd"), "svd"), (ManualRank(energy=0.9), None)]
)
def test_ranks_by_hand_are_obeyed_whatever_the_goal(goal, rank, method):
    result = optimize(vgg(), calibration=smooth(24), ranks={"n_c": rank}, passes=["channel", "svd"], **goal)
    layer = next(layer for layer in result.layers if layer.name == "n_c")
    assert layer.method == method if method else layer.method != "keep"
    if layer.setting and not (isinstance(rank, ManualRank) and rank.energy):
        assert layer.setting == (rank if isinstance(rank, tuple) else rank.setting)
    others = [one for one in result.layers if one.name != "n_c"]
    if "max_drop" not in goal and "speedup" not in goal:
        assert {one.kept_because for one in others} <= {"the goal is reached without it"} | {
            one.kept_because for one in others if "too narrow" in one.kept_because or "no pass" in one.kept_because
        }
        assert {one.method for one in others} == {"keep"}


def reasons(model, x, **how):
    return {layer.name: layer.kept_because for layer in optimize(model, calibration=x, **how).layers}


def noisy(*shape):
    """Return a layer's worth of white noise, which no low rank keeps."""
    return normal(np.random.default_rng(0), *shape)


def test_why_there_are_no_settings():
    """One layer for each reason: no pass was chosen, none is narrower, none is cheaper, none keeps enough."""
    model = parse(
        """g (float[N, 8, 12, 12] x) => (float[N, 16] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, wa)
            b = Conv <pads = [1, 1, 1, 1]> (a, wb)
            c = Conv (b, wc)
            p = GlobalAveragePool (c)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, wy)
        }""",
        wa=noisy(4, 8, 3, 3),
        wb=np.linalg.qr(noisy(16, 4 * 9).T)[0].T.reshape(16, 4, 3, 3),
        wc=noisy(5, 16, 1, 1),
        wy=noisy(16, 5),
    )
    found = reasons(model, normal(RNG, 64, 8, 12, 12), speedup=2, target="macs", passes=["channel"])
    assert found["n_a"] == "too narrow for any rank in multiples of 4"
    assert found["n_c"] == "no setting is cheaper (rank in multiples of 4)"
    assert found["n_y"] == "--target macs counts convolutions"
    found = reasons(model, normal(RNG, 64, 8, 12, 12), max_macs=9e5, passes=["channel"])
    assert found["n_y"] == "no pass for Gemm chosen"


def test_a_layer_whose_settings_all_lose_too_much_says_so():
    model = parse(
        "g (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }",
        w=np.linalg.qr(noisy(144, 16))[0].T.reshape(16, 16, 3, 3).copy(),
    )
    white = normal(RNG, 64, 16, 8, 8)
    found = reasons(model, white, speedup=2, target="macs", passes=["channel"])
    assert found["n_y"].startswith("no cheaper setting keeps 80 % of its response's variance (7")
    found = reasons(model, white, speedup=2, target="macs", passes=["channel"], ranks={"n_y": ManualRank(energy=0.97)})
    assert found["n_y"].startswith("no cheaper setting keeps 97 % of its response's variance (7")


def test_chains_measured_no_faster_are_the_reason(monkeypatch):
    """All chains take ten times as long as their layers."""

    class Slow(CountingTimer):
        def milliseconds(self, layer, chain):
            timing = super().milliseconds(layer, chain)
            return timing if chain is None else type(timing)(100 * timing.ms, 0.0)

    monkeypatch.setattr(pipeline, "ChainTimer", Slow)
    found = reasons(vgg(), smooth(16), speedup=2, passes=["channel"])
    assert found["n_b"] == "none of its chains is faster, as far as they were measured"


def test_a_large_loss_names_layers_and_a_speed_up():
    result = optimize(residual(), speedup=5, target="macs", calibration=smooth(48))
    (note,) = [note for note in result.notes if "changed a lot" in note]
    assert "most of the predicted loss is that of n_" in note
    assert "is predicted to lose about half as much" in note


def test_what_could_not_be_counted_is_said():
    model = parse("g (float[1, 4, 16] x) => (float[1, 4, 16] y) { m = MatMul (x, w) y = Relu (m) }", w=kernel(16, 16))
    node = onnx.helper.make_node(
        "MultiHeadAttention", ["m", "m", "m"], ["y"], "heads", domain="com.microsoft", num_heads=2
    )
    model.graph.node[1].CopyFrom(node)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    feeds = [{"x": normal(RNG, 1, 4, 16)} for _ in range(24)]
    measured = [optimize(model, calibration=feeds, **goal) for goal in ({"max_macs": 1e9}, {"max_size": 1e9})]
    assert [result.reached for result in measured] == [False, True]
    for result in measured:
        assert not result.after.is_counted
        assert any("not all could be counted of heads (fused by onnxruntime" in note for note in result.notes)


def test_the_report_fits_its_schema():
    schema = json.loads(resources.files("onnxlowrank.report").joinpath("schema/optimize.json").read_text())
    result = optimize(decoder(), max_macs=1e9, calibration=smooth(16))
    jsonschema.validate(json.loads(json.dumps(result.to_dict())), schema)
    assert math.isfinite(result.latency_speedup)

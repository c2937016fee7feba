"""Channel pruning through the whole pipeline: what is cut is counted, and no goal is missed for it."""

import json
import math
import os

import numpy as np
import onnx
import pytest
from helpers.forked import run_command
from helpers.models import error, normal, parse, run
from helpers.stopwatch import no_stopwatch
from onnx import ModelProto, numpy_helper

from onnxlowrank import optimize
from onnxlowrank.passes import chosen_passes
from onnxlowrank.plan.manual_ranks import ManualRank

RNG = np.random.default_rng(31)
IMAGES = "float[N, 3, 12, 12] x"


def kernel(*shape: int) -> np.ndarray:
    return normal(RNG, *shape) * np.float32((2 / math.prod(shape[1:])) ** 0.5)


def plain() -> ModelProto:
    """Return a network of layers in a row."""
    return parse(
        f"""g ({IMAGES}) => (float[N, 24, 6, 6] y) {{
            a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba)  ar = Relu (a)
            b = Conv <pads = [1, 1, 1, 1]> (ar, wb)  br = Relu (b)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (br)
            y = Conv <pads = [1, 1, 1, 1]> (p, wc, bc)
        }}""",
        wa=kernel(24, 3, 3, 3),
        ba=0.2 * normal(RNG, 24),
        wb=kernel(24, 24, 3, 3),
        wc=kernel(24, 24, 3, 3),
        bc=normal(RNG, 24),
    )


def branching() -> ModelProto:
    """Return a network whose maps several layers read, are summed and are concatenated."""
    return parse(
        f"""g ({IMAGES}) => (float[N, 16, 12, 12] y) {{
            a = Conv <pads = [1, 1, 1, 1]> (x, wa)  ar = Relu (a)
            b = Conv <pads = [1, 1, 1, 1]> (ar, wb)  br = Relu (b)
            c = Conv (ar, wc)  cr = Relu (c)
            j = Concat <axis = 1> (br, cr)
            d = Conv <pads = [1, 1, 1, 1]> (j, wd)
            s = Add (d, ar)  r = Relu (s)
            e = Conv <pads = [1, 1, 1, 1]> (r, we)
            y = Add (e, r)
        }}""",
        wa=kernel(16, 3, 3, 3),
        wb=kernel(16, 16, 3, 3),
        wc=kernel(12, 16, 1, 1),
        wd=kernel(16, 28, 3, 3),
        we=kernel(16, 16, 3, 3),
    )


def images(count: int) -> np.ndarray:
    y, x = np.mgrid[:12, :12] / 12
    a, b, phase = (RNG.uniform(-8, 8, (count, 3, 1, 1)) for _ in range(3))
    return (np.cos(a * y + b * x + phase) + 0.1 * RNG.standard_normal((count, 3, 12, 12))).astype(np.float32)


def counted(model: ModelProto) -> int:
    """Return the multiply-accumulates of the convolutions of a file for one sample."""
    exposed = ModelProto()
    exposed.CopyFrom(model)
    nodes = [node for node in exposed.graph.node if node.op_type == "Conv"]
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in nodes)
    sizes = {tensor.name: numpy_helper.to_array(tensor).size for tensor in model.graph.initializer}
    values = run(exposed, x=np.zeros((1, 3, 12, 12), np.float32))
    return sum(math.prod(value.shape[2:]) * sizes[node.input[1]] for node, value in zip(nodes, values, strict=True))


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    no_stopwatch(monkeypatch, block=2)


@pytest.mark.parametrize(
    ("network", "passes", "speedup"),
    [
        (plain, ["channel_prune"], 2.0),
        (branching, ["channel_prune"], 1.3),
        (plain, ["channel", "channel_prune"], 1.5),
        (branching, ["channel", "channel_prune"], 2.0),
    ],
)
def test_counts_are_those_of_the_file_and_reach_the_goal(network, passes, speedup):
    model = network()
    result = optimize(model, speedup=speedup, target="macs", passes=passes, calibration=images(24))
    onnx.checker.check_model(result.model, full_check=True)
    assert result.before.macs == counted(model)
    assert result.after.macs == counted(result.model)
    assert result.macs_speedup == pytest.approx(result.before.macs / result.after.macs)
    assert result.reached
    assert speedup <= result.macs_speedup < 1.25 * speedup
    assert sum(layer.macs[1] for layer in result.layers) == result.after.macs


def test_so_many_macs():
    model, most = branching(), counted(branching()) / 1.7
    result = optimize(model, max_macs=most, passes=["channel_prune", "svd"], calibration=images(24))
    assert result.reached
    assert 0.75 * most <= counted(result.model) == result.after.macs <= most


def test_what_the_layers_in_front_save_is_credited():
    """At twice the speed half of the input maps of both layers would have to go, were theirs the only savings."""
    result = optimize(plain(), speedup=2, target="macs", passes=["channel_prune"], calibration=images(24))
    settings = {layer.name: layer.setting for layer in result.layers}
    assert settings["n_b"][0] + settings["n_y"][0] > 24
    assert all(node.op_type != "Gather" for node in result.model.graph.node)
    own = {layer.name: layer.macs for layer in result.layers}
    assert own["n_a"][1] == own["n_a"][0] * settings["n_b"][0] // 24
    assert own["n_b"][1] == own["n_b"][0] * settings["n_b"][0] * settings["n_y"][0] // 24**2


def test_all_maps_by_hand_are_the_network_itself():
    model, x = plain(), images(24)
    ranks = {"n_b": ManualRank((24,), method="channel_prune"), "n_y": ManualRank((12,), method="channel_prune")}
    result = optimize(model, speedup=1.01, target="macs", passes=["all"], ranks=ranks, calibration=x)
    assert [(one.name, one.method, one.setting) for one in result.layers][1:] == [
        ("n_b", "channel_prune", (24,)),
        ("n_y", "channel_prune", (12,)),
    ]
    whole = optimize(
        model,
        speedup=1.01,
        target="macs",
        passes=["all"],
        ranks={**ranks, "n_y": ManualRank((24,), method="channel_prune")},
        only=["n_b", "n_y"],
        calibration=x,
    )
    assert error(run(whole.model, x=x)[0], run(model, x=x)[0]) < 1e-2
    assert 1e-2 < error(run(result.model, x=x)[0], run(model, x=x)[0]) < 1


def test_a_goal_of_time():
    """A layer whose maps are summed with a shortcut samples them; the others take filters away."""
    result = optimize(branching(), speedup=1.5, passes=["channel_prune"], calibration=images(24))
    onnx.checker.check_model(result.model, full_check=True)
    assert result.after.macs == counted(result.model)


@pytest.mark.parametrize("network", [plain, branching])
def test_int8(network):
    model, x = network(), images(24)
    feeds = [{"x": one[None]} for one in x]
    result = optimize(model, speedup=1.3, target="macs", passes=["channel_prune"], calibration=feeds, precision="int8")
    onnx.checker.check_model(result.model, full_check=True)
    assert result.reached
    assert "channel_prune" in [layer.method for layer in result.layers]
    assert result.after.macs < result.before.macs / 1.3
    assert error(run(result.model, x=x)[0], run(model, x=x)[0]) < 0.8


def test_pruned_and_taken_apart():
    model, passes = branching(), ["pruned_asymmetric3d"]
    result = optimize(model, speedup=2, target="macs", passes=passes, calibration=images(24), tune="blocks")
    onnx.checker.check_model(result.model, full_check=True)
    assert result.reached
    assert result.after.macs == counted(result.model)
    assert "pruned_asymmetric3d" in [layer.method for layer in result.layers]


def test_it_is_chosen_by_name_or_with_all():
    assert "channel_prune" not in [one.name for one in chosen_passes(None)]
    assert "channel_prune" in [one.name for one in chosen_passes(["all"])]
    assert [one.name for one in chosen_passes(["channel_prune"])] == ["channel_prune"]


def test_command(tmp_path):
    onnx.save(plain_of_blocks(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=images(24))
    options = ["--target", "macs", "--speedup", "1.5", "--calibration", "data.npz", "--report", "report.json"]
    words = ["optimize", "net.onnx", "out.onnx", "--passes", "channel_prune", *options]
    ended = run_command(words, tmp_path, {**os.environ, "COLUMNS": "160"})
    assert ended.returncode == 0, ended.stderr
    assert "channel_prune" in ended.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert {layer["method"] for layer in report["layers"]} == {"keep", "channel_prune"}
    assert report["macs_speedup"] >= 1.5
    assert report["after"]["macs"] == counted(onnx.load(tmp_path / "out.onnx"))


def plain_of_blocks() -> ModelProto:
    """Return the network of layers in a row, wide enough for channel blocks of 16."""
    model, wide = plain(), {"wa": (48, 3), "wb": (48, 48), "wc": (24, 48)}
    for tensor in model.graph.initializer:
        if tensor.name in wide:
            tensor.CopyFrom(numpy_helper.from_array(kernel(*wide[tensor.name], 3, 3), tensor.name))
        elif tensor.name == "ba":
            tensor.CopyFrom(numpy_helper.from_array(0.2 * normal(RNG, 48), "ba"))
    return model

"""Nodes of onnxruntime's graph are traced back to those they stem from; layers get the times of all their nodes."""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.models import normal, parse
from onnx import ModelProto

from onnxlowrank.errors import InputDataError
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.measure.layer_times import time_per_layer
from onnxlowrank.measure.node_times import (
    NodeTime,
    _node_times,
    profile,
    profile_beside,
    profile_interleaved,
)
from onnxlowrank.measure.sessions import Target, open_session
from onnxlowrank.passes import load_passes

RNG = np.random.default_rng(3)
VGG = Path(__file__).parents[2] / "models" / "vgg_cifar10.onnx"
IMAGE = {"image": normal(RNG, 1, 3, 32, 32)}
FEEDS = {"x": normal(RNG, 1, 32, 8, 8)}


def image_model(body: str, maps: int = 32) -> ModelProto:
    """Return a network on 8 x 8 images; ``{p}`` in its ``body`` pads 3x3 kernels."""
    weights = {
        "w": normal(RNG, maps, maps, 3, 3),
        "d": normal(RNG, maps, 1, 3, 3),
        "h": normal(RNG, maps, maps // 2, 3, 3),
        **{name: normal(RNG, maps) for name in "bstm"},
        "v": np.ones(maps, np.float32),
        "one": np.ones((1, maps, 1, 1), np.float32),
        "six": np.float32(6),
        "zero": np.float32(0),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    body = body.replace("{p}", "pads = [1, 1, 1, 1]")
    return parse(f"g (float[1, {maps}, 8, 8] x) => (float[A, B, C, D] y) {{ {body} }}", **weights)


def flat_model(body: str) -> ModelProto:
    """Return a network on rows of 16 numbers."""
    constants = {"w": normal(RNG, 16, 16), "b": normal(RNG, 16), "half": np.float32(0.5)}
    return parse(body, **constants)


CONV = "a = Conv <{p}> (x, w, b)"
# Network, and what is to be timed: operator and node, without what only lays out tensors.
IMAGES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "batch norm, relu": (
        f"{CONV} n = BatchNormalization (a, s, t, m, v) r = Relu (n) y = Conv <{{p}}> (r, w)",
        [("Conv", "n_a"), ("Conv", "n_y")],
    ),
    "batch norm on its own": (
        f"{CONV} p = MaxPool <kernel_shape = [2, 2]> (a) n = BatchNormalization (p, s, t, m, v) y = Relu (n)",
        [("Conv", "n_a"), ("MaxPool", "n_p"), ("Conv", "n_n")],
    ),
    "batch norm behind an activation": (
        f"{CONV} r = Relu (a) n = BatchNormalization (r, s, t, m, v) y = Conv <{{p}}> (n, w)",
        [("Conv", "n_a"), ("Conv", "n_n"), ("Conv", "n_y")],
    ),
    "residual": (
        f"{CONV} r = Relu (a) c = Conv <{{p}}> (r, w) e = Add (c, r) f = Relu (e) "
        "y = MaxPool <kernel_shape = [2, 2]> (f)",
        [("Conv", "n_a"), ("Conv", "n_c"), ("MaxPool", "n_y")],
    ),
    "two Convs added": (
        f"{CONV} c = Conv <{{p}}> (x, w) e = Add (a, c) f = Relu (e) y = Conv <{{p}}> (f, w)",
        [("Conv", "n_a"), ("Conv", "n_c"), ("Conv", "n_y")],
    ),
    "clip": (f"{CONV} c = Clip (a, zero, six) y = Conv <{{p}}> (c, w)", [("Conv", "n_a"), ("Conv", "n_y")]),
    "leaky relu": (f"{CONV} c = LeakyRelu (a) y = Conv <{{p}}> (c, w)", [("Conv", "n_a"), ("Conv", "n_y")]),
    "hard swish": (f"{CONV} c = HardSwish (a) y = Conv <{{p}}> (c, w)", [("Conv", "n_a"), ("Conv", "n_y")]),
    "sigmoid, tanh": (
        f"{CONV} c = Sigmoid (a) e = Conv <{{p}}> (c, w) y = Tanh (e)",
        [("Conv", "n_a"), ("Conv", "n_e")],
    ),
    "silu": (
        f"{CONV} g = Sigmoid (a) c = Mul (a, g) y = Conv <{{p}}> (c, w)",
        [("Conv", "n_a"), ("QuickGelu", "n_c"), ("Conv", "n_y")],
    ),
    "scale and shift": (f"{CONV} c = Mul (a, one) e = Add (c, one) y = Relu (e)", [("Conv", "n_a")]),
    "identities": (f"{CONV} c = Identity (a) e = Identity (c) y = Relu (e)", [("Conv", "n_a")]),
    "branch": (f"{CONV} r = Relu (a) y = Add (a, r)", [("Conv", "n_a"), ("Relu", "n_r"), ("Add", "n_y")]),
    "depthwise and grouped": (
        "a = Conv <{p}, group = 32> (x, d, b) r = Relu (a) c = Conv <{p}, group = 2> (r, h) y = Relu (c)",
        [("Conv", "n_a"), ("Conv", "n_c")],
    ),
    "transposed": ("a = ConvTranspose (x, w, b) y = Relu (a)", [("ConvTranspose", "n_a"), ("Relu", "n_y")]),
    "pools": (
        f"{CONV} p = AveragePool <kernel_shape = [2, 2]> (a) c = Conv <{{p}}> (p, w) y = GlobalAveragePool (c)",
        [("Conv", "n_a"), ("AveragePool", "n_p"), ("Conv", "n_c"), ("GlobalAveragePool", "n_y")],
    ),
    "resize": (
        f'{CONV} r = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> '
        "(a, , scales) y = Conv <{p}> (r, w)",
        [("Conv", "n_a"), ("Upsample", "n_r"), ("Conv", "n_y")],
    ),
    "transposes": (
        f"{CONV} r = Relu (a) q = Transpose <perm = [0, 2, 3, 1]> (r) e = Exp (q) "
        "y = Transpose <perm = [0, 2, 1, 3]> (e)",
        [("Conv", "n_a"), ("Exp", "n_e"), ("Transpose", "n_y")],
    ),
}


def timed(times: list[NodeTime]) -> list[tuple[str, str | None]]:
    """Return operator and node of all that does not only lay out tensors."""
    return [(part.op, part.node) for part in times if not part.op.startswith("Reorder")]


@pytest.mark.parametrize("name", IMAGES)
def test_nodes_of_fused_convolutions(name: str) -> None:
    body, expected = IMAGES[name]
    times = profile(image_model(body), FEEDS, Target(), seconds=0)
    assert sorted(timed(times)) == sorted(expected)
    assert all(part.node is None for part in times if part.op.startswith("Reorder"))
    assert {len(part.milliseconds) for part in times} == {7}


def test_maps_that_fill_no_block() -> None:
    body = f"{CONV} r = Relu (a) c = Conv <{{p}}> (r, w) e = Add (c, x) y = Relu (e)"
    times = profile(image_model(body, maps=5), {"x": normal(RNG, 1, 5, 8, 8)}, Target(), seconds=0)
    assert timed(times) == [("Conv", "n_a"), ("Conv", "n_c"), ("Add", "n_e"), ("Relu", "n_y")]


ROWS = "g (float[2, 16] x) => (float[2, 16] y)"
SEQUENCES = "g (float[2, 5, 16] x) => (float[2, 5, 16] y)"
COLUMNS = "g (float[2, 16, 5] x) => (float[2, 5, 16] y)"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"{ROWS} {{ a = MatMul (x, w) c = Add (a, b) y = Relu (c) }}", [("FusedGemm", "n_a")]),
        (
            f"{ROWS} {{ a = Gemm (x, w, b) r = Relu (a) c = Gemm (r, w, b) y = Abs (c) }}",
            [("FusedGemm", "n_a"), ("Gemm", "n_c"), ("Abs", "n_y")],
        ),
        (
            f"{SEQUENCES} {{ a = MatMul (x, w) c = Add (a, b) y = Relu (c) }}",
            [("Reshape", None), ("Gemm", "n_a"), ("Reshape", None), ("Relu", "n_y")],
        ),
        (
            f"{COLUMNS} {{ q = Transpose <perm = [0, 2, 1]> (x) a = MatMul (q, w) y = Mul (a, half) }}",
            [("FusedMatMul", "n_a")],
        ),
    ],
)
def test_fully_connected(body: str, expected: list[tuple[str, str | None]]) -> None:
    model = flat_model(body)
    shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    assert timed(profile(model, {"x": normal(RNG, *shape)}, Target(), seconds=0)) == expected


@pytest.mark.parametrize("axes", [1, 3])
def test_one_and_three_axes(axes: int) -> None:
    sizes, found = ", ".join("9" * axes), ", ".join("ABC"[:axes])
    model = parse(
        f"g (float[1, 16, {sizes}] x) => (float[1, 16, {found}] y) {{ a = Conv (x, w) r = Relu (a) y = Conv (r, w) }}",
        w=normal(RNG, 16, 16, *(3,) * axes),
    )
    times = profile(model, {"x": normal(RNG, 1, 16, *(9,) * axes)}, Target(), seconds=0)
    assert timed(times) == [("FusedConv", "n_a"), ("Conv", "n_y")]


def test_nodes_without_names_go_by_those_of_normalised_models() -> None:
    model = image_model(f"e = Abs (x) {CONV.replace('x', 'e')} r = Relu (a) y = Exp (r)")
    for node in model.graph.node:
        node.name = ""
    before = model.SerializeToString()
    times = profile(model, FEEDS, Target(), seconds=0)
    assert timed(times) == [("Abs", "Abs/e"), ("Conv", "Conv/a"), ("Exp", "Exp/y")]
    assert {node for _, node in timed(times)} <= {node.name for node in normalise(model).graph.node}
    assert model.SerializeToString() == before


def test_nodes_of_one_name_are_told_apart_as_in_normalised_models() -> None:
    model = image_model(f"e = Abs (x) {CONV.replace('x', 'e')} y = Exp (a)")
    for node in model.graph.node:
        node.name = "same"
    times = profile(model, FEEDS, Target(), seconds=0)
    assert [node for _, node in timed(times)] == [node.name for node in normalise(model).graph.node]
    assert len(set(timed(times))) == 3


def test_strange_names() -> None:
    model = image_model(f"{CONV} r = Relu (a) y = Exp (r)")
    model.graph.node[0].name, model.graph.node[2].name = "a_nchwc", 'ä "b"\\c_kernel_time'
    assert timed(profile(model, FEEDS, Target(), seconds=0)) == [("Conv", "a_nchwc"), ("Exp", model.graph.node[2].name)]


def test_what_runs_in_a_subgraph_counts_once() -> None:
    model = parse(
        """g (float[1, 4] x, bool c) => (float[1, 4] y) {
            a = Abs (x)
            e = If (c) <
                then_branch = t () => (float[1, 4] u) { k = Exp (a) u = MatMul (k, w) },
                else_branch = f () => (float[1, 4] z) { z = Neg (a) }
            >
            y = Neg (e)
        }""",
        w=normal(RNG, 4, 4),
    )
    times = profile(model, {"x": normal(RNG, 1, 4), "c": np.array(True)}, Target(), seconds=0)
    assert timed(times) == [("Abs", "n_a"), ("If", "n_e"), ("Neg", "n_y")]


@pytest.fixture(scope="module")
def vgg() -> ModelProto:
    return onnx.load(VGG)


@pytest.mark.parametrize("threads", [1, 2])
def test_every_layer_of_a_network_is_found_once(
    vgg: ModelProto, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, folder = tmp_path / "temporary", tmp_path / "folder"
    temporary.mkdir()
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(folder)
    times = profile(vgg, IMAGE, Target(threads=threads), seconds=0)
    assert list(temporary.iterdir()) == list(folder.iterdir()) == []

    layers = [node.name for node in vgg.graph.node if node.op_type in ("Conv", "Gemm")]
    assert [part.node for part in times if part.node in layers] == layers
    assert all(part.median > 0 for part in times if part.op == "Conv")
    per_layer, rest = time_per_layer(times, find_layers(normalise(vgg)))
    assert list(per_layer) == layers
    assert min(per_layer.values()) > 0
    assert sum(per_layer.values()) + rest == pytest.approx(sum(part.median for part in times))
    assert "pool1" in {part.node for part in times}


def test_rewritten_layers(vgg: ModelProto) -> None:
    model = normalise(vgg)
    layers = find_layers(model)
    spatial, bicluster = load_passes(["spatial", "bicluster_svd"])
    asked = {"conv2_2": (spatial, (16,)), "conv3_2": (bicluster, (2, 2, 8, 8))}
    chains = {
        layer.name: asked[layer.name][0].outline(layer, asked[layer.name][1]) for layer in layers if layer.name in asked
    }
    rewritten = rewrite(model, layers, chains)
    times = profile(rewritten, IMAGE, Target(), seconds=0)
    links = [node.name for node in rewritten.graph.node if "/lowrank/" in node.name]
    assert {name.split("/")[0] for name in links} == set(asked)
    assert [part.node for part in times if part.node in links] == links
    per_layer, rest = time_per_layer(times, layers)
    assert list(per_layer) == [layer.name for layer in layers]
    assert min(per_layer.values()) > 0
    for name in asked:
        assert per_layer[name] >= sum(part.median for part in times if (part.node or "").startswith(f"{name}/"))
    assert sum(per_layer.values()) + rest == pytest.approx(sum(part.median for part in times))


@pytest.mark.parametrize(("seconds", "runs"), [(0, 7), (60, 100)])
def test_number_of_runs(seconds: float, runs: int) -> None:
    model = parse("g (float[4] x) => (float[4] y) { y = Exp (x) }")
    (part,) = profile(model, {"x": normal(RNG, 4)}, Target(), seconds)
    assert len(part.milliseconds) == runs


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        (0.054, [0.017, 0.037]),  # 60 microseconds in all: three a node too many
        (0.010, [0.010, 0.030]),  # more than the profiler takes: other work slowed the nodes down
        (0.0, [0.010, 0.030]),
        (0.070, [0.020, 0.040]),
    ],
)
def test_what_the_profiler_takes_is_taken_off(tmp_path: Path, whole: float, expected: list[float]) -> None:
    model = parse("g (float[4] x) => (float[4] y) { a = Relu (x) y = Exp (a) }")
    nodes = [("Relu/a", "Relu", 20), ("Exp/y", "Exp", 40)]
    events = [
        {"cat": "Node", "name": f"{name}_kernel_time", "ts": 100 * index, "dur": dur, "args": {"op_name": op}}
        for index, (name, op, dur) in enumerate(nodes)
    ]
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps([*events, {"name": "model_run"}] * 10))
    found = _node_times(model, trace, [whole] * 7)  # the first runs warm up
    assert [one.median for one in found] == pytest.approx(expected)
    assert [len(one.milliseconds) for one in found] == [7, 7]


def test_short_networks_beside_another_run_several_times_at_their_turn() -> None:
    """So their weights are in the caches, as when a network is timed alone."""
    model, feeds = parse("g (float[4] x) => (float[4] y) { y = Exp (x) }"), {"x": normal(RNG, 4)}
    ((part,),), beside = profile_beside([model], open_session(model, Target()), feeds, Target(), 0)
    assert len(part.milliseconds) == 3 * 8
    assert beside > 0


def test_networks_in_turns_keep_apart() -> None:
    bodies = "y = Exp (x)", "e = Exp (x) y = Neg (e)"
    models = [parse(f"g (float[4] x) => (float[4] y) {{ {body} }}") for body in bodies]
    one, two = profile_interleaved(models, {"x": normal(RNG, 4)}, Target(), seconds=0)
    assert timed(one) == [("Exp", "n_y")]
    assert timed(two) == [("Exp", "n_e"), ("Neg", "n_y")]
    assert {len(part.milliseconds) for part in (*one, *two)} == {7}


def test_inputs_that_do_not_fit_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InputDataError, match="give inputs that it takes"):
        profile(image_model("y = Exp (x)"), {"x": normal(RNG, 1, 3, 8, 8)}, Target())
    assert list(tmp_path.iterdir()) == []

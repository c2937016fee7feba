"""compare, profile, analyze, sweep, schema and --html, run as processes; what they print as JSON fits the schema."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from helpers.forked import run_command
from helpers.models import normal, parse
from helpers.processes import without_stages

COMMANDS = ("optimize", "compare", "profile", "analyze", "sweep")


def network(scale: float = 1.0) -> onnx.ModelProto:
    """Return Conv-ReLU-Conv-ReLU-pool-Gemm with weights of low rank."""
    rng = np.random.default_rng(0)
    low = [normal(rng, 32, 4) @ normal(rng, 4, fan_in) / np.sqrt(4 * fan_in) for fan_in in (27, 288)]
    return parse(
        """g (float[N, 3, 8, 8] x) => (float[N, 10] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1)
            b = Relu (a)
            c = Conv <pads = [1, 1, 1, 1]> (b, w2)
            d = Relu (c)
            p = GlobalAveragePool (d)
            q = Flatten (p)
            y = Gemm <transB = 1> (q, wf)
        }""",
        w1=low[0].reshape(32, 3, 3, 3).astype("f"),
        w2=low[1].reshape(32, 32, 3, 3).astype("f"),
        wf=scale * normal(rng, 10, 32),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    onnx.save(network(), folder / "a.onnx")
    onnx.save(network(1.1), folder / "b.onnx")
    rng = np.random.default_rng(1)
    pixels, labels = rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8), rng.integers(0, 10, 24)
    np.savez(folder / "images.npz", images=pixels, labels=labels)
    (folder / "judge.py").write_text(
        "import numpy as np\n"
        "def norm(outputs, labels):\n"
        "    assert labels is None or len(labels) == len(outputs)\n"
        "    return sum(float(np.abs(one['y']).sum()) for one in outputs)\n"
        "def broken(outputs, labels):\n"
        "    raise ValueError('no')\n"
        "number = 3\n"
    )
    return folder


def call(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ONNXLOWRANK_CACHE": str(place / "cache"), "COLUMNS": "200"}
    return run_command(words, place, environment)


def printed(place: Path, *words: str) -> dict:
    """Return the JSON that a command prints, checked against the schema."""
    ended = call(place, *words, "--json")
    assert ended.returncode == 0, ended.stderr
    values = json.loads(ended.stdout)
    jsonschema.validate(values, json.loads(call(place, "schema", words[0]).stdout))
    return values


SHORT = ("--seconds", "0.5")


def test_compare(place: Path) -> None:
    conditions = ("--threads", "1,2", "--batch", "1,3", *SHORT)
    found = printed(
        place, "compare", "a.onnx", "b.onnx", "--inputs", "images.npz", "--metric", "judge:norm", *conditions
    )
    runs = found["runs"]
    assert [(run["model"], run["threads"], run["batch"]) for run in runs] == [
        (model, threads, batch) for threads in (1, 2) for batch in (1, 3) for model in ("a.onnx", "b.onnx")
    ]
    for run in runs:
        latency, ratio = run["latency_ms"], run["speedup"]
        assert 0 < latency["p10"] <= latency["p50"] <= latency["p90"] <= latency["p99"]
        assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
        assert run["throughput"] == pytest.approx(1e3 * run["batch"] / latency["p50"])
        assert run["load_ms"] > 0
    assert found["metric"]["values"][1] == pytest.approx(1.1 * found["metric"]["values"][0], rel=1e-4)
    (difference,) = found["differences"]
    assert difference["outputs"][0]["relative_error"] == pytest.approx(0.1, rel=1e-3)
    assert difference["top1_agreement"] == 1.0
    assert difference["accuracy"][0] == difference["accuracy"][1]
    assert [one["macs"] for one in found["models"]] == [64 * 32 * (27 + 288) + 320] * 2


def test_compare_by_a_metric_that_is_built_in(place: Path) -> None:
    rng = np.random.default_rng(3)
    other = network()
    for weight in other.graph.initializer:
        values = onnx.numpy_helper.to_array(weight) if weight.name == "wf" else None
        if values is not None:
            weight.CopyFrom(onnx.numpy_helper.from_array(values + 0.5 * normal(rng, *values.shape), "wf"))
    onnx.save(other, place / "noisy.onnx")
    ended = call(place, "compare", "a.onnx", "noisy.onnx", *SHORT, "--metric", "cosine")
    assert "cosine (%)" in ended.stdout
    assert re.search(r"a.onnx +100\s", ended.stdout)
    (other,) = re.findall(r"noisy.onnx +(\d+\.\d+)\s*\n\n", ended.stdout)
    assert 50 < float(other) < 100


def test_compare_in_every_form(place: Path) -> None:
    ended = call(place, "compare", "a.onnx", "b.onnx", *SHORT, "--html", "c.html")
    assert (ended.returncode, without_stages(ended.stderr)) == (0, "")
    for word in ("a.onnx", "b.onnx", "median (ms)", "95 % interval", "peak memory", "relative error"):
        assert word in ended.stdout
    page = (place / "c.html").read_text()
    assert "<svg" in page
    assert "onnxlowrank compare a.onnx b.onnx" in page
    shown = call(place, "compare", "a.onnx", "b.onnx", *SHORT, "--markdown")
    assert shown.stdout.startswith("# a.onnx, b.onnx: compared\n")
    assert "| a.onnx |" in shown.stdout


def test_profile(place: Path) -> None:
    found = printed(place, "profile", "a.onnx", *SHORT)
    assert sum(node["share"] for node in found["nodes"]) == pytest.approx(1)
    macs = {node["node"]: node["macs"] for node in found["nodes"] if node["macs"]}
    assert sorted(macs.values()) == [320, 64 * 32 * 27, 64 * 32 * 288]
    assert {op["op"] for op in found["ops"]} >= {"Conv", "Gemm"}
    ended = call(place, "profile", "a.onnx", *SHORT, "--html", "p.html")
    assert (ended.returncode, without_stages(ended.stderr)) == (0, "")
    assert "GFLOP/s" in ended.stdout
    assert "<svg" in (place / "p.html").read_text()


def test_networks_without_layers_are_profiled_and_compared(place: Path) -> None:
    onnx.save(parse("g (float[N, 5] x) => (float[N, 5] y) { y = Relu (x) }"), place / "relu.onnx")
    assert [node["op"] for node in printed(place, "profile", "relu.onnx", *SHORT)["nodes"]] == ["Relu"]
    found = printed(place, "compare", "relu.onnx", "relu.onnx", *SHORT)
    assert [one["name"] for one in found["models"]] == ["relu.onnx (1)", "relu.onnx (2)"]
    assert found["differences"][0]["largest_difference"] == 0


def test_quantised_networks_are_compared_and_profiled(place: Path) -> None:
    scaled = parse(
        """g (float[N, 5] x) => (float[N, 5] y) {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            y = MatMul (d, w)
        }""",
        s=np.float32(0.05),
        z=np.int8(0),
        w=np.eye(5, dtype="f"),
    )
    onnx.save(scaled, place / "int8.onnx")
    onnx.save(
        parse("g (float[N, 5] x) => (float[N, 5] y) { y = MatMul (x, w) }", w=np.eye(5, dtype="f")), place / "f.onnx"
    )
    found = printed(place, "compare", "f.onnx", "int8.onnx", *SHORT)
    assert 0 < found["differences"][0]["relative_error"] < 0.1
    assert printed(place, "profile", "int8.onnx", *SHORT)["nodes"]


def test_analyze(place: Path) -> None:
    found = printed(place, "analyze", "a.onnx", "--calibration", "images.npz")
    first, second, last = found["layers"]
    assert len(second["spectrum"]) == 33
    assert second["spectrum"][4] > 0.999  # its weights have rank 4
    assert second["spectrum"][1] < 0.999
    assert 0 < first["zeros"] < 1
    assert last["zeros"] == 0
    assert "fully_connected" not in first["suits"]
    for layer in (first, second):
        costs = [point["macs"] for point in layer["offers"]]
        assert costs == sorted(costs)
        energies = [point["energy"] for point in layer["offers"]]
        assert energies == sorted(energies)
    assert found["command"].startswith("onnxlowrank optimize a.onnx fast.onnx --speedup")
    ended = call(place, "analyze", "a.onnx", "--calibration", "images.npz", "--html", "n.html")
    assert (ended.returncode, without_stages(ended.stderr)) == (0, "")
    assert "Recommended: onnxlowrank optimize" in ended.stdout
    assert (place / "n.html").read_text().count("<svg") == 2


def test_optimize_writes_html(place: Path) -> None:
    words = ("optimize", "a.onnx", "o.onnx", "--target", "macs", "--calibration", "images.npz")
    ended = call(place, *words, "--html", "o.html", "--report", "o.json")
    assert (ended.returncode, without_stages(ended.stderr)) == (0, "")
    page = (place / "o.html").read_text()
    for word in ("Filters of the first layer", "Time by layer", "kept", "Latency", "onnxlowrank optimize a.onnx"):
        assert word in page
    assert len(page) < 2e6
    schema = json.loads(call(place, "schema", "optimize").stdout)
    jsonschema.validate(json.loads((place / "o.json").read_text()), schema)


ANY_SWEEP = ("sweep", "a.onnx", "--calibration", "images.npz", "--passes", "channel,spatial")
SWEEP = (*ANY_SWEEP, "--speedup", "1.1,1.3")
CLAIMED = (*ANY_SWEEP, "--speedup", "1.1", "--folder", "claimed")


def test_sweep_goes_on_where_it_stopped(place: Path) -> None:
    found = printed(place, *SWEEP, "--folder", "points")
    assert [point["goal"]["value"] for point in found["points"]] == [1.1, 1.3]
    folder = place / "points"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(before) == {"sweep.json", "1.1x.json", "1.1x.onnx", "1.3x.json", "1.3x.onnx"}
    (folder / "1.3x.json").write_text("{ half a rep")  # as no atomic write leaves it
    again = printed(place, *SWEEP, "--folder", "points")
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"1.3x.json", "1.3x.onnx"}
    assert again["points"][0] == found["points"][0]
    ended = call(place, *SWEEP, "--folder", "points", "--html", "s.html")
    assert (ended.returncode, without_stages(ended.stderr)) == (0, "")
    assert "measured speed-up" in (place / "s.html").read_text()


@pytest.mark.slow
def test_a_killed_sweep_leaves_whole_points_only(place: Path) -> None:
    environment = {**os.environ, "ONNXLOWRANK_CACHE": str(place / "cache")}
    command = [sys.executable, "-m", "onnxlowrank", *SWEEP, "--folder", "killed"]
    process = subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.DEVNULL)
    first = place / "killed" / "1.1x.json"
    deadline = time.monotonic() + 120
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = first.read_bytes()
    assert json.loads(kept)["goal"]["value"] == 1.1
    onnx.checker.check_model(onnx.load(place / "killed" / "1.1x.onnx"))
    found = printed(place, *SWEEP, "--folder", "killed")
    assert len(found["points"]) == 2
    assert first.read_bytes() == kept


def test_two_processes_share_a_sweep(place: Path) -> None:
    found = printed(place, *SWEEP, "--folder", "shared", "--jobs", "2")
    assert [point["goal"]["value"] for point in found["points"]] == [1.1, 1.3]


REFUSED = {
    "one network": (("compare", "a.onnx"), "two or more"),
    "other inputs": (("compare", "a.onnx", "wide.onnx"), "same inputs"),
    "no such metric": (("compare", "a.onnx", "b.onnx", "--metric", "judge:none"), "judge"),
    "metric of no function": (("compare", "a.onnx", "b.onnx", *SHORT, "--metric", "judge:number"), "not a function"),
    "metric fails": (("compare", "a.onnx", "b.onnx", *SHORT, "--metric", "judge:broken"), "judge:broken failed"),
    "metric that does not fit": (
        ("compare", "a.onnx", "b.onnx", *SHORT, "--metric", "iou"),
        "--metric iou reads masks",
    ),
    "metric of no module": (("compare", "a.onnx", "b.onnx", "--metric", "x"), "module:function"),
    "threads": (("compare", "a.onnx", "b.onnx", "--threads", "one"), "--threads one"),
    "batch": (("compare", "a.onnx", "b.onnx", "--batch", "0"), "--batch 0"),
    "seconds": (("compare", "a.onnx", "b.onnx", "--seconds", "0"), "--seconds 0"),
    "two forms": (("compare", "a.onnx", "b.onnx", "--json", "--markdown"), "one of them"),
    "html over a model": (("compare", "a.onnx", "b.onnx", "--html", "b.onnx"), "b.onnx"),
    "no such input": (("profile", "a.onnx", "--shape", "z=1x3x8x8"), "no such input"),
    "contradicting shape": (("profile", "a.onnx", "--shape", "x=1x4x8x8"), "contradicts"),
    "shape": (("profile", "a.onnx", "--shape", "x"), "--shape x"),
    "shape beside inputs": (("profile", "a.onnx", "--shape", "x=1x3x8x8", "--inputs", "images.npz"), "--shape"),
    "missing model": (("profile", "missing.onnx"), "does not exist"),
    "nothing to look at": (("analyze", "relu.onnx"), "relu.onnx"),
    "other options": ((*CLAIMED, "--seed", "1"), "another sweep (seed differ)"),
    "no speed-ups": (("sweep", "a.onnx", "--speedup", "0.5"), "--speedup 0.5"),
    "jobs": (("sweep", "a.onnx", "--jobs", "0"), "--jobs 0"),
    "schema": (("schema", "everything"), "choose from analyze"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_sentence(place: Path, name: str) -> None:
    onnx.save(parse("g (float[N, 5, 8, 8] x) => (float[N, 5, 8, 8] y) { y = Relu (x) }"), place / "wide.onnx")
    onnx.save(parse("g (float[N, 5] x) => (float[N, 5] y) { y = Relu (x) }"), place / "relu.onnx")
    (place / "claimed").mkdir(exist_ok=True)
    if name == "other options" and not (place / "claimed" / "sweep.json").exists():
        assert call(place, *CLAIMED).returncode == 0
    before = (place / "b.onnx").read_bytes()
    words, says = REFUSED[name]
    ended = call(place, *words)
    assert ended.returncode == 2, ended.stdout
    assert says in ended.stderr
    errors = without_stages(ended.stderr)
    assert errors.startswith("error[E")
    assert errors.endswith(".\n")
    assert errors.count("\n") == 1
    assert (place / "b.onnx").read_bytes() == before


@pytest.mark.parametrize("name", [*COMMANDS, "cache", "schema"])
def test_help_has_an_example(place: Path, name: str) -> None:
    ended = call(place, name, "--help")
    assert ended.returncode == 0
    assert "Example" in ended.stdout
    assert f"onnxlowrank {name}" in ended.stdout

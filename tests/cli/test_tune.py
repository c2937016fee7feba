"""``--tune blocks``, run by processes: what it changes, and what it refuses."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.forked import run_command
from helpers.models import normal, parse, run

RNG = np.random.default_rng(6)
LAYERS = "abcd"


def low_rank() -> np.ndarray:
    """Return a kernel near one of twelve filters."""
    kernel = normal(RNG, 32, 12) @ normal(RNG, 12, 288) / np.float32(40) + normal(RNG, 32, 288) / 40
    return kernel.reshape(32, 32, 3, 3)


def images(count: int) -> np.ndarray:
    """Return smooth images whose maps are mixtures of six."""
    coarse = np.kron(normal(RNG, count, 6, 4, 4), np.ones((2, 2)))
    mixed = np.einsum("cs,nshw->nchw", np.random.default_rng(7).standard_normal((32, 6)), coarse)
    return (mixed / 2 + 0.1 * RNG.standard_normal(mixed.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a network of four layers, inputs to calibrate with and others."""
    place = tmp_path_factory.mktemp("tune")
    body, source = "", "x"
    for name in LAYERS:
        body += f"{name} = Conv <pads = [1, 1, 1, 1]> ({source}, w{name}, b{name})  r{name} = Relu ({name})  "
        source = f"r{name}"
    weights = {f"w{name}": low_rank() for name in LAYERS}
    biases = {f"b{name}": normal(RNG, 32) * np.float32(0.3) for name in LAYERS}
    model = parse(f"g (float[N, 32, 8, 8] x) => (float[N, 32, 8, 8] rd) {{ {body} }}", **weights, **biases)
    onnx.save(model, place / "net.onnx")
    for name, count in (("data", 48), ("new", 16)):
        np.savez(place / f"{name}.npz", x=images(count))
    return place


def call(folder: Path, output: str, *options: str) -> subprocess.CompletedProcess[str]:
    given = [
        "--target",
        "macs",
        "--speedup",
        "1.1",
        "--rank",
        "n_a=channel:8",
        "--calibration",
        "data.npz",
        "--evaluate",
        "new.npz",
    ]
    more = ["--passes", "channel,spatial", "--report", f"{output}.json", *options]
    words = ["optimize", "net.onnx", output, *given, *more]
    return run_command(words, folder, {**os.environ, "COLUMNS": "160"})


def test_outputs_come_nearer_and_the_plan_stays(folder: Path) -> None:
    plain, tuned = call(folder, "plain.onnx"), call(folder, "tuned.onnx", "--tune", "blocks")
    assert (plain.returncode, tuned.returncode) == (0, 0), tuned.stderr
    before, after = (json.loads((folder / f"{name}.onnx.json").read_text()) for name in ("plain", "tuned"))
    assert [layer["method"] for layer in after["layers"]] == [layer["method"] for layer in before["layers"]]
    assert "keep" in [layer["method"] for layer in after["layers"]]
    assert after["after"]["macs"] == before["after"]["macs"]
    assert after["agreement"]["relative_error"] < 0.97 * before["agreement"]["relative_error"]
    x = np.load(folder / "new.npz")["x"]
    wanted = run(onnx.load(folder / "net.onnx"), x=x)[0]
    found = [run(onnx.load(folder / f"{name}.onnx"), x=x)[0] for name in ("plain", "tuned")]
    lost = [float(((one - wanted) ** 2).sum()) for one in found]
    assert lost[1] < 0.95 * lost[0]


def test_an_unknown_kind_is_refused(folder: Path) -> None:
    ended = call(folder, "no.onnx", "--tune", "everything")
    assert ended.returncode == 2
    assert "--tune everything is unknown; blocks is what there is" in " ".join(ended.stderr.split())
    assert not (folder / "no.onnx").exists()

"""A network that uses its weights twice, optimised by a process."""

import json
import os

import numpy as np
import onnx
from helpers.forked import run_command
from helpers.models import normal, parse, run

RNG = np.random.default_rng(2)
SIDES = "".join(
    f"{s}1 = Conv <pads = [1, 1, 1, 1]> ({s}, u) {s}2 = Relu ({s}1) {s}3 = Conv <pads = [1, 1, 1, 1]> ({s}2, v) "
    for s in "ab"
)
SHAPE = "float[N, 24, 6, 6]"


def test_twins(tmp_path):
    model = parse(
        f"g ({SHAPE} a, {SHAPE} b) => (float[N, 32, 6, 6] y) {{ {SIDES} y = Sub (a3, b3) }}",
        u=normal(RNG, 32, 24, 3, 3) / 15,
        v=normal(RNG, 32, 32, 3, 3) / 17,
    )
    onnx.save(model, tmp_path / "twins.onnx")
    data = {name: normal(RNG, 24, 24, 6, 6) for name in "ab"}
    np.savez(tmp_path / "twins.npz", **data)
    options = ["--target", "macs", "--speedup", "2", "--calibration", "twins.npz", "--report", "report.json"]
    words = ["optimize", "twins.onnx", "out.onnx", *options]
    ended = run_command(words, tmp_path, {**os.environ, "COLUMNS": "160"})
    assert ended.returncode == 0, ended.stderr
    assert "n_a3 (2 places)" in ended.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(layer["name"], layer["places"]) for layer in report["layers"]] == [("n_a1", 2), ("n_a3", 2)]
    assert report["before"]["parameters"] == 32 * (24 + 32) * 9
    assert report["before"]["macs"] == 2 * 36 * report["before"]["parameters"]
    assert 2 * report["after"]["macs"] <= report["before"]["macs"]
    out = onnx.load(tmp_path / "out.onnx")
    assert out.ByteSize() < 0.7 * model.ByteSize()
    assert not run(out, a=data["a"], b=data["a"])[0].any()

"""A network of 3-D convolutions, optimised, and for long analysed, by processes."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from helpers.models import error, run
from helpers.volumes import film_network, films

PASSES = ["--passes", "spatial"]


@pytest.mark.parametrize("goal", [["--target", "macs"], pytest.param([], marks=pytest.mark.slow)])
def test_films(goal, tmp_path):
    model = film_network()
    onnx.save(model, tmp_path / "film.onnx")
    np.savez(tmp_path / "film.npz", x=films(12))
    environment = {**os.environ, "COLUMNS": "200", "ONNXLOWRANK_CACHE": str(tmp_path / "cache")}

    def call(*words):
        command = [sys.executable, "-m", "onnxlowrank", *words, "--calibration", "film.npz", *PASSES]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode in (0, 3), ended.stderr
        return ended

    if not goal:
        found = json.loads(call("analyze", "film.onnx", "--json").stdout)
        suits = {layer["name"]: layer["suits"] for layer in found["layers"]}
        assert suits["n_b"] == ["spatial"]
        assert [layer["kept_because"] for layer in found["layers"]] == [""] * 5

    call("optimize", "film.onnx", "out.onnx", "--speedup", "1.3", "--report", "report.json", *goal)
    report = json.loads((tmp_path / "report.json").read_text())
    methods = {layer["method"] for layer in report["layers"]}
    assert methods == {"keep", "spatial"} if goal else methods <= {"keep", "spatial"}
    x = films(4, seed=3)
    assert error(run(onnx.load(tmp_path / "out.onnx"), x=x)[0], run(model, x=x)[0]) < 0.2

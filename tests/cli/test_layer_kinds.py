"""Grouped and depthwise convolutions, and an If that captures a weight, optimised by a process."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
from helpers.models import error, normal, parse, run
from onnx import numpy_helper

RNG = np.random.default_rng(5)
SHAPE = "float[N, 32, 12, 12]"


def network():
    """Return a grouped 3x3, a depthwise 5x5 and a depthwise 3x3 in a row, and a 1x1 whose weight a branch reads."""
    grouped = [normal(RNG, 16, 4) @ normal(RNG, 4, 144) / 24 for _ in range(2)]
    separable = normal(RNG, 32, 5, 1) * normal(RNG, 32, 1, 5) + 0.1 * normal(RNG, 32, 5, 5)
    return parse(
        f"""g ({SHAPE} x) => ({SHAPE} y) {{
            a = Conv <pads = [1, 1, 1, 1], group = 2> (x, wa, ba)  ar = Relu (a)
            b = Conv <pads = [2, 2, 2, 2], group = 32> (ar, wb)  br = Relu (b)
            c = Conv <pads = [1, 1, 1, 1], group = 32> (br, wc)  cr = Relu (c)
            d = Conv (cr, wd)
            top = ReduceMax <keepdims = 0> (x)
            large = Greater (top, high)
            y = If (large) <
                then_branch = yes () => ({SHAPE} p) {{ p = Conv (d, wd) }},
                else_branch = no () => ({SHAPE} q) {{ q = Add (d, b) }}
            >
        }}""",
        wa=np.concatenate(grouped).reshape(32, 16, 3, 3).astype(np.float32),
        ba=0.1 * normal(RNG, 32),
        wb=separable[:, None] / 5,
        wc=normal(RNG, 32, 1, 3, 3) / 3,
        wd=normal(RNG, 32, 32, 1, 1) / 6,
        high=np.float32(3),
    )


def test_what_becomes_of_them(tmp_path):
    model, x = network(), np.kron(normal(RNG, 24, 32, 3, 3), np.ones((4, 4), np.float32))
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=x)
    options = ["--target", "macs", "--speedup", "1.2", "--calibration", "data.npz", "--report", "report.json"]
    options += ["--passes", "svd,depthwise", "--rank", "n_a=svd:12x4", "--rank", "n_b=depthwise:1"]
    command = [sys.executable, "-m", "onnxlowrank", "optimize", "net.onnx", "out.onnx", *options]
    environment = {**os.environ, "COLUMNS": "200"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    layers = {layer["name"]: layer for layer in json.loads((tmp_path / "report.json").read_text())["layers"]}
    assert [layers[name]["method"] for name in ("n_a", "n_b", "n_c", "n_d")] == ["svd", "depthwise", "keep", "keep"]
    assert layers["n_a"]["macs"] == [144 * 32 * 144, 144 * 2 * (16 * 12 + 12 * 4 * 9 + 4 * 16)]
    assert layers["n_b"]["macs"] == [144 * 32 * 25, 144 * 32 * 10]
    assert layers["n_c"]["kept_because"] == "depthwise 3x3 is faster whole; group=32"
    assert layers["n_d"]["kept_because"] == "its weight is shared by nodes that compute something else with it"
    inside = [layer["kept_because"] for layer in layers.values() if "inside" in layer["kept_because"]]
    assert inside == ["inside If 'n_y'"]
    for said in ("svd", "depthwise", "depthwise 3x3 is faster whole", "inside If 'n_y'"):
        assert said in ended.stdout
    out = onnx.load(tmp_path / "out.onnx")
    weights = [{one.name: numpy_helper.to_array(one) for one in each.graph.initializer} for each in (model, out)]
    np.testing.assert_array_equal(weights[1]["wd"], weights[0]["wd"])
    for scale in (0.1, 10):  # either branch
        assert error(run(out, x=scale * x[:4])[0], run(model, x=scale * x[:4])[0]) < 0.2

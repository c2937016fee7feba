"""Networks whose files keep weights in half precision, through the whole pipeline."""

import numpy as np
import onnx
import pytest
from helpers.models import error, normal, parse, run

from onnxlowrank import optimize, pipeline
from onnxlowrank.measure.latency import Latency
from onnxlowrank.plan import builder

RNG = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def no_stopwatch(monkeypatch):
    monkeypatch.setattr(pipeline, "channel_block", lambda provider: 4)
    monkeypatch.setattr(builder, "measure_in_sessions", lambda *_, **__: [Latency((1.0,) * 7)] * 2)


def network():
    """Return three Convs, a BatchNorm behind the second, weights and biases behind Casts."""
    body = """g (float[N, 16, 8, 8] x) => (float[N, 64, 8, 8] y) {
        w0 = Cast <to = 1> (h0)  w1 = Cast <to = 1> (h1)  w2 = Cast <to = 1> (h2)  b0 = Cast <to = 1> (g0)
        a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)  ar = Relu (a)
        b = Conv <pads = [1, 1, 1, 1]> (ar, w1)  n = BatchNormalization (b, s, s, s, s)  br = Relu (n)
        y = Conv <pads = [1, 1, 1, 1]> (br, w2)
    }"""
    weights = {name: nearly_low_rank(64, maps * 9).reshape(64, maps, 3, 3) for name, maps in MAPS.items()}
    return parse(body, s=np.linspace(0.5, 1, 64, dtype=np.float32), g0=normal(RNG, 64).astype(np.float16), **weights)


MAPS = {"h0": 16, "h1": 64, "h2": 64}


def nearly_low_rank(rows, columns, rank=8):
    matrix = normal(RNG, rows, rank) @ normal(RNG, rank, columns) + normal(RNG, rows, columns) / 4
    return (matrix / np.sqrt(rank * columns)).astype(np.float16)


@pytest.mark.parametrize("only", [["n_a"], ["n_b", "n_y"], []])
def test_the_file_does_not_grow(only, tmp_path):
    model = network()
    data = [{"x": normal(RNG, 1, 16, 8, 8)} for _ in range(24)]
    result = optimize(
        model, tmp_path / "out.onnx", speedup=1.2, target="macs", calibration=data, only=only, passes=["channel", "svd"]
    )
    rewritten = [layer.name for layer in result.layers if layer.method != "keep"]
    assert rewritten
    assert set(rewritten) <= set(only or ["n_a", "n_b", "n_y"])
    onnx.checker.check_model(result.model, full_check=True)
    assert result.after.file_bytes == result.model.ByteSize() < model.ByteSize()
    assert (tmp_path / "out.onnx").stat().st_size == result.model.ByteSize()
    assert error(run(result.model, **data[0])[0], run(model, **data[0])[0]) < 0.3


def test_a_size_that_is_asked_for_counts_half_the_bytes():
    model = network()
    data = [{"x": normal(RNG, 1, 16, 8, 8)} for _ in range(24)]
    most = 0.7 * model.ByteSize()
    result = optimize(model, max_size=most, calibration=data, passes=["channel", "svd"])
    assert result.reached
    assert result.after.file_bytes > 0.8 * most

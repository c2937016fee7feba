"""Depthwise convolutions of large kernels, through the whole pipeline."""

import numpy as np
import onnx
import pytest
from helpers.models import conv_model, error, normal, parse, run
from helpers.stopwatch import no_stopwatch

from onnxlowrank import optimize


def mobile(maps: int = 24, seed: int = 0) -> onnx.ModelProto:
    """Return two inverted residual blocks whose depthwise 5x5 kernels are nearly separable, a 3x3 one in between."""
    rng = np.random.default_rng(seed)

    def depthwise(size: int) -> np.ndarray:
        product = normal(rng, maps, size, 1) * normal(rng, maps, 1, size) + 0.1 * normal(rng, maps, size, size)
        return (product / size)[:, None]

    return parse(
        f"""g (float[N, 8, h, w] x) => (float[N, 8, oh, ow] y) {{
            a = Conv (x, wa)  ar = Relu (a)
            b = Conv <pads = [2, 2, 2, 2], group = {maps}> (ar, wb, bb)  br = Relu (b)
            c = Conv (br, wc)  s = Add (c, x)
            d = Conv (s, wd)  dr = Relu (d)
            e = Conv <pads = [1, 1, 1, 1], group = {maps}> (dr, we)  er = Relu (e)
            f = Conv <pads = [2, 2, 2, 2], strides = [2, 2], group = {maps}> (er, wf, bf)  fr = Relu (f)
            y = Conv (fr, wg)
        }}""",
        wa=normal(rng, maps, 8, 1, 1) / 3,
        wb=depthwise(5),
        bb=0.2 * normal(rng, maps),
        wc=normal(rng, 8, maps, 1, 1) / 5,
        wd=normal(rng, maps, 8, 1, 1) / 3,
        we=depthwise(3),
        wf=depthwise(5),
        bf=0.2 * normal(rng, maps),
        wg=normal(rng, 8, maps, 1, 1) / 5,
    )


def images(count: int, size: int = 16, seed: int = 1) -> np.ndarray:
    coarse = np.random.default_rng(seed).standard_normal((count, 8, size // 4, size // 4))
    return np.kron(coarse, np.ones((1, 1, 4, 4))).astype(np.float32)


@pytest.fixture
def no_time(monkeypatch):
    no_stopwatch(monkeypatch, block=8)


@pytest.mark.usefixtures("no_time")
def test_through_the_whole_pipeline():
    model = mobile()
    result = optimize(model, max_macs=1, calibration=images(24), passes=["depthwise"], tune="blocks")
    onnx.checker.check_model(result.model, full_check=True)
    found = {layer.name: layer for layer in result.layers}
    assert [found[name].method for name in ("n_b", "n_e", "n_f")] == ["depthwise", "keep", "depthwise"]
    assert found["n_e"].kept_because == "depthwise 3x3 is faster whole"
    assert found["n_a"].kept_because == "not depthwise"
    assert found["n_b"].macs == (256 * 24 * 25, 256 * 24 * 10)
    assert found["n_f"].macs == (64 * 24 * 25, 24 * (8 * 16 * 5 + 64 * 5))
    assert found["n_b"].energy > 0.95
    x = images(4, 20, seed=5)
    assert error(run(result.model, x=x)[0], run(model, x=x)[0]) < 0.1


@pytest.mark.usefixtures("no_time")
def test_in_int8():
    model = mobile()
    passes, only = ["depthwise"], ["n_b"]
    result = optimize(model, max_macs=1, calibration=images(8), passes=passes, precision="int8", only=only)
    assert [layer.method for layer in result.layers].count("depthwise") == 1
    x = images(8, seed=5)
    assert error(run(result.model, x=x)[0], run(model, x=x)[0]) < 0.2


@pytest.mark.usefixtures("no_time")
def test_weighing_by_what_maps_hold_loses_less_than_the_weights_alone():
    rng = np.random.default_rng(3)
    weight = normal(rng, 16, 1, 7, 7)
    model, x = conv_model(weight, pads=[3] * 4, group=16), np.repeat(images(24), 2, axis=1)
    result = optimize(model, max_macs=1, calibration=x, passes=["depthwise"], ranks={"conv": (2,)})
    u, s, vt = np.linalg.svd(weight[:, 0])
    by_weight = (u[:, :, :2] * s[:, None, :2]) @ vt[:, :2]
    other = conv_model(by_weight[:, None].astype(np.float32), pads=[3] * 4, group=16)
    x = np.repeat(images(8, seed=9), 2, axis=1)
    true = run(model, x=x)[0]
    lost, plain = (np.linalg.norm(run(one, x=x)[0] - true) for one in (result.model, other))
    assert lost < 0.5 * plain


@pytest.mark.usefixtures("no_time")
def test_a_network_with_the_usual_passes():
    result = optimize(mobile(), max_macs=1, calibration=images(24))
    methods = {layer.name: layer.method for layer in result.layers}
    assert methods["n_b"] == methods["n_f"] == "depthwise"
    kept = {layer.name: layer.kept_because for layer in result.layers}
    assert kept["n_e"] == "depthwise 3x3 is faster whole; group=24"

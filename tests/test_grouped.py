"""Grouped convolutions, as in ResNeXt, through the whole pipeline."""

import numpy as np
import pytest
from helpers.models import normal, parse, run
from helpers.stopwatch import no_stopwatch

from onnxlowrank import optimize
from onnxlowrank.plan.manual_ranks import ManualRank


def block(groups: int = 4, width: int = 64, rank: int = 4) -> object:
    """Return a block of a ResNeXt: 1x1, grouped 3x3 whose groups are nearly of low rank, 1x1, shortcut."""
    rng = np.random.default_rng(0)
    size = width // groups
    kernels = [normal(rng, size, rank) @ normal(rng, rank, 9 * size) / np.sqrt(rank * 9 * size) for _ in range(groups)]
    return parse(
        f"""g (float[N, 16, h, w] x) => (float[N, 16, h, w] y) {{
            a = Conv (x, w1)  b = Relu (a)
            c = Conv <pads = [1, 1, 1, 1], group = {groups}> (b, w2, b2)  d = Relu (c)
            e = Conv (d, w3)  f = Add (e, x)  y = Relu (f)
        }}""",
        w1=normal(rng, width, 16, 1, 1) / 4,
        w2=np.concatenate(kernels).reshape(width, size, 3, 3).astype(np.float32),
        b2=0.1 * normal(rng, width),
        w3=normal(rng, 16, width, 1, 1) / 8,
    )


RANKS = {"n_c": ManualRank((4,), method="channel")}


def inputs() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": np.kron(normal(rng, 1, 16, 4, 4), np.ones((3, 3), np.float32))} for _ in range(32)]


@pytest.mark.parametrize("groups", [2, 4])
def test_group_by_group(groups, monkeypatch):
    no_stopwatch(monkeypatch, block=8)
    model, calibration = block(groups), inputs()
    result = optimize(model, max_macs=1, calibration=calibration, ranks=RANKS, only=["n_c"])
    (layer,) = [one for one in result.layers if one.name == "n_c"]
    assert (layer.method, layer.setting) == ("channel", (4,))
    size = 64 // groups
    assert layer.macs == (144 * 64 * 9 * size, 144 * (4 * groups * 9 * size + 64 * 4))
    x = calibration[0]["x"]
    one, other = run(model, x=x)[0], run(result.model, x=x)[0]
    assert np.linalg.norm(other - one) < 2e-3 * np.linalg.norm(one)


@pytest.mark.parametrize("method", ["svd", "spatial", "asymmetric3d", "outer_product"])
def test_every_pass_that_goes_group_by_group(method, monkeypatch):
    no_stopwatch(monkeypatch, block=8)
    model, calibration = block(2), inputs()
    result = optimize(model, max_macs=1_050_000, calibration=calibration, passes=[method], only=["n_c"])
    (layer,) = [one for one in result.layers if one.name == "n_c"]
    assert layer.method == method
    assert layer.macs[1] < layer.macs[0] / 1.5
    x = calibration[0]["x"]
    one, other = run(model, x=x)[0], run(result.model, x=x)[0]
    assert np.linalg.norm(other - one) < 0.05 * np.linalg.norm(one)
    convs = [node for node in result.model.graph.node if "/lowrank/" in node.name]
    assert {attribute.i for node in convs for attribute in node.attribute if attribute.name == "group"} >= {2}

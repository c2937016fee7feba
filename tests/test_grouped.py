"""Grouped convolutions, as in ResNeXt, through the whole pipeline."""

import numpy as np
import pytest
from helpers.models import normal, parse, run
from helpers.stopwatch import no_stopwatch

from onnxlowrank import optimize


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


@pytest.mark.parametrize("groups", [2, 4])
def test_group_by_group(groups, monkeypatch):
    no_stopwatch(monkeypatch, block=8)
    model = block(groups)
    rng = np.random.default_rng(1)
    calibration = [{"x": np.kron(normal(rng, 1, 16, 4, 4), np.ones((3, 3), np.float32))} for _ in range(32)]
    result = optimize(model, max_macs=1, calibration=calibration, ranks={"n_c": (4,)}, only=["n_c"])
    (layer,) = [one for one in result.layers if one.name == "n_c"]
    assert (layer.method, layer.setting) == ("channel", (4,))
    size = 64 // groups
    assert layer.macs == (144 * 64 * 9 * size, 144 * (4 * groups * 9 * size + 64 * 4))
    x = calibration[0]["x"]
    one, other = run(model, x=x)[0], run(result.model, x=x)[0]
    assert np.linalg.norm(other - one) < 2e-3 * np.linalg.norm(one)

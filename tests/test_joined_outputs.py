"""Networks that join answers of different units in one output: boxes in pixels and probabilities of their classes."""

import numpy as np
import pytest
from helpers.models import normal, parse

from onnxlowrank import optimize

BODY = """
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, w2)
    d = Relu (c)
    e = Conv <pads = [1, 1, 1, 1]> (b, w3)
    f = Relu (e)
    g = Conv (d, v2)
    h = Conv (f, v3)
    boxes = Mul (g, hundred)
    scores = Sigmoid (h)
"""


def network(outputs, tail=""):
    rng = np.random.default_rng(2)

    def kernel(outputs, inputs, side):
        low = normal(rng, outputs, 8) @ normal(rng, 8, inputs * side**2)
        noisy = low / np.sqrt(8) + 0.2 * normal(rng, outputs, inputs * side**2)
        return (noisy / np.sqrt(inputs * side**2)).reshape(outputs, inputs, side, side).astype("f")

    weights = {"w1": kernel(32, 3, 3), "w2": kernel(32, 32, 3), "w3": kernel(32, 32, 3)}
    weights |= {"v2": normal(rng, 4, 32, 1, 1), "v3": normal(rng, 6, 32, 1, 1), "hundred": np.float32(100)}
    return parse(f"g (float[N, 3, 8, 8] x) => ({outputs}) {{ {BODY} {tail} }}", **weights)


def test_what_a_concat_joins_is_planned_as_if_it_were_outputs():
    """The layers in front of the probabilities are no more the first to be given up than those of the boxes."""
    x = normal(np.random.default_rng(3), 64, 3, 8, 8)
    settings = {"target": "macs", "speedup": 2.0, "calibration": x, "only": ["n_c", "n_e"]}
    joined = optimize(network("float[N, 10, 8, 8] y", "y = Concat <axis = 1> (boxes, scores)"), **settings)
    apart = optimize(network("float[N, 4, 8, 8] boxes, float[N, 6, 8, 8] scores"), **settings)
    plans = [[(layer.name, layer.method, layer.setting) for layer in one.layers] for one in (joined, apart)]
    assert plans[0] == plans[1]
    parts = {one.tensor: one.relative_error for one in joined.agreement.judged}
    assert set(parts) == {"boxes", "scores"}
    assert parts["scores"] < 3 * parts["boxes"]
    assert joined.agreement.outputs[0].relative_error == pytest.approx(joined.agreement.relative_error)

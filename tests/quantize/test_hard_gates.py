"""Hard sigmoids as sums that are cut off by their range: equal to the operator up to a step."""

import numpy as np
import onnx
import pytest
from helpers.models import normal, parse, run

from onnxlowrank.quantize.hard_gates import as_sums, with_gates


def gate(slope, offset, reads="QuantizeLinear"):
    behind = "e = Identity (h)" if reads == "Identity" else "e = QuantizeLinear (h, t, z)"
    model = parse(
        f"""g (uint8[N, 64] x) => ({"float" if reads == "Identity" else "uint8"}[N, 64] e) {{
            d = DequantizeLinear (x, s, m)
            h = HardSigmoid <alpha = {slope}, beta = {offset}> (d)
            {behind}
        }}""",
        s=np.float32(0.07),
        m=np.uint8(120),
        t=np.float32(1 / 255),
        z=np.uint8(0),
    )
    return model


def rewritten(model):
    nodes, constants = as_sums(model.graph.node, model.graph.initializer)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.node.extend(nodes)
    copy.graph.initializer.extend(constants)
    onnx.checker.check_model(copy, full_check=True)
    return copy


@pytest.mark.parametrize(("slope", "offset"), [(1 / 6, 0.5), (0.2, 0.5), (0.3, 0.1)])
def test_every_integer_gives_what_it_did(slope, offset):
    model = gate(slope, offset)
    found = rewritten(model)
    assert [node.op_type for node in found.graph.node].count("Add") == 1
    assert "HardSigmoid" not in [node.op_type for node in found.graph.node]
    assert len(found.graph.node) == 4  # the pair that read for the gate alone is gone
    x = np.arange(256, dtype=np.uint8).reshape(4, 64)
    (one,), (other,) = (run(each, x=x) for each in (found, model))
    assert np.abs(one.astype(int) - other).max() <= 1
    assert (one.min(), one.max()) == (0, 255)


@pytest.mark.parametrize(("slope", "reads"), [(0.2, "Identity"), (-0.2, "QuantizeLinear")])
def test_where_it_is_not_rounded_or_falls_the_operator_stays(slope, reads):
    model = gate(slope, 0.5, reads=reads)
    assert "HardSigmoid" in [node.op_type for node in rewritten(model).graph.node]


def test_a_hard_swish_is_a_product():
    model = parse("g (float[N, 8] x) => (float[N, 8] y) { y = HardSwish (x) }")
    found, gates = with_gates(model)
    assert [node.op_type for node in found.graph.node] == ["HardSigmoid", "Mul"]
    assert gates == [found.graph.node[0].output[0]]
    x = 4 * normal(np.random.default_rng(0), 5, 8)
    np.testing.assert_allclose(run(found, x=x)[0], run(model, x=x)[0], atol=1e-6)

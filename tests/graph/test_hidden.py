"""What onnxruntime's optimiser hides."""

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.models import normal, parse
from onnx import helper

from onnxlowrank.errors import UnsupportedModelError
from onnxlowrank.graph.hidden import hidden_layers
from onnxlowrank.pipeline import optimize

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def optimised(tmp_path_factory):
    model = parse(
        "g (float[N, 16, 8, 8] x) => (float[N, 16, 4, 4] y) { c = Conv (x, w) r = Relu (c) y = Conv (r, v) }",
        w=normal(RNG, 16, 16, 3, 3),
        v=normal(RNG, 16, 16, 3, 3),
    )
    path = tmp_path_factory.mktemp("optimised") / "net.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return path


def test_layers_in_fused_operators_are_counted():
    fused = parse(
        """g (float[N, 4] x) => (float[N, 4] y) {
            a = com.microsoft.FusedGemm (x, w, b)
            c = com.microsoft.FusedGemm (a, w, b)
            d = com.microsoft.nchwc.Conv (c, w)
            e = com.microsoft.BiasGelu (d, b)
            f = com.acme.Own (e, w)
            y = Gemm (f, w, b)
        }""",
        w=normal(RNG, 4, 4),
        b=normal(RNG, 4),
    )
    (note,) = hidden_layers(fused)
    assert note.startswith("the weights of 2 FusedGemm, 1 com.microsoft.nchwc.Conv are not seen")
    assert hidden_layers(parse("g (float[4] x) => (float[4] y) { y = com.microsoft.BiasGelu (x, x) }")) == []


def test_a_note_says_so_where_others_are_seen():
    model = parse(
        """g (float[N, 16, 8, 8] x) => (float[N, 4] y) {
            a = Conv (x, k)
            p = GlobalAveragePool (a)
            f = Flatten (p)
            y = com.microsoft.FusedGemm <activation = "Relu"> (f, w, b)
        }""",
        k=normal(RNG, 16, 16, 3, 3),
        w=normal(RNG, 16, 4),
        b=normal(RNG, 4),
    )
    model.opset_import.add(domain="com.microsoft", version=1)
    result = optimize(model, target="macs", calibration=normal(RNG, 16, 16, 8, 8))
    assert any("1 FusedGemm are not seen" in note for note in result.notes)


def test_fused_convolutions_are_seen(optimised):
    result = optimize(optimised, target="macs", calibration=normal(RNG, 16, 16, 8, 8))
    assert not any("are not seen" in note for note in result.notes)
    assert len(result.layers) == 2


def test_the_error_says_so_where_nothing_is_seen():
    model = parse(
        'g (float[N, 4] x) => (float[N, 4] y) { y = com.microsoft.FusedGemm <activation = "Relu"> (x, w, b) }',
        w=normal(RNG, 4, 4),
        b=normal(RNG, 4),
    )
    model.opset_import.add(domain="com.microsoft", version=1)
    with pytest.raises(UnsupportedModelError, match="nothing to decompose; the weights of 1 FusedGemm are not seen"):
        optimize(model, calibration=normal(RNG, 16, 4))


def test_the_error_lists_what_is_kept_and_why():
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"], name="deep")], "then", [], [onnx.ValueInfoProto(name="t")]
    )
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["o"])], "else", [], [onnx.ValueInfoProto(name="o")])
    model = parse(
        """g (float[4, 4] x, bool yes) => (float[4, 4] y) {
            a = MatMul (x, x)
            b = MatMul (a, x)
            c = MatMul (b, x)
            d = MatMul (c, x)
            e = MatMul (w, d)
            y = Relu (e)
        }""",
        w=normal(RNG, 4, 4),
    )
    chooses = helper.make_node("If", ["yes"], ["z"], name="choose", then_branch=inner, else_branch=other)
    model.graph.node.append(chooses)
    model.graph.output.append(helper.make_tensor_value_info("z", 1, [4, 4]))
    with pytest.raises(UnsupportedModelError) as caught:
        optimize(
            model, target="macs", calibration=[{"x": normal(RNG, 4, 4), "yes": np.array(yes)} for yes in (True, False)]
        )
    said = str(caught.value)
    assert "kept are n_a, n_b, n_c and 1 more (both operands are computed), n_e (constant on the left, " in said
    assert "deep (inside If 'choose')" in said

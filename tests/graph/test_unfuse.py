"""FusedConv nodes are read as what they were made of."""

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.models import error, normal, parse, residual_block, run
from helpers.stopwatch import no_stopwatch
from onnx import helper

from onnxlowrank import optimize
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.hidden import hidden_layers
from onnxlowrank.graph.normalise import normalise, prepare
from onnxlowrank.graph.unfuse import unfuse

RNG = np.random.default_rng(8)


def fused(activation, parameters=(), addend=False, biased=True, opset=17):
    """Return a network of one FusedConv as onnxruntime's optimiser writes it."""
    model = parse(
        "g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }",
        opset,
        w=normal(RNG, 4, 4, 3, 3),
        b=normal(RNG, 4),
    )
    node = model.graph.node[0]
    node.op_type, node.domain = "FusedConv", "com.microsoft"
    node.attribute.append(helper.make_attribute("activation", activation))
    if parameters:
        node.attribute.append(helper.make_attribute("activation_params", list(parameters)))
    names = ["x", "w", "b" if biased else "", "x"] if addend else ["x", "w"] + ["b"] * biased
    node.input[:] = names
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


CASES = [
    ("Relu", ()),
    ("Sigmoid", ()),
    ("Tanh", ()),
    ("LeakyRelu", (0.2,)),
    ("Clip", (-0.5, 1.5)),
    ("HardSigmoid", (0.3, 0.4)),
]


@pytest.mark.parametrize(("activation", "parameters"), CASES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("opset", [10, 17])
def test_it_computes_the_same(activation, parameters, biased, opset):
    model = fused(activation, parameters, biased=biased, opset=opset)
    apart, x = unfuse(prepare(model)), normal(RNG, 2, 4, 6, 6)
    assert [node.op_type for node in apart.graph.node] == ["Conv", activation]
    assert apart.graph.node[0].name == "n_y"
    onnx.checker.check_model(apart)
    assert error(run(apart, x=x)[0], run(model, x=x)[0]) < 1e-6


@pytest.mark.parametrize("biased", [True, False])
def test_an_addend_becomes_the_residual_add(biased):
    model, x = fused("Relu", addend=True, biased=biased), normal(RNG, 2, 4, 6, 6)
    apart = normalise(model)
    assert error(run(apart, x=x)[0], run(model, x=x)[0]) < 1e-6
    (layer,) = find_layers(apart)
    assert (layer.name, layer.shortcut, layer.activation.name) == ("n_y", "x", "ReLU")
    assert (layer.bias is not None) == biased


def test_what_is_not_understood_stays_and_is_told():
    model = fused("Softplus")
    assert unfuse(prepare(model)).graph.node[0].op_type == "FusedConv"
    assert "the weights of 1 FusedConv are not seen" in hidden_layers(model)[0]
    assert hidden_layers(fused("Relu")) == []


def test_a_network_that_onnxruntime_saved_through_the_whole_pipeline(tmp_path, monkeypatch):
    no_stopwatch(monkeypatch, block=2)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "saved.onnx")
    onnxruntime.InferenceSession(residual_block().SerializeToString(), options, providers=["CPUExecutionProvider"])
    saved = onnx.load(tmp_path / "saved.onnx")
    assert "FusedConv" in {node.op_type for node in saved.graph.node}
    result = optimize(saved, max_macs=1, calibration=normal(RNG, 16, 4, 8, 8), ranks={"n_a": (4,)}, passes=["channel"])
    assert result.layers[0].method == "channel"
    assert not [note for note in result.notes if "are not seen" in note]
    assert "FusedConv" not in {node.op_type for node in result.model.graph.node}

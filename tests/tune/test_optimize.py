"""Fine-tuning as the last step of an optimisation."""

import functools

import pytest
from helpers.pairs import samples
from helpers.processes import network
from onnx import TensorProto, helper

import onnxlowrank
from onnxlowrank import pipeline
from onnxlowrank.errors import MissingInputsError, OptionError
from onnxlowrank.tune.options import TuneOptions

pytest.importorskip("torch")

HOW = {"speedup": 4.0, "target": "macs", "selection": "energy", "passes": ["channel"]}


@pytest.fixture(autouse=True)
def forty_steps(monkeypatch):
    monkeypatch.setattr(pipeline, "TuneOptions", functools.partial(TuneOptions, steps=40))


def test_the_network_that_is_found_is_trained_and_compared_by_what_decides_its_outputs():
    original = network()
    original.graph.node[-1].output[0] = "z"
    original.graph.node.append(helper.make_node("ArgMax", ["z"], ["y"], "largest", axis=1, keepdims=0))
    original.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, ["N"]))
    inputs, unseen = samples(96), samples(160)[96:]
    plain, tuned = (
        onnxlowrank.optimize(original, calibration=inputs, evaluate=unseen, finetune=minutes, **HOW)
        for minutes in (None, 5.0)
    )
    assert [one.tensor for one in tuned.agreement.judged] == ["z"]
    assert tuned.agreement.relative_error < plain.agreement.relative_error
    assert [layer.setting for layer in tuned.layers] == [layer.setting for layer in plain.layers]
    assert [node.name for node in tuned.model.graph.node] == [node.name for node in plain.model.graph.node]
    (note,) = [note for note in tuned.notes if note.startswith("fine-tuned")]
    assert "loss on 12 inputs held out" in note
    assert not any("fine-tuned" in note for note in plain.notes)


def test_what_it_does_not_do():
    original = network()
    with pytest.raises(OptionError, match="--finetune 0 makes no sense"):
        onnxlowrank.optimize(original, calibration=samples(), finetune=0.0)
    with pytest.raises(OptionError, match="--finetune trains float32 networks"):
        onnxlowrank.optimize(original, calibration=samples(), finetune=1.0, precision="int8")
    with pytest.raises(MissingInputsError, match="--finetune learns from sample inputs"):
        onnxlowrank.optimize(original, finetune=1.0)

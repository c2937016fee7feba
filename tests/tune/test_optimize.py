"""Fine-tuning as the last step of an optimisation."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from helpers.pairs import samples
from helpers.processes import network
from helpers.stopwatch import no_stopwatch
from onnx import TensorProto, helper, numpy_helper

import onnxlowrank
from onnxlowrank import finish
from onnxlowrank.errors import (
    MissingInputsError,
    NothingToTrainError,
    OptionError,
    UnfitInputsError,
    UnsupportedModelError,
)
from onnxlowrank.tune.options import TuneOptions

pytest.importorskip("torch")

HOW = {"speedup": 4.0, "target": "macs", "selection": "energy", "passes": ["channel"]}
HARD = HOW | {"speedup": 6.0}
"""Where enough is lost that some of it is found again."""


@pytest.fixture(autouse=True)
def forty_steps(monkeypatch):
    no_stopwatch(monkeypatch, 4)
    monkeypatch.setattr(finish, "TuneOptions", functools.partial(TuneOptions, steps=40))


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


def test_an_int8_network_is_trained_as_it_computes(monkeypatch):
    monkeypatch.setattr(finish, "TuneOptions", functools.partial(TuneOptions, steps=200))
    inputs, unseen = samples(96), samples(160)[96:]
    how = HARD | {
        "speedup": 10.0,
        "precision": "int8",
        "int8_weights": "7bit",
        "calibration": inputs,
        "evaluate": unseen,
    }
    plain, tuned = (onnxlowrank.optimize(network(), finetune=minutes, **how) for minutes in (None, 5.0))
    assert tuned.agreement.relative_error < plain.agreement.relative_error
    assert [layer.precision for layer in tuned.layers] == [layer.precision for layer in plain.layers]
    old, new = (
        {one.name: numpy_helper.to_array(one) for one in found.model.graph.initializer} for found in (plain, tuned)
    )
    assert [(name, one.dtype, one.shape) for name, one in old.items()] == [
        (name, one.dtype, one.shape) for name, one in new.items()
    ]
    assert {one.dtype.name for name, one in new.items() if (one != old[name]).any()} <= {"int8", "int32"}
    assert max(np.abs(one.astype(int)).max() for one in new.values() if one.dtype == np.int8) == 64


def test_the_cascade_trains_what_is_behind_every_layer_before_it_is_approximated(monkeypatch):
    inputs, unseen = samples(96), samples(160)[96:]
    how = HARD | {"calibration": inputs, "evaluate": unseen}
    plain = onnxlowrank.optimize(network(), **how)
    rewritten = [layer.name for layer in plain.layers if layer.method != "keep"]
    seen = []
    fine_tune = finish.fine_tune

    def watched(teaching, model, options, progress):
        seen.append((sorted(chains_in(model, rewritten)), options.tune, options.minutes))
        return fine_tune(teaching, model, options, progress)

    monkeypatch.setattr(finish, "fine_tune", watched)
    tuned = onnxlowrank.optimize(network(), finetune=4.0, cascade=True, **how)
    assert len(rewritten) >= 2
    each = 4.0 / len(rewritten)
    assert seen == [(sorted(rewritten[: count + 1]), "above", each) for count in range(len(rewritten))]
    assert tuned.agreement.relative_error < plain.agreement.relative_error
    assert [layer.setting for layer in tuned.layers] == [layer.setting for layer in plain.layers]
    assert [node.name for node in tuned.model.graph.node] == [node.name for node in plain.model.graph.node]
    shapes = [[(one.name, *one.dims) for one in found.model.graph.initializer] for found in (plain, tuned)]
    assert sorted(shapes[0]) == sorted(shapes[1])
    (note,) = [note for note in tuned.notes if note.startswith("fine-tuned")]
    assert f"{40 * len(seen)} steps" in note


def test_a_cascade_that_ends_early_or_has_nothing_behind_its_layers(monkeypatch):
    """What is returned has all layers approximated, as if at once; and then all of it is trained."""
    inputs, unseen = samples(96), samples(160)[96:]
    how = HARD | {"calibration": inputs, "evaluate": unseen}
    plain = onnxlowrank.optimize(network(), **how)
    fine_tune = finish.fine_tune

    def stopped(*arguments):
        return replace(fine_tune(*arguments), ended="interrupted")

    monkeypatch.setattr(finish, "fine_tune", stopped)
    found = onnxlowrank.optimize(network(), finetune=1.0, cascade=True, **how)
    assert found.is_interrupted
    assert found.model.SerializeToString(deterministic=True) == plain.model.SerializeToString(deterministic=True)
    seen = []

    def nothing_above(teaching, model, options, progress):
        seen.append(options.tune)
        if options.tune == "above":
            raise NothingToTrainError("nothing is above")
        return fine_tune(teaching, model, options, progress)

    monkeypatch.setattr(finish, "fine_tune", nothing_above)
    assert not onnxlowrank.optimize(network(), finetune=1.0, cascade=True, **how).is_interrupted
    assert seen == ["above"] * (len(seen) - 1) + ["all"]


def test_what_cannot_be_trained_is_given_as_it_was_found(monkeypatch):
    inputs, unseen = samples(96), samples(160)[96:]
    how = HARD | {"calibration": inputs, "evaluate": unseen}
    plain = onnxlowrank.optimize(network(), **how)

    def refuses(*_):
        raise UnsupportedModelError("PyTorch has no such operator")

    monkeypatch.setattr(finish, "fine_tune", refuses)
    found = onnxlowrank.optimize(network(), finetune=1.0, **how)
    assert found.model.SerializeToString(deterministic=True) == plain.model.SerializeToString(deterministic=True)
    assert "the network is not fine-tuned: PyTorch has no such operator" in found.notes


def test_too_few_inputs_are_refused_before_anything_is_done(monkeypatch):
    monkeypatch.setattr("onnxlowrank.pipeline.ready_network", lambda *_: pytest.fail("it went on"))
    with pytest.raises(UnfitInputsError, match="fine-tuning learns from some inputs"):
        onnxlowrank.optimize(network(), finetune=1.0, **HARD | {"calibration": samples(6), "evaluate": samples(6)})


def chains_in(model, layers):
    """Return the layers in whose place chains stand."""
    return {name for name in layers if any(node.name.startswith(f"{name}/lowrank/") for node in model.graph.node)}


def test_what_it_does_not_do():
    original = network()
    with pytest.raises(OptionError, match="--finetune 0 makes no sense"):
        onnxlowrank.optimize(original, calibration=samples(), finetune=0.0)
    with pytest.raises(OptionError, match="--finetune trains float32 and int8 networks"):
        onnxlowrank.optimize(original, calibration=samples(), finetune=1.0, precision="fp16", provider="cuda")
    with pytest.raises(OptionError, match="--cascade is a way to train: say how many minutes with --finetune"):
        onnxlowrank.optimize(original, calibration=samples(), cascade=True)
    with pytest.raises(OptionError, match="--cascade is for float32 networks"):
        onnxlowrank.optimize(original, calibration=samples(), finetune=1.0, cascade=True, precision="int8")
    with pytest.raises(MissingInputsError, match="--finetune learns from sample inputs"):
        onnxlowrank.optimize(original, finetune=1.0)

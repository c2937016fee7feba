"""``onnxlowrank.finetune`` and its report."""

import onnx
import pytest
from helpers.pairs import pair, samples

import onnxlowrank
from onnxlowrank.errors import DestinationError, UnsupportedModelError
from onnxlowrank.report.finetune import finetuning_report
from onnxlowrank.report.markdown import markdown

pytest.importorskip("torch")


def test_it_writes_what_it_returns_and_says_so(tmp_path):
    original, optimised = pair()
    output = tmp_path / "out.onnx"
    found = onnxlowrank.finetune(original, optimised, output, data=samples(), tune="chains", steps=20)
    assert onnx.load(output).SerializeToString(deterministic=True) == found.model.SerializeToString(deterministic=True)
    assert found.is_better
    assert found.after.relative_error < found.before.relative_error
    said = " ".join(markdown(finetuning_report(found, "a title")).split())
    assert "chains: 2 nodes, c/lowrank/rows .. c/lowrank/columns" in said
    assert "ORIGINAL's answers; 84 samples of 96 random inputs" in said
    assert "Loss on inputs held out" in said
    assert "chose the network; give --evaluate for others" in said


def test_nothing_better_is_said_too():
    original, _ = pair()
    found = onnxlowrank.finetune(original, original, data=samples(), steps=2)
    assert "Nothing better than OPTIMISED was found" in markdown(finetuning_report(found, "a title"))
    assert found.after.relative_error == 0


def test_it_goes_on_from_what_it_wrote(tmp_path):
    """Training by parts: what is still gained with a third of the steps each time, and never lost."""
    original, model = pair()
    losses = []
    for part in range(3):
        output = tmp_path / f"{part}.onnx"
        found = onnxlowrank.finetune(original, model, output, data=samples(), steps=20)
        losses += [found.tuned.figures[0]] if part == 0 else []
        assert found.tuned.figures[0] == pytest.approx(losses[-1], rel=1e-6)
        losses.append(found.tuned.figures[1])
        model = output
    assert sorted(losses, reverse=True) == losses
    assert losses[2] < losses[1] < losses[0]
    assert losses[3] < 0.7 * losses[0]


def test_what_does_not_belong_together(tmp_path):
    original, optimised = pair()
    other = pair()[1]
    other.graph.input[0].name = other.graph.node[0].input[0] = "image"
    with pytest.raises(UnsupportedModelError, match="networks to compare take the same inputs"):
        onnxlowrank.finetune(original, other, data=samples(), steps=2)
    path = tmp_path / "net.onnx"
    onnx.save(optimised, path)
    with pytest.raises(DestinationError, match="is the input model itself"):
        onnxlowrank.finetune(original, path, path, data=samples(), steps=2)

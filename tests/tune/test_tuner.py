"""Training of small networks: it gains, it repeats, it never makes anything worse, and it can be stopped."""

import time

import numpy as np
import onnx
import pytest
from helpers.models import run
from helpers.pairs import pair, samples
from helpers.tuning import distance, tuned

from onnxlowrank.errors import MissingInputsError, OptionError, UnfitInputsError, UnsupportedModelError
from onnxlowrank.evaluate.measures import measures_of
from onnxlowrank.tune import training, tuner
from onnxlowrank.tune.options import TuneOptions
from onnxlowrank.tune.split import split
from onnxlowrank.tune.student import Student
from onnxlowrank.tune.training import Trainer

pytest.importorskip("torch")


def weights(model):
    return {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}


@pytest.mark.parametrize("mode", ["chains", "above", "all"])
def test_it_gains_and_touches_nothing_else(mode):
    original, optimised = pair()
    before = optimised.SerializeToString(deterministic=True)
    inputs = samples()
    found = tuned(original, optimised, inputs, tune=mode)
    assert optimised.SerializeToString(deterministic=True) == before
    assert found.is_better
    assert found.ended == "finished"
    assert found.steps == 40
    unseen = samples(200)[96:]
    assert distance(original, found.model, unseen) < 0.9 * distance(original, optimised, unseen)
    old, new = weights(optimised), weights(found.model)
    assert {name for name in old if (old[name] != new[name]).any()} == set(found.trained.weights)
    for tensor in found.model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(old[tensor.name], tensor.name))
    assert found.model.SerializeToString(deterministic=True) == before


def test_equal_steps_and_seeds_give_equal_networks():
    networks = pair()
    first, again, other = (tuned(*networks, samples(), steps=8, seed=seed).model for seed in (3, 3, 4))
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert first.SerializeToString(deterministic=True) != other.SerializeToString(deterministic=True)


def test_a_network_of_values_and_one_with_a_softmax():
    for end in ("y = MatMul (q, m)", "z = Gemm <transB = 1> (q, wf, bf)  y = Softmax <axis = 1> (z)"):
        original, optimised = pair(end=end)
        if "MatMul" in end:
            for model in (original, optimised):
                values = np.random.default_rng(5).standard_normal((12, 5)).astype(np.float32)
                model.graph.initializer.append(onnx.numpy_helper.from_array(values, "m"))
        found = tuned(original, optimised, samples())
        assert found.figures[1] < 0.7 * found.figures[0]


def test_the_figure_of_class_scores_is_their_divergence_at_a_temperature():
    original, optimised = pair(end="z = Gemm <transB = 1> (q, wf, bf)  y = Softmax <axis = 1> (z)")
    inputs = samples()
    found = tuned(original, optimised, inputs, steps=1)
    held_out = split(original, inputs).held_out
    x = np.concatenate([held_out[index]["x"] for index in range(len(held_out))])
    p, q = (np.log(run(model, x=x)[0].astype(np.float64)) / 2 for model in (original, optimised))
    p, q = (one - np.log(np.exp(one).sum(axis=1, keepdims=True)) for one in (p, q))
    assert found.figures[0] == pytest.approx(4 * (np.exp(p) * (p - q)).sum(axis=1).mean(), rel=1e-4)


def test_labels_count_half():
    original, optimised = pair()
    inputs = samples(labels=5)
    with_labels, without = (tuned(original, optimised, inputs, labels=labels, steps=1) for labels in (True, False))
    assert (with_labels.labelled, without.labelled) == (True, False)
    held_out = split(original, inputs).held_out
    x = np.concatenate([held_out[index]["x"] for index in range(len(held_out))])
    scores = run(optimised, x=x)[0].astype(np.float64)
    logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    entropy = -logs[np.arange(len(x)), held_out.labels.ravel()].mean()
    assert with_labels.figures[0] > entropy / 2
    assert not TuneOptions().labels


def test_nothing_worse_is_returned():
    original, _ = pair()
    found = tuned(original, original, samples(), steps=5)
    assert not found.is_better
    assert found.figures[0] == found.figures[1] == pytest.approx(0, abs=1e-9)
    assert found.model.SerializeToString() == original.SerializeToString()


def test_fixed_batches_of_several_samples():
    original, optimised = pair()
    for model in (original, optimised):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    inputs = samples(24, batch=4)
    assert not split(original, inputs).joins
    found = tuned(original, optimised, inputs, steps=10)
    assert found.is_better
    assert found.samples == (84, 12)


def test_what_no_gradient_reaches_is_run_by_onnxruntime():
    original, optimised = pair()
    for model in (original, optimised):
        relu = next(node for node in model.graph.node if node.output[0] == "b")
        relu.op_type = "Shrink"
    found = tuned(original, optimised, samples(), tune="all")
    assert found.trained.stopped_by == ("Shrink (node 'n_b')",)
    assert set(found.trained.weights) == {"wr", "wc", "b2", "wf", "bf"}
    assert found.is_better


def test_another_result_than_onnxruntimes_is_refused(monkeypatch):
    original, optimised = pair()
    compute = Student.run
    monkeypatch.setattr(
        Student, "run", lambda self, feeds: {name: 1.01 * one for name, one in compute(self, feeds).items()}
    )
    with pytest.raises(UnsupportedModelError, match=r"something else for tensor .* than onnxruntime"):
        tuned(original, optimised, samples())


@pytest.mark.parametrize("times", [1, 99])
def test_a_loss_that_is_not_finite(monkeypatch, times):
    """Now and then it is recovered from; if it stays, training ends with the best so far."""
    original, optimised = pair()
    compute, calls = tuner._Tuner._loss, iter(range(1000))

    def loss(self, chosen):
        found = compute(self, chosen)
        return float("nan") if 32 <= next(calls) < 32 + times else found

    monkeypatch.setattr(tuner._Tuner, "_loss", loss)
    found = tuned(original, optimised, samples())
    assert found.ended == ("finished" if times == 1 else "not finite")
    assert np.isfinite(distance(original, found.model, samples()))
    assert found.figures[1] <= found.figures[0]
    assert found.is_better or times > 1


def test_an_interruption_keeps_the_best_so_far(monkeypatch):
    original, optimised = pair()
    step, calls = Trainer._step, iter(range(1000))

    def interrupted(self, *arguments):
        if next(calls) == 100:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    found = tuned(original, optimised, samples(), steps=200)
    assert found.is_interrupted
    assert 50 <= found.steps <= 100
    assert found.is_better


def test_the_time_is_kept():
    found = tuned(*pair(), samples(), steps=None, minutes=0.02)
    assert (found.ended, found.is_better) == ("finished", True)
    assert 1.2 <= found.seconds < 4
    found = tuned(*pair(), samples(), steps=10**6, minutes=0.02)
    assert found.ended == "time"


def test_most_of_the_time_is_spent_on_training(monkeypatch):
    judge, looks = tuner._Tuner._judge, []

    def slow(self):
        looks.append(1)
        time.sleep(0.1)
        return judge(self)

    monkeypatch.setattr(tuner._Tuner, "_judge", slow)
    assert tuned(*pair(), samples(), steps=None, minutes=0.03).ended == "finished"
    assert 3 <= len(looks) <= 7


def test_inputs_that_do_not_do():
    original, optimised = pair()
    with pytest.raises(UnfitInputsError, match="there are only 3 random inputs: give 16 samples at the least"):
        tuned(original, optimised, samples(3))
    with pytest.raises(UnfitInputsError, match=r"there is a class [67], but the network has 5, 0 to 4"):
        tuned(original, optimised, samples(labels=8), labels=True)
    with pytest.raises(MissingInputsError, match="--labels: there are none with"):
        tuned(original, optimised, samples(), labels=True)
    with pytest.raises(OptionError, match="--augment flip is for images"):
        tuned(original, optimised, samples(), augment=["flip"])
    image = pair(end="y = Gemm <transB = 1> (q, wf, bf)")[0]
    del image.graph.node[-3:]
    image.graph.output[0].name = "d"
    image.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(OptionError, match=r"--labels: the network gives no class scores \[N, classes\]"):
        tuned(image, image, samples(labels=5), labels=True)


def test_options_that_make_no_sense(monkeypatch):
    for options, said in (
        ({"tune": "none"}, "--tune none is unknown"),
        ({"minutes": 0.0}, "--minutes 0 makes no sense"),
        ({"minutes": float("nan")}, "--minutes nan makes no sense"),
        ({"steps": 0}, "--steps 0 makes no sense"),
        ({"augment": ["turn"]}, "--augment turn is unknown; choose from flip, shift, none"),
        ({"seed": -1}, "--seed -1 makes no sense"),
        ({"device": "tpu"}, "--device tpu is unknown"),
    ):
        with pytest.raises(OptionError, match=said):
            TuneOptions(**options).check()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(OptionError, match="--device cuda: PyTorch finds no GPU"):
        TuneOptions(device="cuda").check()


def test_measures_that_only_the_original_has():
    original, optimised = pair()
    optimised.graph.node[-1].output[0] = "other"
    optimised.graph.output[0].name = "other"
    measures = measures_of(original)
    with pytest.raises(UnsupportedModelError, match="was OPTIMISED made of ORIGINAL"):
        tuner.shared_measures(measures, optimised)


def test_a_step_is_of_fewer_samples_where_there_is_time_for_few(monkeypatch):
    assert tuner.batch_size(most=64, least=8, seconds=0.3, minutes=10) == 10  # 600 s for 200 steps of 10 samples
    assert tuner.batch_size(64, 8, 0.003, 10) == 64
    assert tuner.batch_size(64, 8, 0.3, 1) == 8
    assert tuner.batch_size(4, 8, 0.3, 1) == 4
    assert tuner.batch_size(2, 0, 100.0, 1) == 1
    seen, pause = [], 0.02
    compute = tuner._Tuner._loss

    def loss(self, batch):
        time.sleep(pause * len(batch.chosen))
        seen.append(len(batch.chosen))
        return compute(self, batch)

    monkeypatch.setattr(tuner._Tuner, "_loss", loss)
    assert tuned(*pair(), samples(), steps=None, minutes=0.05).steps > 0  # 3 s; a step takes 0.16 s
    assert set(seen) == {8}
    seen.clear()
    pause = 0.0
    tuned(*pair(), samples(), steps=2)
    assert set(seen) == {21}


def test_the_range_test_asks_the_original_once(monkeypatch):
    runs = []
    compute = tuner.Reference.run
    monkeypatch.setattr(tuner.Reference, "run", lambda self, feeds: (runs.append(1), compute(self, feeds))[1])
    tuned(*pair(), samples(), steps=1)
    first = len(runs)
    runs.clear()
    tuned(*pair(), samples(), steps=3)
    assert len(runs) == first + 2
    assert first < 20


def test_the_range_test_leaves_time_for_training():
    shares = {0.0: 20, 0.001: 20, 0.01: 15, 0.05: 8}  # of the time, for one step
    assert {share: training.steps_of_test(share) for share in shares} == shares

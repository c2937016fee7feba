"""The parts of training one by one, against closed forms: rates, steps, terms, changed images, batches."""

import ast
import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.models import normal
from helpers.pairs import pair, samples

from onnxlowrank.evaluate.measures import measures_of
from onnxlowrank.evaluate.objective import Objective as PlansObjective
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.tune import budget as budget_module
from onnxlowrank.tune.adam import Adam
from onnxlowrank.tune.augment import Augmentation
from onnxlowrank.tune.budget import Budget, cosine
from onnxlowrank.tune.objective import Objective, Term
from onnxlowrank.tune.samples import Samples
from onnxlowrank.tune.terms import hint_pairs, hint_terms, judged_pair, judged_term
from onnxlowrank.tune.weights import trained_weights

torch = pytest.importorskip("torch")

PACKAGE = Path(__file__).parents[2] / "onnxlowrank"
RNG = np.random.default_rng(2)


def test_the_package_and_its_commands_do_not_load_pytorch():
    code = "import sys, onnxlowrank, onnxlowrank.cli; print([name for name in sys.modules if 'torch' in name])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert ended.stdout.strip() == "[]", ended.stderr
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "torch"], path


def test_the_rate_rises_and_falls_as_a_cosine():
    shares = np.linspace(0, 1, 101)
    rates = [cosine(float(share)) for share in shares]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[5] == pytest.approx(1)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates[5 + 95 // 2] == pytest.approx(0.5 * (1 + math.cos(math.pi * (95 // 2) / 95)), abs=1e-9)
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))


def test_a_budget_of_steps_and_of_minutes(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(budget_module.time, "monotonic", lambda: now[0])
    steps, both, minutes = Budget(4, None), Budget(4, 1.0), Budget(None, 1.0)
    now[0] += 15
    for one in (steps, both, minutes):
        one.step()
    assert [one.share for one in (steps, both, minutes)] == [0.25] * 3
    assert [one.seconds_left for one in (steps, both, minutes)] == [45, 45, 45]
    now[0] += 45
    assert [one.is_over for one in (steps, both, minutes)] == [False, True, True]
    for _ in range(3):
        steps.step()
    assert steps.is_over


def test_adam_by_hand():
    start, gradients = normal(RNG, 5), [normal(RNG, 5), normal(RNG, 5)]
    value = torch.from_numpy(start.copy()).requires_grad_(True)
    adam, size = Adam([value]), np.sqrt((start**2).mean())
    expected, mean, square = start.astype(np.float64), np.zeros(5), np.zeros(5)
    for step, gradient in enumerate(gradients, 1):
        value.grad = torch.from_numpy(gradient)
        adam.step(0.01)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.astype(np.float64) ** 2
        expected -= 0.01 * size * (mean / (1 - 0.9**step)) / np.sqrt(square / (1 - 0.999**step))
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-5)
    adam.clear()
    assert value.grad is None


@pytest.mark.parametrize("probabilities", [False, True])
def test_class_scores_cost_what_plans_are_made_by(probabilities):
    measures = measures_of(pair()[0], labelled=True)
    one, other = 4 * normal(RNG, 40, 5), 4 * normal(RNG, 40, 5)
    if probabilities:
        one, other = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (one, other))
    term = judged_term(measures[0], ("y", "y"), [one])
    assert term.are_probabilities == probabilities
    assert term.temperature >= 2
    found = float(term.distance(torch.from_numpy(other), torch.from_numpy(one)))
    p, q = (np.log(x) if probabilities else x for x in (one.astype(np.float64), other.astype(np.float64)))
    p, q = (x / term.temperature - np.log(np.exp(x / term.temperature).sum(axis=1, keepdims=True)) for x in (p, q))
    assert found == pytest.approx(term.temperature**2 * (np.exp(p) * (p - q)).sum(axis=1).mean(), rel=1e-4)
    plans = PlansObjective(measures, [[one]])
    if term.temperature > 2:
        assert found == pytest.approx(plans.loss([[other]]), rel=1e-3)


def test_values_cost_what_plans_are_made_by():
    measures = measures_of(pair()[0])
    one, other = normal(RNG, 7, 5, 4) + 3, normal(RNG, 7, 5, 4)
    term = judged_term(measures[0], ("y", "y"), [one[:4], one[4:]])
    found = float(term.distance(torch.from_numpy(other), torch.from_numpy(one)))
    assert found == pytest.approx(PlansObjective(measures, [[one[:4]], [one[4:]]]).loss([[other[:4]], [other[4:]]]))


def test_a_loss_of_labels_and_hints():
    scores, teacher, inside = normal(RNG, 6, 5), normal(RNG, 6, 5), normal(RNG, 6, 3)
    labels = np.array([0, 1, 2, 3, 4, 0])
    judged, hint = Term("y", "y", axis=1, temperature=2.0), Term("h", "k", scale=2.0)
    mine = {"y": torch.from_numpy(scores), "h": torch.from_numpy(inside)}
    reference = {"y": torch.from_numpy(teacher), "k": torch.zeros(6, 3)}
    distilled = float(Objective((judged,)).figure(mine, reference, labels))
    logs = scores.astype(np.float64) - np.log(np.exp(scores.astype(np.float64)).sum(axis=1, keepdims=True))
    entropy = -logs[np.arange(6), labels].mean()
    objective = Objective((judged,), (hint,), labelled=True, hint_weight=10.0)
    figure = float(objective.figure(mine, reference, labels))
    assert figure == pytest.approx((distilled + entropy) / 2, rel=1e-5)
    loss = float(objective.loss(mine, reference, labels))
    assert loss == pytest.approx(figure + 10 * (inside**2).mean() / 2, rel=1e-5)
    assert (objective.tensors, objective.references) == (("y", "h"), ("y", "k"))


def test_hints_are_in_front_of_layers_that_training_moves():
    original, optimised = pair()
    trained = {mode: trained_weights(original, optimised, mode, ["y"]) for mode in ("all", "chains", "above")}
    assert hint_pairs(original, optimised, trained["all"], ["y"]) == [("q", "q"), ("b", "b")]
    assert hint_pairs(original, optimised, trained["chains"], ["y"]) == []
    assert hint_pairs(original, optimised, trained["above"], ["y"]) == []
    one = normal(RNG, 4, 3)
    terms = hint_terms(
        [("near", "n"), ("same", "same"), ("far", "far"), ("else", "else")],
        [[one]] * 4,
        [[one + 0.1 * normal(RNG, 4, 3)], [one], [normal(RNG, 4, 3) * 3], [normal(RNG, 4, 2)]],
    )
    assert [(term.tensor, term.reference) for term in terms] == [("near", "n")]


def test_what_a_softmax_is_of_is_compared_in_its_place():
    networks = pair(end="z = Gemm <transB = 1> (q, wf, bf)  y = Softmax <axis = 1> (z)")
    (measure,) = measures_of(networks[0])
    assert judged_pair(measure, *networks) == ("z", "z")
    networks[1].graph.node[-1].op_type = "LogSoftmax"
    assert judged_pair(measure, *networks) == ("y", "y")


def test_images_are_flipped_and_shifted_and_nothing_else():
    image = np.arange(2 * 16 * 24, dtype=np.float32).reshape(1, 2, 16, 24)
    seen = set()
    for layout, rows in ((image, 2), (image.transpose(0, 2, 3, 1), 1)):
        augmentation = Augmentation("x", rows, frozenset({"flip", "shift"}))
        rng = np.random.default_rng(0)
        for _ in range(60):
            feeds = {"x": layout, "other": np.ones(1)}
            (changed,) = augmentation.apply(feeds, rng)["x"]
            plane = changed[0] if rows == 2 else changed[..., 0]
            flipped = bool(plane[8, 12] > plane[8, 13])
            down, right = divmod(int(plane[8, 12]), 24)
            shift = down - 8, right - (11 if flipped else 12)
            seen.add((flipped, *shift))
            expected = (
                np.pad(image[0, 0], 3, mode="reflect")[:, ::-1] if flipped else np.pad(image[0, 0], 3, mode="reflect")
            )
            step = -shift[1] if flipped else shift[1]
            np.testing.assert_array_equal(plane, expected[3 + shift[0] : 19 + shift[0], 3 + step : 27 + step])
    assert {one[0] for one in seen} == {False, True}
    assert {abs(one[1]) for one in seen} == {0, 1, 2}
    assert {abs(one[2]) for one in seen} == {0, 1, 2, 3}


def test_all_samples_come_before_any_comes_again():
    taken = Samples(samples(10), joins=True)
    batches = taken.batches(4, np.random.default_rng(0))
    drawn = [index for _ in range(5) for index in next(batches).chosen]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]


def test_large_inputs_are_run_through_in_parts():
    arrays = np.zeros((6, 1, 2**19), np.float32)  # 2 MiB each
    inputs = Inputs(lambda index: {"x": arrays[index]}, 6, 1, "large", np.arange(6).reshape(6, 1))
    parts = list(Samples(inputs, joins=True).parts(range(5)))
    assert [len(part.feeds["x"]) for part in parts] == [2, 2, 1]
    assert [part.labels.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert [len(part.feeds["x"]) for part in Samples(inputs, joins=False).parts(range(2))] == [1, 1]

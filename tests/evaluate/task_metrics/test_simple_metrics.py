"""Top-1, top-5, PSNR, IoU, cosine and text against values by hand and by brute force."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlowrank.errors import OptionError, UnsupportedModelError
from onnxlowrank.evaluate.task_metrics import BUILT_IN
from onnxlowrank.evaluate.task_metrics.base import Given
from onnxlowrank.evaluate.task_metrics.text import edit_distance

RNG = np.random.default_rng(3)


def score(metric, original, others, *, labels=None, axis=None, chosen=None, batch=None):
    """Return what a metric makes of one output, given as an array an input, of the original and of another network."""
    batch = len(original[0]) if batch is None else batch
    labels = None if labels is None else np.array(labels).reshape(len(original), -1)
    about = Given([{"y": np.asarray(one)} for one in original], {"y": axis}, labels, batch)
    found = BUILT_IN[metric](about)([{"y": np.asarray(one)} for one in others])
    return found.of(np.arange(len(original)) if chosen is None else np.array(chosen))


def test_top1_with_labels_and_without():
    before = [[[3.0, 1, 2]], [[0.0, 1, 2]], [[5.0, 1, 2]], [[0.0, 4, 2]]]
    after = [[[3.0, 1, 2]], [[0.0, 3, 2]], [[1.0, 5, 2]], [[0.0, 4, 2]]]
    assert score("top1", before, before) == 100
    assert score("top1", before, after) == 50
    assert score("top1", before, before, labels=[0, 1, 1, 0]) == 25
    assert score("top1", before, after, labels=[0, 1, 1, 0]) == 75
    assert score("top1", before, after, chosen=[1, 1, 1, 3]) == 25


def test_scores_of_one_pixel_are_class_scores():
    before = [np.array([3.0, 1, 2]).reshape(1, 3, 1, 1)]
    assert score("top1", before, before) == 100


def test_top5_is_the_sixth_or_not():
    scores = np.array([[6.0, 5, 4, 3, 2, 1, 0]])
    assert score("top5", [scores], [scores], labels=[4]) == 100
    assert score("top5", [scores], [scores], labels=[5]) == 0
    assert score("top5", [scores], [scores[:, ::-1]]) == 0  # class 0 is the last one now
    assert score("top5", [scores], [np.roll(scores, 4, axis=1)]) == 100  # and now the fifth after three others


def test_counted_samples_are_told():
    about = Given([{"y": np.eye(3)}], {"y": None}, None, 3)
    assert BUILT_IN["top1"](about)([{"y": np.eye(3)[[0, 2, 2]]}]).right.tolist() == [True, False, True]


def test_psnr_by_hand():
    image = np.zeros((1, 1, 2, 2), "f")
    image[0, 0, 0, 0] = 10.0
    noisy = image + np.array([[1.0, -1.0], [1.0, -1.0]], "f")
    assert score("psnr", [image], [noisy]) == pytest.approx(10 * math.log10(1 / (0.01 + 1 / (12 * 255**2))), abs=1e-6)
    assert score("psnr", [image], [image]) == pytest.approx(10 * math.log10(12 * 255**2))
    rounding = 10 / 255 / math.sqrt(12)
    assert score("psnr", [image], [image + rounding]) == pytest.approx(58.92 - 3.01, abs=0.01)
    two = score("psnr", [image, image], [image, noisy], chosen=[1, 1])
    assert two == score("psnr", [image], [noisy])


def test_psnr_of_a_constant():
    with pytest.raises(OptionError, match="all values of the output y are the same"):
        score("psnr", [np.ones((1, 1, 2, 2))], [np.ones((1, 1, 2, 2))])


def test_iou_of_a_single_mask():
    mask = np.array([[[[0.9, 0.9, 0.1, 0.1]]]])
    other = np.array([[[[0.9, 0.1, 0.8, 0.1]]]])
    assert score("iou", [mask], [other]) == pytest.approx(100 / 3)
    assert score("iou", [mask[:, 0]], [other[:, 0]]) == pytest.approx(100 / 3)
    logits, others = 10 * mask - 5, 10 * other - 5
    assert score("iou", [logits], [others]) == pytest.approx(100 / 3)
    assert score("iou", [mask], [np.zeros_like(mask)]) == 0
    assert score("iou", [0 * mask], [0 * mask]) == 100


@pytest.mark.parametrize("kind", ["scores", "last axis", "numbers"])
def test_iou_of_classes_is_that_of_sets(kind):
    before, after = (RNG.integers(0, 4, (2, 3, 5, 6)) for _ in range(2))  # two inputs of three samples
    ratios = []
    for one in range(4):
        a, b = ({tuple(i) for i in np.argwhere(classes == one)} for classes in (before, after))
        ratios.append(len(a & b) / len(a | b))
    layout = {
        "scores": lambda classes: np.moveaxis(np.eye(4)[classes], -1, 1),
        "last axis": lambda classes: np.eye(4)[classes],
        "numbers": lambda classes: classes,
    }[kind]
    found = score("iou", list(map(layout, before)), list(map(layout, after)), axis=3 if kind == "last axis" else None)
    assert found == pytest.approx(100 * np.mean(ratios))


def test_cosine_by_hand():
    before, after = np.array([[1.0, 0], [0, 2], [0, 0], [0, 0]]), np.array([[3.0, 3], [0, 5], [0, 0], [1, 0]])
    assert score("cosine", [before], [after]) == pytest.approx(100 * (math.sqrt(0.5) + 1 + 1 + 0) / 4)
    assert score("cosine", [before.reshape(4, 2, 1)], [after.reshape(4, 2, 1)]) == score("cosine", [before], [after])


def one_hot(*lines, classes=5):
    return np.eye(classes)[np.array(lines)]


def test_text_by_hand():
    before = one_hot([0, 1, 1, 0, 1, 2, 0, 0], [3, 0, 0, 0, 0, 0, 0, 0])  # 1 1 2, and 3
    after = one_hot([0, 1, 1, 1, 1, 2, 4, 0], [3, 0, 0, 0, 0, 0, 0, 0])  # 1 2 4
    assert score("text", [before], [before]) == 100
    assert score("text", [before], [after]) == pytest.approx(100 * (1 / 3 + 1) / 2)
    assert score("text", [before.swapaxes(0, 1)], [after.swapaxes(0, 1)], batch=2) == score("text", [before], [after])
    numbers = [before.argmax(2)], [after.argmax(2)]
    assert score("text", *numbers) == score("text", [before], [after])


def test_text_whose_blank_is_the_last_class():
    before = one_hot([4, 1, 4, 4, 0, 0, 4, 4])
    after = one_hot([4, 1, 4, 4, 4, 4, 4, 4])
    assert score("text", [before], [after]) == 50


@cache
def recursive_distance(one, other):
    if not one or not other:
        return len(one) + len(other)
    return min(
        recursive_distance(one[1:], other) + 1,
        recursive_distance(one, other[1:]) + 1,
        recursive_distance(one[1:], other[1:]) + (one[0] != other[0]),
    )


@settings(max_examples=60, deadline=None)
@given(*[st.lists(st.integers(0, 2), max_size=6).map(tuple)] * 2)
def test_edit_distance_is_the_recursive_one(one, other):
    assert edit_distance(one, other) == recursive_distance(one, other)


WRONG = {
    "top1": (np.zeros((1, 3, 4, 4)), r"--metric top1 reads class scores .* outputs are y float64 \[1, 3, 4, 4\]"),
    "top5": (np.zeros((1, 5)), "more than 5 classes"),
    "psnr": (np.zeros((1, 5)), "images"),
    "iou": (np.zeros((1, 5)), "masks"),
    "cosine": (np.zeros((1, 5), int), "embeddings"),
    "text": (np.zeros((1, 5)), "CTC"),
}


@pytest.mark.parametrize("metric", WRONG)
def test_outputs_that_do_not_fit(metric):
    output, says = WRONG[metric]
    with pytest.raises(OptionError, match=says):
        score(metric, [output], [output])


def test_several_outputs_that_fit():
    about = Given([{"a": np.eye(3), "b": np.eye(3)}], {"a": None, "b": None})
    with pytest.raises(OptionError, match="a, b fit: name one with --output NAME"):
        BUILT_IN["top1"](about)


def test_outputs_of_other_shapes():
    with pytest.raises(UnsupportedModelError, match="the output y is"):
        score("psnr", [RNG.random((1, 3, 4, 4))], [RNG.random((1, 3, 4, 5))])

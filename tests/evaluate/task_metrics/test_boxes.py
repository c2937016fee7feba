"""Mean average precision by hand, by brute force, and of every layout that is read."""

import numpy as np
import pytest

from onnxlowrank.errors import OptionError
from onnxlowrank.evaluate.task_metrics import BUILT_IN
from onnxlowrank.evaluate.task_metrics.base import Given
from onnxlowrank.evaluate.task_metrics.boxes import average_precision, matched
from onnxlowrank.evaluate.task_metrics.detections import overlaps, reader_of

RNG = np.random.default_rng(11)
CORNERS = np.array([[10.0, 10, 30, 40], [11, 10, 30, 40], [50, 50, 60, 60], [100, 20, 130, 30], [10, 10, 30, 40]])
SCORES = np.array([0.9, 0.8, 0.6, 0.3, 0.7])
CLASSES = np.array([0, 0, 1, 1, 1])
SHOWN = [(0.9, 0), (0.7, 1), (0.6, 1), (0.3, 1)]
"""Of these, the second is suppressed by the first, the last, of another class, not."""


def centred(corners):
    return np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)


def filled(rows, count=20):
    """Return rows, and anchors on which nothing is found, as one sample of a head."""
    nothing = np.zeros((count - len(rows), rows.shape[1]))
    nothing[:, 2:4] = 5
    return np.concatenate([rows, nothing])[None].astype("f")


def by_class(factor=1.0):
    scores = np.zeros((5, 3))
    scores[np.arange(5), CLASSES] = SCORES / factor
    return scores


def objectness():
    return np.concatenate([centred(CORNERS), np.full((5, 1), 0.95), by_class(0.95)], axis=1)


HEAD = np.concatenate([centred(CORNERS), by_class()], axis=1)
AFTER = np.concatenate([CORNERS, SCORES[:, None], CLASSES[:, None]], axis=1)[[0, 4, 2, 3]]
KEPT = [0, 4, 2, 3]
BACKGROUND = np.concatenate([1 - by_class().sum(axis=1, keepdims=True), by_class()], axis=1)
LAYOUTS = {
    "head": {"y": filled(HEAD).swapaxes(1, 2)},
    "head, channels last": {"y": filled(HEAD)},
    "head with objectness": {"y": filled(objectness())},
    "after suppression": {"y": AFTER[None]},
    "outputs, before": {"boxes": CORNERS[None], "scores": by_class()[None]},
    "outputs, before, centred": {"boxes": centred(CORNERS)[None], "scores": by_class()[None]},
    "outputs, before, flipped": {"boxes": CORNERS[None], "scores": by_class().T[None]},
    "outputs with a background": {"boxes": CORNERS[None], "scores": BACKGROUND[None]},
    "outputs, after": {"b": CORNERS[KEPT], "s": SCORES[KEPT], "c": CLASSES[KEPT]},
    "outputs, after, counted": {
        "b": np.concatenate([CORNERS[KEPT], np.zeros((2, 4))])[None],
        "c": np.concatenate([CLASSES[KEPT], np.zeros(2)])[None].astype("f"),
        "s": np.concatenate([SCORES[KEPT], np.full(2, 0.5)])[None],
        "n": np.array([4.0]),
    },
}


def judge(original, others):
    about = Given(original, dict.fromkeys(original[0]))
    return BUILT_IN["boxes"](about)(others).of(np.arange(len(original)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    outputs = LAYOUTS[layout]
    (found,) = reader_of(Given([outputs], dict.fromkeys(outputs)))(outputs)
    assert [(round(a, 5), b) for a, b in zip(found.scores.tolist(), found.classes.tolist(), strict=True)] == SHOWN
    np.testing.assert_allclose(found.boxes, CORNERS[KEPT], atol=1e-4)
    assert judge([outputs], [outputs]) == 100


def test_layouts_of_several_samples():
    two = {"y": np.concatenate([filled(HEAD), filled(HEAD[:2])]).swapaxes(1, 2)}
    found = reader_of(Given([two], {"y": None}, batch=2))(two)
    assert [len(one.scores) for one in found] == [4, 1]


def test_average_precision_by_hand():
    right = np.array([[True], [False], [True]])
    assert average_precision(right, 2).tolist() == pytest.approx([0.5 * 1 + 0.5 * 2 / 3])
    assert average_precision(right, 4).tolist() == pytest.approx([0.25 * 1 + 0.25 * 2 / 3])
    assert average_precision(right[1:2], 2).tolist() == [0]


def test_every_truth_is_found_once():
    overlap = np.array([[0.8, 0.6], [0.72, 0.1], [0.3, 0.55]])
    found = matched(overlap)
    assert found[:, 0].tolist() == [True, False, True]  # from 0.50 on
    assert found[:, 4].tolist() == [True, False, False]  # from 0.70 on
    assert not found[:, 7].any()  # from 0.85 on


def test_overlaps_are_those_of_pixels():
    corners = np.sort(RNG.integers(0, 12, (8, 2, 2)), axis=1).reshape(8, 4).astype(float)
    pixels = [{(x, y) for x in range(int(a), int(c)) for y in range(int(b), int(d))} for a, b, c, d in corners.tolist()]
    expected = [[len(a & b) / len(a | b) if a | b else 0 for b in pixels] for a in pixels]
    np.testing.assert_allclose(overlaps(corners, corners), expected)


def test_a_lost_detection_and_a_false_one():
    """Two classes, two levels of truth: one class is found as before, of the other one in two, behind a false one."""
    before = {"b": CORNERS[KEPT], "s": SCORES[KEPT], "c": CLASSES[KEPT]}
    wrong = CORNERS[KEPT] + np.array([[0.0], [200.0], [0.0], [0.0]])
    after = {"b": wrong[:3], "s": np.array([0.9, 0.8, 0.6]), "c": CLASSES[KEPT][:3]}
    # class 0: 1; class 1: three to be found, the first answer is wrong, the second right: 1/3 * 1/2
    assert judge([before], [after]) == pytest.approx(100 * (1 + 1 / 6) / 2)


def test_boxes_that_move_lose_the_narrow_levels():
    before = {"b": np.array([[0.0, 0, 10, 10]]), "s": np.array([0.9]), "c": np.array([0])}
    after = before | {"b": np.array([[1.0, 0, 11, 10]])}  # overlap 90 / 110 = 0.818: seven levels of ten
    assert judge([before], [after]) == pytest.approx(70)


def test_inputs_on_which_nothing_is_shown():
    nothing = {"b": np.zeros((0, 4)), "s": np.zeros(0), "c": np.zeros(0, int)}
    one = {"b": np.array([[0.0, 0, 10, 10]]), "s": np.array([0.9]), "c": np.array([0])}
    assert judge([one, nothing], [one, nothing]) == 100
    false = one | {"s": np.array([0.95])}
    assert judge([one, nothing], [one, false]) == 50
    about = Given([one, nothing], dict.fromkeys(one))
    assert BUILT_IN["boxes"](about)([one, false]).of(np.array([1, 1])) == 100


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ({"y": np.zeros((1, 3))}, r"--metric boxes reads detections: .* the outputs are y float64 \[1, 3\]"),
        ({"y": 9 * filled(HEAD)}, "scores in 0..1"),
        ({"y": filled(HEAD) * np.where(np.arange(7) == 2, -1, 1)}, "have no area: what it gives has yet to be decoded"),
        ({"y": filled(HEAD) * (np.arange(7) < 4)}, "finds nothing of a score of 0.25"),
    ],
)
def test_refusals(outputs, says):
    with pytest.raises(OptionError, match=says):
        judge([outputs], [outputs])

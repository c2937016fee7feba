"""Detections in the outputs of a network, as detectors are exported.

The layout is told by the outputs of the original network:

- ``[N, 4 + C, A]``, fewer channels than anchors: centre, size and the scores of ``C`` classes (YOLOv8 and later);
- ``[N, A, 4 + C]``, the same the other way round, or ``[N, A, 5 + C]`` with an objectness before the classes, by which
  their scores are multiplied (YOLOv5, v7, X): that it is one shows where it is high, as some class is as well;
- ``[N, M, 6]``, corners, score and class, a whole number: after the network's own suppression;
- boxes ``[N, M, 4]`` (or ``[M, 4]``) and scores ``[N, M]``, ``[N, M, C]`` or ``[N, C, M]`` as outputs of their own,
  perhaps classes ``[N, M]`` as whole numbers and their count ``[N]``: with classes, after the network's own
  suppression. Boxes are corners unless some third number is less than the first: then centre and size. Class scores
  that add up to 1 have the background as their first class.

Where the network suppresses none itself, overlapping boxes of one class are suppressed here, at an overlap of 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.evaluate.task_metrics.base import Array, Floats, Given, is_float

LEAST, SHOWN = 0.05, 0.25
"""Scores below the first are no detections; from the second on they are shown."""
_OVERLAP = 0.5
_MOST = 1000

WANTED = (
    "detections: a head [N, 4+C, A], [N, A, 4+C] or [N, A, 5+C] with scores in 0..1, [N, M, 6] after suppression, or "
    "boxes [N, M, 4] and scores [N, M], [N, M, C] or [N, C, M]"
)


@dataclass(frozen=True, eq=False)
class Detections:
    """What is found in one sample.

    Attributes:
        boxes: Corners ``[n, 4]``.
        scores: ``[n]``, falling.
        classes: ``[n]``.
    """

    boxes: Floats
    scores: Floats
    classes: NDArray[np.int64]


Reader = Callable[[Mapping[str, Array]], list[Detections]]
"""From the outputs for one input to what is found in each of its samples."""


def reader_of(given: Given) -> Reader:
    """Return what reads detections off outputs laid out like the original's.

    Raises:
        OptionError: If they are laid out in none of the ways known.
    """
    outputs = {name: [one[name] for one in given.original] for name in given.axes}
    found = _separate(outputs) or _suppressed_rows(outputs) or _head(outputs)
    if found is None:
        raise given.unfit("boxes", WANTED)
    return found


def _suppressed_rows(outputs: Mapping[str, list[Array]]) -> Reader | None:
    """Return the reader of a single output ``[N, M, 6]``."""
    rows = [name for name, arrays in outputs.items() if arrays[0].ndim == 3 and arrays[0].shape[2] == 6]
    if len(rows) != 1:
        return None
    (name,) = rows
    every = np.concatenate([one.reshape(-1, 6) for one in outputs[name]])
    if not (_is_whole(every[:, 5]) and _is_share(every[:, 4])):
        return None
    return lambda one: [_kept(found[:, :4], found[:, 4], found[:, 5]) for found in one[name].astype(np.float64)]


def _head(outputs: Mapping[str, list[Array]]) -> Reader | None:
    """Return the reader of a single output that says something of every anchor."""
    heads = [name for name, arrays in outputs.items() if _is_head(arrays[0])]
    if len(heads) != 1:
        return None
    (name,) = heads
    flipped = outputs[name][0].shape[1] < outputs[name][0].shape[2]
    arrays = [np.swapaxes(one, 1, 2) if flipped else one for one in outputs[name]]
    every = np.concatenate([one.reshape(-1, one.shape[2]) for one in arrays]).astype(np.float64)
    if not _is_share(every[:, 4:]):
        return None
    with_objectness = not flipped and _has_objectness(every[:, 4:])

    def read(one: Mapping[str, Array]) -> list[Detections]:
        found = []
        for rows in _rows(one[name], flipped):
            scores = rows[:, 5:] * rows[:, 4:5] if with_objectness else rows[:, 4:]
            found.append(_suppressed(_corners(rows[:, :4]), scores))
        return found

    return read


def _rows(array: Array, flipped: bool) -> Iterator[Floats]:
    """Yield the rows of every sample, a row a box."""
    for sample in np.swapaxes(array, 1, 2) if flipped else array:
        yield sample.astype(np.float64)


def _is_head(array: Array) -> bool:
    return is_float(array) and array.ndim == 3 and min(array.shape[1:]) > 4


def _has_objectness(scores: Floats) -> bool:
    """Return whether the first of the scores ``[n, 1 + C]`` is high only where another one is as well."""
    high = scores[:, 0] >= SHOWN
    return scores.shape[1] > 1 and bool(high.any() and np.median(scores[high, 1:].max(axis=1)) >= SHOWN)


def _separate(outputs: Mapping[str, list[Array]]) -> Reader | None:
    """Return the reader of boxes and scores that are outputs of their own."""
    boxes = [name for name, arrays in outputs.items() if is_float(arrays[0]) and _is_boxes(arrays[0])]
    boxes = [name for name in boxes if "box" in name.lower()] if len(boxes) > 1 else boxes  # of four classes' scores
    if len(boxes) != 1 or len(outputs) < 2:
        return None
    (box,) = boxes
    shape = outputs[box][0].shape
    samples, count = (1, *shape[:1]) if len(shape) == 2 else shape[:2]
    each = [n for n, arrays in outputs.items() if n != box and arrays[0].size == samples * count and arrays[0].ndim]
    whole = [name for name in each if all(_is_whole(one) for one in outputs[name])]
    share = [name for name in each if name not in whole and all(_is_share(one) for one in outputs[name])]
    many = [n for n, arrays in outputs.items() if n != box and _is_scores(arrays, samples, count)]
    counts = [n for n, arrays in outputs.items() if arrays[0].size == samples != samples * count and arrays[0].ndim < 3]
    centred = not _are_corners(outputs[box])
    if len(share) == 1 and len(whole) <= 1:
        score, label = share[0], whole[0] if whole else None

        def read(one: Mapping[str, Array]) -> list[Detections]:
            rows, scores = one[box].reshape(samples, -1, 4), one[score].reshape(samples, -1)
            classes = one[label].reshape(samples, -1) if label else np.zeros(scores.shape)
            there = one[counts[0]].ravel().astype(int) if len(counts) == 1 else [scores.shape[1]] * samples
            found = []
            for number, n in enumerate(there):
                part = np.asarray(rows[number, :n], np.float64)
                part = _corners(part) if centred else part
                its = np.asarray(scores[number, :n], np.float64)
                found.append(_kept(part, its, classes[number, :n]) if label else _suppressed(part, its[:, None]))
            return found

        return read
    if len(many) == 1 and not share:
        (score,) = many
        flipped = outputs[score][0].shape[-1] == count and outputs[score][0].shape[-2] != count
        one_hot = all(np.allclose(one.sum(axis=-2 if flipped else -1), 1, atol=1e-3) for one in outputs[score])

        def read_classes(one: Mapping[str, Array]) -> list[Detections]:
            rows = np.asarray(one[box].reshape(samples, -1, 4), np.float64)
            scores = one[score].reshape(samples, *one[score].shape[-2:]).astype(np.float64)
            scores = np.swapaxes(scores, 1, 2) if flipped else scores
            return [
                _suppressed(_corners(part) if centred else part, its[:, 1:] if one_hot else its)
                for part, its in zip(rows, scores, strict=True)
            ]

        return read_classes
    return None


def _is_boxes(array: Array) -> bool:
    return array.ndim in (2, 3) and array.shape[-1] == 4


def _is_scores(arrays: list[Array], samples: int, count: int) -> bool:
    """Return whether an output is a score a box and class."""
    shape = arrays[0].shape
    sized = len(shape) in (2, 3) and count in shape[-2:] and (shape[0] == samples if len(shape) == 3 else samples == 1)
    return sized and min(shape[-2:]) > 1 and is_float(arrays[0]) and all(_is_share(one) for one in arrays)


def _is_whole(values: Array) -> bool:
    return bool((values == np.round(values)).all())


def _is_share(values: Array) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def _are_corners(boxes: list[Array]) -> bool:
    return all(bool((one[..., 2:] >= one[..., :2]).all()) for one in boxes)


def _corners(boxes: Floats) -> Floats:
    """Return the corners of boxes given as centre and size."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def _kept(boxes: Floats, scores: Floats, classes: Array) -> Detections:
    """Return the detections of a score that counts, the best first."""
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= LEAST]
    return Detections(boxes[order], scores[order], classes[order].astype(np.int64))


def _suppressed(boxes: Floats, scores: Floats) -> Detections:
    """Return the detections of boxes ``[n, 4]`` of the best of their class scores ``[n, C]``, without overlapping ones.

    Greedily, the best first, class by class; of more than a thousand only the best enter.
    """
    found = _kept(boxes, scores.max(axis=1), scores.argmax(axis=1))
    boxes, classes = found.boxes[:_MOST], found.classes[:_MOST]
    kept: list[int] = []
    for i in range(len(boxes)):
        same = [j for j in kept if classes[j] == classes[i]]
        if not same or overlaps(boxes[i : i + 1], boxes[same]).max() <= _OVERLAP:
            kept.append(i)
    return Detections(boxes[kept], found.scores[kept], classes[kept])


def overlaps(one: Floats, other: Floats) -> Floats:
    """Return the intersection over union of every pair of boxes, ``[n, m]``; 0 of boxes without area."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    common = np.maximum(high - low, 0).prod(axis=2)
    areas = [np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1) for boxes in (one, other)]
    either = areas[0][:, None] + areas[1][None, :] - common
    return np.where(either > 0, common / np.where(either > 0, either, 1.0), 0.0)

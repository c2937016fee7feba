"""``iou``: intersection over union of masks with those of the original network, averaged over the classes.

Intersections and unions are summed over all inputs, as usual in segmentation; a class that neither network sees counts
not. Of a single mask its inside alone counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.evaluate.task_metrics.base import Array, Given, Outputs, Score, is_float, same_shape


def iou(given: Given) -> Callable[[Outputs], Score]:
    """Judge masks.

    Read are class scores ``[N, classes, H, W]`` (or with the axis of a Softmax), of which the largest counts; a single
    map ``[N, 1, H, W]``, ``[N, H, W, 1]`` or ``[N, H, W]``, which is cut at 0.5 if the original's values are
    probabilities, at 0 otherwise; and classes as whole numbers.
    """
    name = given.only(
        "iou",
        "masks: class scores [N, classes, H, W], one map [N, 1, H, W] or [N, H, W], or classes as whole numbers",
        lambda array: array.ndim in (3, 4) and array.dtype.kind in "fiub",
    )
    maps = [one[name] for one in given.original]
    to_classes = _reading(maps, given.axes[name])
    truth = [to_classes(one) for one in maps]
    first = 1 if is_float(maps[0]) and _axis(maps[0], given.axes[name]) is None else 0

    def score(outputs: Outputs) -> Score:
        found = [to_classes(same_shape(before, one[name], name)) for before, one in zip(maps, outputs, strict=True)]
        count = 1 + max(int(one.max(initial=0)) for one in (*truth, *found))
        tables = np.array([_table(*pair, count) for pair in zip(truth, found, strict=True)])

        def of(chosen: NDArray[np.intp]) -> float:
            common, either = tables[chosen].sum(axis=0)[:, first:]
            seen = either > 0
            return 100 * float((common[seen] / either[seen]).mean()) if seen.any() else 100.0

        return Score(of)

    return score


def _axis(scores: Array, axis: int | None) -> int | None:
    """Return the axis of the classes of a map; None of a single mask."""
    if axis is None and scores.ndim == 4 and scores.shape[-1] > 1:
        axis = 1
    return None if axis is None or scores.shape[axis] == 1 else axis


def _reading(maps: list[Array], axis: int | None) -> Callable[[Array], NDArray[np.int64]]:
    """Return what makes classes of a map."""
    if not is_float(maps[0]):
        return lambda values: values.astype(np.int64)
    where = _axis(maps[0], axis)
    if where is not None:
        return lambda values: values.argmax(axis=where).astype(np.int64)
    cut = 0.5 if all(((one >= 0) & (one <= 1)).all() for one in maps) else 0.0
    return lambda values: (values > cut).astype(np.int64)


def _table(one: NDArray[np.int64], other: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return for every class the sizes of intersection and union, ``[2, count]``."""
    sizes = [np.bincount(classes.ravel(), minlength=count) for classes in (one, other)]
    common = np.bincount(one[one == other], minlength=count)
    return np.stack([common, sizes[0] + sizes[1] - common])

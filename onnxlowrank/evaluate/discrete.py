"""Outputs that are no tensors of real numbers: what they have in common, and how many rows they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def as_array(output: object) -> NDArray[np.generic] | None:
    """Return an output as one array: itself, or a list of maps with the same keys as rows; None where it is neither."""
    if isinstance(output, np.ndarray):
        return output
    if isinstance(output, list) and output:
        if all(isinstance(one, Mapping) for one in output):
            keys = list(output[0])
            if all(list(one) == keys for one in output):
                return np.array([list(one.values()) for one in output])
        elif all(isinstance(one, np.ndarray) and one.shape == output[0].shape for one in output):
            return np.stack(output)
    return None


def is_real(array: NDArray[np.generic]) -> bool:
    """Return whether an array holds real numbers."""
    return bool(np.issubdtype(array.dtype, np.floating))


def row_count(array: NDArray[np.generic]) -> int:
    """Return how many rows an array has: entries over all its axes but the last."""
    return array.size if array.ndim < 2 else int(np.prod(array.shape[:-1]))


def equal_entries(one: NDArray[np.generic], other: NDArray[np.generic]) -> tuple[int, int]:
    """Return how many entries of two arrays are equal, and of how many.

    Where their shapes differ it is rows that are found in both, in any order, of those of the one that has more.
    """
    if one.shape == other.shape:
        return int((one == other).sum()), int(one.size)
    rows, others = (Counter(map(bytes, _rows(array))) for array in (one, other))
    return (rows & others).total(), max(rows.total(), others.total())


def _rows(array: NDArray[np.generic]) -> NDArray[np.generic]:
    fixed = array.astype("S") if array.dtype.hasobject else array
    return np.ascontiguousarray(fixed.reshape(row_count(array), -1))

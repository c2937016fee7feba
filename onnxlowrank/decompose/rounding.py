"""Weights on a grid of steps, chosen together: what one is rounded by, the others of its row take back.

A response ``w x`` of inputs ``x`` with second moments ``H`` moves by ``(q - w) H (q - w)'`` in mean square when the row
``w`` becomes ``q`` steps. The nearest steps are the least of that only where ``H`` is diagonal. One column after the
other is rounded, those of most weight first, and the columns that are not yet rounded are regressed on the error
(Frantar et al. 2022, "GPTQ", Sec. 3, after Hassibi & Stork 1993); then columns are moved to the best step given all
others as long as that helps.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Integers = NDArray[np.int64]

_BLOCK = 64
_SWEEPS = 4


def round_together(weight: Float64Array, steps: Float64Array, moments: Float64Array, largest: int) -> Integers:
    """Return numbers of steps ``q [F, D]`` for which ``sum (q s - w) H (q s - w)'`` over rows is small.

    It is never larger than for the nearest steps.

    Args:
        weight: ``w [F, D]``.
        steps: ``s [F]``, the size of a step of every row.
        moments: ``H [D, D]``, positive definite.
        largest: Number of steps a weight may have, to either side.
    """
    wanted = weight / steps[:, None]
    nearest = np.clip(np.rint(wanted), -largest, largest)
    rounded = _descend(wanted, _one_by_one(wanted, moments, largest), moments, largest)
    worse = _error(rounded - wanted, moments) > _error(nearest - wanted, moments)
    return np.where(worse[:, None], nearest, rounded).astype(np.int64)


def _one_by_one(wanted: Float64Array, moments: Float64Array, largest: int) -> Float64Array:
    """Return steps rounded column by column, the errors fed back into the columns that are left."""
    order = np.argsort(-np.diag(moments), kind="stable")
    inverse = np.linalg.inv(moments[np.ix_(order, order)])
    factor = scipy.linalg.cholesky((inverse + inverse.T) / 2, check_finite=False)
    left = wanted[:, order]
    columns = left.shape[1]
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = np.empty((len(left), end - start))
        for column in range(start, end):
            rounded = np.clip(np.rint(left[:, column]), -largest, largest)
            error = (left[:, column] - rounded) / factor[column, column]
            left[:, column] = rounded
            left[:, column + 1 : end] -= error[:, None] * factor[column, column + 1 : end]
            errors[:, column - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    rounded = np.empty_like(left)
    rounded[:, order] = left
    return rounded


def _descend(wanted: Float64Array, rounded: Float64Array, moments: Float64Array, largest: int) -> Float64Array:
    """Return steps of which no single one is better elsewhere, given all others, or nearly."""
    slopes = (rounded - wanted) @ moments
    for _ in range(_SWEEPS):
        moved = False
        for column in range(len(moments)):
            best = np.clip(np.rint(rounded[:, column] - slopes[:, column] / moments[column, column]), -largest, largest)
            change = best - rounded[:, column]
            rows = np.flatnonzero(change)
            if len(rows):
                slopes[rows] += change[rows, None] * moments[column]
                rounded[:, column] = best
                moved = True
        if not moved:
            break
    return rounded


def _error(off: Float64Array, moments: Float64Array) -> Float64Array:
    errors: Float64Array = ((off @ moments) * off).sum(axis=1)
    return errors

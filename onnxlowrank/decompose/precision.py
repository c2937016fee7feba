"""Where products in float32 would overflow or vanish."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LARGEST = 1e15
"""Of a matrix in float32: sums of a hundred million squares stay below float32's largest number."""
_SMALLEST = 1e-12
"""Of the largest element: squares of what is a millionth of that are still normal numbers in float32."""


def squarable(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return numbers as they are, or in float64 where products of them would leave the range of float32.

    No product of four float32 numbers leaves the range of float64, and few are of ordinary size: for networks with
    ordinary numbers, and for nothing but zeros, products stay in float32, which is fast.

    Args:
        values: Any shape.
    """
    if values.dtype != np.float32 or not values.size:
        return values
    peak = max(float(values.max()), -float(values.min()))
    return values if peak == 0 or _SMALLEST <= peak <= _LARGEST else values.astype(np.float64)

"""Cholesky factors of Gram matrices that rounding has made indefinite."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from onnxlowrank.decompose.spectrum import Float64Array

_FURTHER = 4.0


def lower_cholesky(gram: Float64Array) -> Float64Array:
    """Return the lower Cholesky factor of a positive definite matrix ``[p, p]``, or of one as near as rounding.

    Sums of products in float32 are off by as much as the smallest eigenvalues are large, or more, where features are
    many and nearly depend on each other. Such a matrix has no factor, and the least multiple of the identity that
    gives it one is added: from float32's rounding of its trace on, four times as much a step.

    Raises:
        ValueError: If it is not finite.
    """
    added = 0.0
    least = float(np.finfo(np.float32).eps * np.trace(gram))
    while True:
        try:
            factor: Float64Array = scipy.linalg.cholesky(
                gram + added * np.eye(len(gram)) if added else gram, lower=True
            )
        except scipy.linalg.LinAlgError:
            added = max(_FURTHER * added, least, np.finfo(float).tiny)
        else:
            return factor

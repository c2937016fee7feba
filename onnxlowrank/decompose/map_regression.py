"""Regressions of the responses of many maps, each on a few features of its own, linear and through an activation.

What :mod:`onnxlowrank.decompose.regression` does for one group of features, for as many groups as there are maps at
once: the last link of a depthwise chain has thousands of systems of a few unknowns. A map's few unknowns do not need
all rows that are sampled for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxlowrank.decompose.activation import IDENTITY
from onnxlowrank.decompose.regression import PENALTIES, TINY, Samples
from onnxlowrank.decompose.spectrum import Float64Array

_MOST_ROWS = 8192
_BLOCK = 512


def fit_maps(
    samples: Samples, prior: Float64Array, ridge: float = 1e-2, nonlinear: bool = True
) -> tuple[Float64Array, Float64Array]:
    """Return weights ``[M, p]`` and biases ``[M]`` of the regression of every response on its own features.

    Args:
        samples: Features ``[n, M * p]``, those of one map after those of the other, and targets ``[n, M]``.
        prior: What the ridge draws to, ``[M, p]``.
        ridge: Weight of that pull, relative to the mean variance of a map's features.
        nonlinear: Whether the activation is taken into account (Zhang 2015, Eq. 6-11).
    """
    samples = samples.every(-(-len(samples.features) // _MOST_ROWS)).squarable()
    maps, p = prior.shape
    mean = samples.features.mean(axis=0, dtype=np.float64)
    gram = np.zeros((maps, p, p))
    for rows in _blocks(samples):
        x = _centred(samples, mean, rows, maps)
        gram += x.swapaxes(1, 2) @ x
    scale = np.maximum(np.trace(gram, axis1=1, axis2=2) / p, TINY)[:, None]
    system, pull = gram + (ridge * scale)[..., None] * np.eye(p), ridge * scale * prior

    def solved(weight: Float64Array | None, offset: Float64Array, penalty: float) -> tuple[Float64Array, Float64Array]:
        """Return weights and the mean response: linear, or with the auxiliary responses around the current fit."""
        cross, total = np.zeros((maps, p)), np.zeros(maps)
        for rows in _blocks(samples):
            x = _centred(samples, mean, rows, maps)
            shortcut = 0.0 if samples.shortcut is None else samples.shortcut[rows]
            z = samples.target[rows]
            if weight is not None:
                prediction = (x @ weight[..., None])[..., 0].T + offset + shortcut
                value = samples.activation(z)
                z = samples.activation.nearest(value, prediction.astype(value.dtype), penalty)
            z = z - shortcut
            cross += (x.swapaxes(1, 2) @ z.T[..., None])[..., 0]
            total += z.sum(axis=0, dtype=np.float64)
        return np.linalg.solve(system, (cross + pull)[..., None])[..., 0], total / len(samples.features)

    weight, offset = solved(None, np.zeros(maps), 0.0)
    for penalty in PENALTIES if nonlinear and samples.activation is not IDENTITY else ():
        weight, offset = solved(weight, offset, penalty)
    return weight, offset - (weight * mean.reshape(maps, p)).sum(axis=1)


def _centred(samples: Samples, mean: Float64Array, rows: slice, maps: int) -> np.ndarray:
    """Return features ``[M, rows, p]`` without their mean."""
    centred = samples.features[rows] - mean.astype(samples.features.dtype)
    return centred.reshape(len(centred), maps, -1).swapaxes(0, 1)


def _blocks(samples: Samples) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, len(samples.features), _BLOCK))

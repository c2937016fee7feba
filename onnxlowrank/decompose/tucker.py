"""Two successive SVDs of a kernel, over its input and its output maps (Denton 2014, Sec. 3.2.2; "Tucker-2" today).

The kernel ``[F, C, T]`` becomes a 1x1 convolution to ``K1`` maps, a core ``[K2, K1, T]`` with the kernel's taps and a
1x1 convolution from ``K2`` maps. Two SVDs in a row are within a factor of the best pair of subspaces;
higher-order orthogonal iteration takes the SVDs in turn until neither subspace improves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.decompose.spectrum import Float64Array, left_axes


@dataclass(frozen=True)
class Tucker2:
    """``kernel[f, c, t] ~ sum_kl outputs[f, k] core[k, l, t] inputs[c, l]``.

    Attributes:
        inputs: ``[C, K1]``.
        core: ``[K2, K1, T]``.
        outputs: ``[F, K2]``.
    """

    inputs: Float64Array
    core: Float64Array
    outputs: Float64Array

    def dense(self) -> Float64Array:
        """Return the kernel ``[F, C, T]``."""
        return _times(_times(self.core, self.inputs.T, 1), self.outputs.T, 0)

    def first(self, k1: int, k2: int) -> Tucker2:
        """Return the part of the first ``k1`` input and ``k2`` output axes."""
        return Tucker2(self.inputs[:, :k1], self.core[:k2, :k1], self.outputs[:, :k2])


def tucker_energy(kernel: NDArray[np.floating]) -> Float64Array:
    """Return ``[C + 1, F + 1]`` shares of ``|kernel|^2`` that ``two_svds(kernel, C, F).first(k1, k2)`` keeps.

    For all settings at once; ``two_svds(kernel, k1, k2)`` keeps at least as much, ``hooi`` no less than that.

    Args:
        kernel: ``[F, C, T]``.
    """
    outputs, inputs, _ = kernel.shape
    squares = (two_svds(kernel, inputs, outputs).core ** 2).sum(2).T
    energy = np.zeros((inputs + 1, outputs + 1))
    energy[1:, 1:] = squares.cumsum(0).cumsum(1)
    total = energy[-1, -1]
    return np.minimum(energy / total, 1.0) if total > 0 else np.ones_like(energy)


def two_svds(kernel: NDArray[np.floating], k1: int, k2: int) -> Tucker2:
    """Return the SVD over the input maps to rank ``k1``, then of what it leaves over the output maps to rank ``k2``.

    Args:
        kernel: ``[F, C, T]``.
        k1: At most ``C``.
        k2: At most ``F``.
    """
    exact = kernel.astype(np.float64)
    inputs = _axes(exact, 1, k1)
    compressed = _times(exact, inputs, 1)
    outputs = _axes(compressed, 0, k2)
    return Tucker2(inputs, _times(compressed, outputs, 0), outputs)


def hooi(kernel: NDArray[np.floating], start: Tucker2, sweeps: int = 10, tolerance: float = 1e-4) -> Tucker2:
    """Improve both subspaces in turn (higher-order orthogonal iteration); never worse than the start.

    Args:
        kernel: ``[F, C, T]``.
        start: Where to begin; only the spans of its factors count, which need not be orthonormal.
        sweeps: Most updates of both factors.
        tolerance: Stop when a sweep takes less than this share off the squared error.
    """
    exact = kernel.astype(np.float64)
    total = float((exact**2).sum())
    inputs, outputs = np.linalg.qr(start.inputs)[0], np.linalg.qr(start.outputs)[0]
    core = _times(_times(exact, inputs, 1), outputs, 0)
    kept = float((core**2).sum())
    for _ in range(sweeps):
        inputs = _axes(_times(exact, outputs, 0), 1, inputs.shape[1])
        compressed = _times(exact, inputs, 1)
        outputs = _axes(compressed, 0, outputs.shape[1])
        core = _times(compressed, outputs, 0)
        before, kept = kept, float((core**2).sum())
        if kept - before <= tolerance * (total - before):
            break
    return Tucker2(inputs, core, outputs)


def _axes(kernel: Float64Array, mode: int, rank: int) -> Float64Array:
    """Leading left singular vectors of the unfolding over ``mode``."""
    unfolded = np.moveaxis(kernel, mode, 0).reshape(kernel.shape[mode], -1)
    return left_axes(unfolded, rank)[1]


def _times(kernel: Float64Array, matrix: Float64Array, mode: int) -> Float64Array:
    """Contract ``mode`` of the kernel with the rows of the matrix."""
    return np.moveaxis(np.tensordot(kernel, matrix, (mode, 0)), -1, mode)

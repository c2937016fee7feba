"""Activations ``r(.)`` and the one-dimensional problem of the nonlinear solver (Zhang 2015, Eq. 9).

For every response the solver needs the ``z`` that minimises ``(r(y) - r(z))^2 + penalty * (z - prediction)^2``.
Where ``r`` is piecewise linear (ReLU, LeakyReLU, Clip, the identity) the minimum on every piece is a clipped
weighted mean, Eq. 10 and 11 being the two pieces of ReLU, and the best piece wins: exact. For smooth activations
it is found by Gauss-Newton steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.floating]

_STEPS, _FIRST_STEPS = 12, 3
"""Of Gauss-Newton; after the first ones those numbers go on that have not arrived."""
_ARRIVED = 1e-2
"""Size of a step that is not worth another one."""
_FLAT = 0.5
"""Slope below which a descent may be stuck."""


class Activation(Protocol):
    """An element-wise function ``r`` with the solution of Zhang's Eq. 9."""

    @property
    def name(self) -> str:
        """Name shown in reports."""
        ...

    def __call__(self, x: Array) -> Array:
        """Return ``r(x)``."""
        ...

    def nearest(self, value: Array, prediction: Array, penalty: float) -> Array:
        """Return the ``z`` minimising ``(value - r(z))^2 + penalty * (z - prediction)^2``, elementwise."""
        ...


@dataclass(frozen=True)
class PiecewiseLinear:
    """``r(x) = slope * x + offset`` on each piece ``(low, high, slope, offset)``; they cover the line, ascending."""

    name: str
    pieces: tuple[tuple[float, float, float, float], ...]

    def __call__(self, x: Array) -> Array:
        """Return ``r(x)``."""
        out = np.empty_like(x)
        for low, _, slope, offset in self.pieces:  # ascending: a later piece overwrites what lies above its low end
            np.copyto(out, slope * x + offset, where=x >= low)
        return out

    def nearest(self, value: Array, prediction: Array, penalty: float) -> Array:
        """Return the exact minimiser of Eq. 9."""
        best: Array | None = None
        best_cost: Array | None = None
        for low, high, slope, offset in self.pieces:
            if slope:
                z = value - offset
                z *= slope
                z += penalty * prediction
                z /= penalty + slope * slope
                np.clip(z, low, high, out=z)
            else:
                z = np.clip(prediction, low, high)
            cost = z * -slope
            cost += value
            cost -= offset
            cost *= cost
            away = z - prediction
            away *= away
            away *= penalty
            cost += away
            if best is None or best_cost is None:
                best, best_cost = z, cost
                continue
            better = cost < best_cost
            np.copyto(best, z, where=better)
            np.copyto(best_cost, cost, where=better)
        assert best is not None
        return best


@dataclass(frozen=True)
class Smooth:
    """A differentiable activation, by name: ``sigmoid``, ``tanh``, ``silu``, ``hard_swish`` or ``gelu``."""

    name: str

    def __call__(self, x: Array) -> Array:
        """Return ``r(x)``."""
        return _SMOOTH[self.name](x)[0]

    def nearest(self, value: Array, prediction: Array, penalty: float) -> Array:
        """Return the best point of damped Gauss-Newton iterations on Eq. 9.

        They start at the prediction, and where that is on a flat part of ``r`` also next to it, at plus or minus 1 (of
        GELU, which is least at -0.75, at -0.5): the result is never worse than the prediction.
        """
        found, cost, step = self._descend(prediction.copy(), value, prediction, penalty, _FIRST_STEPS)
        moving = np.abs(step) > _ARRIVED
        found[moving], cost[moving], _ = self._descend(
            found[moving], value[moving], prediction[moving], penalty, _STEPS - _FIRST_STEPS
        )
        low = -0.5 if self.name == "gelu" else -1
        flat = ((prediction < low) | (prediction > 1)) & (np.abs(_SMOOTH[self.name](prediction)[1]) < _FLAT)
        start = np.clip(prediction[flat], low, 1)
        other, other_cost, _ = self._descend(start, value[flat], prediction[flat], penalty, _STEPS)
        found[flat] = np.where(other_cost < cost[flat], other, found[flat])
        return found

    def _descend(
        self, z: Array, value: Array, prediction: Array, penalty: float, steps: int
    ) -> tuple[Array, Array, Array]:
        """Improve ``z`` in place by steps, none of which raises the cost; return it, the cost and the last step."""
        function = _SMOOTH[self.name]
        r, slope = function(z)
        cost = (value - r) ** 2 + penalty * (z - prediction) ** 2
        damping, step = np.ones_like(z), np.zeros_like(z)
        for _ in range(steps):
            step = (slope * (value - r) - penalty * (z - prediction)) / (slope * slope + penalty)
            trial = z + damping * step
            trial_r, trial_slope = function(trial)
            trial_cost = (value - trial_r) ** 2 + penalty * (trial - prediction) ** 2
            better = trial_cost < cost
            for kept, new in ((z, trial), (r, trial_r), (slope, trial_slope), (cost, trial_cost)):
                np.copyto(kept, new, where=better)
            damping = np.where(better, np.minimum(2 * damping, 1), damping / 4)
        return z, cost, step


def _sigmoid(x: Array) -> tuple[Array, Array]:
    s = 0.5 * np.tanh(0.5 * x) + 0.5
    return s, s * (1 - s)


def _tanh(x: Array) -> tuple[Array, Array]:
    t = np.tanh(x)
    return t, 1 - t * t


def _silu(x: Array) -> tuple[Array, Array]:
    s, ds = _sigmoid(x)
    return x * s, s + x * ds


def _hard_swish(x: Array) -> tuple[Array, Array]:
    gate = np.clip(x / 6 + 0.5, 0, 1)
    return x * gate, np.where(x <= -3, 0, np.where(x >= 3, 1, x / 3 + 0.5)).astype(x.dtype)


def _gelu(x: Array) -> tuple[Array, Array]:
    below = scipy.special.ndtr(x)
    slope = below + x * (np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)).astype(x.dtype)
    return x * below, slope


_SMOOTH = {"sigmoid": _sigmoid, "tanh": _tanh, "silu": _silu, "hard_swish": _hard_swish, "gelu": _gelu}

IDENTITY = PiecewiseLinear("none", ((-math.inf, math.inf, 1.0, 0.0),))
RELU = PiecewiseLinear("ReLU", ((-math.inf, 0.0, 0.0, 0.0), (0.0, math.inf, 1.0, 0.0)))


def leaky_relu(alpha: float) -> PiecewiseLinear:
    """Return ``x`` for positive ``x`` and ``alpha * x`` otherwise."""
    return PiecewiseLinear("LeakyReLU", ((-math.inf, 0.0, alpha, 0.0), (0.0, math.inf, 1.0, 0.0)))


def clip(low: float, high: float) -> PiecewiseLinear:
    """Return ``min(max(x, low), high)``; ReLU6 is ``clip(0, 6)``."""
    pieces = ((-math.inf, low, 0.0, low), (low, high, 1.0, 0.0), (high, math.inf, 0.0, high))
    return PiecewiseLinear("Clip", tuple(piece for piece in pieces if piece[0] < piece[1]))

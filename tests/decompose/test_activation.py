"""Zhang's Eq. 9 against a search over a fine grid."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxlowrank.decompose.activation import IDENTITY, RELU, Smooth, clip, leaky_relu

PIECEWISE = [IDENTITY, RELU, leaky_relu(0.1), leaky_relu(1.5), clip(0, 6), clip(-1, math.inf), clip(-math.inf, 2)]
SMOOTH = [Smooth(name) for name in ("sigmoid", "tanh", "silu", "hard_swish", "gelu")]
GRID = np.linspace(-15, 15, 300_001)
numbers = st.floats(-8, 8, width=32)


def cost(activation, value, prediction, penalty, z):
    return (value - activation(z)) ** 2 + penalty * (z - prediction) ** 2


@given(y=numbers, prediction=numbers, penalty=st.sampled_from([0.01, 1.0, 10.0]), which=st.sampled_from(PIECEWISE))
def test_piecewise_linear_minimum_is_exact(y, prediction, penalty, which):
    value = which(np.array([y]))
    z = which.nearest(value, np.array([prediction]), penalty)
    assert cost(which, value, prediction, penalty, z) <= cost(which, value, prediction, penalty, GRID).min() + 1e-9


@given(y=numbers, prediction=numbers)
def test_relu_is_equations_10_and_11(y, prediction):
    penalty = 0.01
    value = max(y, 0.0)
    z0, z1 = min(0.0, prediction), max(0.0, (penalty * prediction + value) / (penalty + 1))
    best = min((z0, z1), key=lambda z: (value - max(z, 0)) ** 2 + penalty * (z - prediction) ** 2)
    found = RELU.nearest(np.array([value]), np.array([prediction]), penalty)[0]
    assert cost(RELU, value, prediction, penalty, np.array([found])) == pytest.approx(
        cost(RELU, value, prediction, penalty, np.array([best])), abs=1e-12
    )


@pytest.mark.parametrize("activation", SMOOTH, ids=lambda a: a.name)
def test_smooth_minimum_beats_the_prediction_and_comes_near_the_grid(activation):
    rng = np.random.default_rng(0)
    y, prediction = rng.normal(0, 2, (2, 200))
    value = activation(y)
    for penalty in (0.1, 1.0):
        z = activation.nearest(value, prediction, penalty)
        reached = cost(activation, value, prediction, penalty, z)
        assert (reached <= (value - activation(prediction)) ** 2 + 1e-12).all()
        lowest = cost(activation, value[:, None], prediction[:, None], penalty, GRID[None, ::30]).min(axis=1)
        assert (reached <= lowest + 1e-3).mean() >= 0.97  # a local minimum may remain, rarely


@pytest.mark.parametrize("activation", SMOOTH, ids=lambda a: a.name)
def test_smooth_slopes(activation):
    from onnxlowrank.decompose.activation import _SMOOTH

    x = np.linspace(-5, 5, 1001) + 1e-4
    step = 1e-6
    numeric = (activation(x + step) - activation(x - step)) / (2 * step)
    np.testing.assert_allclose(_SMOOTH[activation.name](x)[1], numeric, atol=1e-5)

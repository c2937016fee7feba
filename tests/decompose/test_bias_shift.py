"""The shift behind which the mean of what an activation gives is what it was."""

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlowrank.decompose.activation import IDENTITY, RELU, Smooth, leaky_relu
from onnxlowrank.decompose.bias_shift import bias_shift

ACTIVATIONS = [IDENTITY, RELU, leaky_relu(0.1), Smooth("sigmoid"), Smooth("tanh")]


@settings(deadline=None)
@given(st.sampled_from(ACTIVATIONS), st.integers(1, 3), st.integers(2, 200), st.integers(0, 99))
def test_it_is_the_root_that_scipy_finds(activation, maps, rows, seed):
    rng = np.random.default_rng(seed)
    wanted = rng.normal(size=(rows, maps)).astype(np.float32)
    found = (wanted + 0.3 * rng.normal(size=wanted.shape) + 0.1).astype(np.float32)
    shift = bias_shift(activation, wanted, found)
    for one in range(maps):

        def missing(amount, one=one):
            mean = activation(found[:, one].astype(np.float64) + amount).mean()
            return activation(wanted[:, one].astype(np.float64)).mean() - mean

        assert abs(missing(shift[one])) <= 1e-6
        if np.ptp(activation(wanted[:, one])) > 0.1:
            assert shift[one] == pytest.approx(scipy.optimize.brentq(missing, -50, 50), abs=1e-4)


def test_without_an_activation_it_is_the_difference_of_the_means():
    rng = np.random.default_rng(0)
    wanted, found = (rng.normal(size=(64, 5)).astype(np.float32) for _ in range(2))
    assert bias_shift(IDENTITY, wanted, found) == pytest.approx((wanted - found).mean(axis=0), abs=1e-5)


def test_what_a_relu_hides_has_no_say():
    wanted = np.array([[-5.0], [-4.0], [1.0], [2.0]], np.float32)
    found = wanted + np.array([[3.0], [3.0], [-0.1], [-0.1]], np.float32)
    assert bias_shift(RELU, wanted, found) == pytest.approx([0.1], abs=1e-5)


def test_a_map_that_gives_nothing_stays():
    wanted = np.array([[-5.0], [-4.0]], np.float32)
    assert bias_shift(RELU, wanted, wanted + 1).tolist() == [0.0]

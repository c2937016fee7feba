"""Regressions of many maps at once against those of one after the other."""

import numpy as np
import pytest

from onnxlowrank.decompose.activation import IDENTITY, RELU, Smooth
from onnxlowrank.decompose.map_regression import fit_maps
from onnxlowrank.decompose.regression import Samples, fit_low_rank

RNG = np.random.default_rng(8)
MAPS, P = 6, 5


def samples(n, activation, shortcut=False):
    features = (RNG.standard_normal((n, MAPS * P)) @ RNG.standard_normal((MAPS * P, MAPS * P)) / 5 + 0.4).astype("f")
    weights = RNG.standard_normal((MAPS, P))
    target = np.einsum("nmp,mp->nm", features.reshape(n, MAPS, P), weights) + 0.2 * RNG.standard_normal((n, MAPS))
    added = RNG.standard_normal((n, MAPS)).astype("f") if shortcut else None
    target = target if added is None else target + added
    return Samples(features, target.astype("f"), added, activation), weights


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("activation", [IDENTITY, RELU, Smooth("silu")])
@pytest.mark.parametrize("nonlinear", [True, False])
def test_every_map_is_fitted_as_it_would_be_alone(activation, shortcut, nonlinear):
    given, weights = samples(400, activation, shortcut)  # few enough for one phase there
    prior = weights + 0.3 * RNG.standard_normal(weights.shape)
    found, biases = fit_maps(given, prior, ridge=0.05, nonlinear=nonlinear)
    for one in range(MAPS):
        part = given.part(np.arange(one * P, (one + 1) * P), np.array([one]))
        alone = fit_low_rank(part, 1, prior=prior[one][:, None], ridge=0.05, nonlinear=nonlinear)
        np.testing.assert_allclose(found[one], (alone.left @ alone.right.T)[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(biases[one], alone.bias[0], rtol=1e-3, atol=1e-4)


def test_the_linear_fit_is_ridge_regression_in_closed_form():
    given, _ = samples(300, IDENTITY)
    found, biases = fit_maps(given, np.zeros((MAPS, P)), ridge=0.5)
    x = given.features.astype(np.float64).reshape(-1, MAPS, P)
    for one in range(MAPS):
        centred = x[:, one] - x[:, one].mean(0)
        gram = centred.T @ centred
        system = gram + 0.5 * np.trace(gram) / P * np.eye(P)
        y = given.target[:, one].astype(np.float64)
        weight = np.linalg.solve(system, centred.T @ (y - y.mean()))
        np.testing.assert_allclose(found[one], weight, rtol=1e-4, atol=1e-6)
        assert biases[one] == pytest.approx(y.mean() - x[:, one].mean(0) @ weight, abs=1e-5)


def test_some_of_many_rows_are_enough_and_what_does_not_vary_keeps_its_prior():
    given, weights = samples(30_000, RELU)
    given.features[:, :P] = 1.0
    found, biases = fit_maps(given, weights)
    np.testing.assert_allclose(found[0], weights[0], atol=1e-6)
    assert np.abs(found[1:] - weights[1:]).max() < 0.05
    assert np.isfinite(biases).all()

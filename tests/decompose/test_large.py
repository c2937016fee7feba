"""Products that are in float32 where they are large, against float64."""

import numpy as np
import pytest

from onnxlowrank.decompose import _als
from onnxlowrank.decompose._als import joint_als
from onnxlowrank.decompose.metric import Metric
from onnxlowrank.decompose.outer_product import slice_terms

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e60])
def test_gradients_under_a_large_covariance(scale):
    channels, taps = 128, 9
    rows = RNG.standard_normal((2000, channels * taps)) * np.exp(RNG.standard_normal(channels * taps))
    covariance = scale * (rows.T @ rows) / len(rows)
    metric = Metric(np.ones(5), np.eye(channels), np.eye(taps), covariance=covariance)
    error = 1e-3 * RNG.standard_normal((5, channels, taps))
    exact = (error.reshape(5, -1) @ covariance).reshape(error.shape)
    found = metric.gradient(error)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    assert not np.array_equal(found, exact), "it was in float32"
    assert (metric.gradient(np.zeros_like(error)) == 0).all()


@pytest.mark.parametrize("scale", [1.0, 1e25])
def test_sums_of_terms_near_a_large_tensor(monkeypatch, scale):
    """What float32 cannot hold is computed in float64."""
    planted = np.einsum("fk,ck,tk->fct", *(RNG.standard_normal((size, 12)) for size in (64, 512, 9)))
    tensor = scale * (planted + 0.5 * RNG.standard_normal(planted.shape))
    start = slice_terms(tensor, 12)
    found = joint_als(tensor, start, sweeps=10)
    monkeypatch.setattr(_als, "_LARGE", tensor.size + 1)
    exact = joint_als(tensor, start, sweeps=10)
    total = float((tensor**2).sum())
    assert found.squared_error(tensor) == pytest.approx(exact.squared_error(tensor), abs=1e-5 * total)
    assert found.squared_error(tensor) < 0.9 * start.squared_error(tensor)

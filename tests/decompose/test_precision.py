"""Products in float32 where it holds them, in float64 where not."""

import numpy as np
import pytest

from onnxlowrank.decompose.moments import Moments
from onnxlowrank.decompose.outer_product import greedy_terms
from onnxlowrank.decompose.patches import PatchMoments
from onnxlowrank.decompose.precision import squarable
from onnxlowrank.decompose.regression import Samples, fit_low_rank
from onnxlowrank.graph.layer import Geometry, Layer

RNG = np.random.default_rng(5)
SCALES = pytest.mark.parametrize("scale", [1.0, 1e18, 1e30, 1e-20, 1e-30])


def rows(scale: float, count: int = 300, columns: int = 12) -> np.ndarray:
    mixed = RNG.standard_normal((count, columns)) @ RNG.standard_normal((columns, columns)) + 3
    return (scale * mixed).astype(np.float32)


@pytest.mark.parametrize("ordinary", [np.zeros((2, 2)), np.ones((2, 2)), np.full((2, 2), -1e14), np.zeros((0, 2))])
def test_ordinary_numbers_stay_as_they_are(ordinary):
    values = ordinary.astype(np.float32)
    assert squarable(values) is values
    assert squarable(ordinary) is ordinary


@pytest.mark.parametrize("value", [1e16, -3e38, 1e-13, -1e-38])
def test_others_become_double(value):
    widened = squarable(np.array([0, value], np.float32))
    assert widened.dtype == np.float64
    assert widened[1] == np.float32(value)


@SCALES
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_moments(scale):
    x = rows(scale)
    moments = Moments(12)
    for part in np.array_split(x, 7):
        moments.add(part)
    expected = np.cov(x.astype(np.float64), rowvar=False, bias=True)
    np.testing.assert_allclose(moments.covariance, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@SCALES
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_moments_of_patches(scale):
    x = rows(scale)
    moments = PatchMoments(3, 4)
    moments.add(x)
    whole = np.cov(x.astype(np.float64), rowvar=False, bias=True)
    split = whole.reshape(3, 4, 3, 4)
    for found, expected in (
        (moments.covariance, whole),
        (moments.inputs, np.einsum("itjt->ij", split)),
        (moments.taps, np.einsum("csct->st", split)),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@SCALES
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_responses_to_white_inputs(scale):
    weight = rows(scale, 6, 8)
    layer = Layer("l", "Gemm", weight, None, Geometry(), "x", "y", ("l",), "y")
    np.testing.assert_allclose(layer.white, weight.astype(np.float64) @ weight.astype(np.float64).T, rtol=1e-4)


@SCALES
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_regression_does_not_depend_on_the_scale(scale):
    """Of features, of targets, or of both: the factors are those of ordinary numbers, scaled."""
    features, mixing = (RNG.standard_normal(shape).astype(np.float32) for shape in ((300, 12), (12, 5)))
    target = features @ mixing
    for in_features, in_target in ((scale, 1.0), (1.0, scale), (scale, scale)):
        scaled = Samples(features * np.float32(in_features), target * np.float32(in_target))
        fitted = fit_low_rank(scaled, 5, ridge=1e-9)
        found = fitted.left @ fitted.right.T * (in_features / in_target)
        np.testing.assert_allclose(found, mixing.T, rtol=0, atol=1e-3)


@SCALES
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_greedy_terms_do_not_depend_on_the_scale(scale):
    tensor = np.einsum("fk,ck,tk->fct", *(RNG.standard_normal((n, 2)) for n in (5, 4, 9)))
    ordinary, scaled = greedy_terms(tensor, 2), greedy_terms(tensor * scale * scale, 2)
    np.testing.assert_allclose(scaled.dense() / scale / scale, ordinary.dense(), atol=1e-6, rtol=0)

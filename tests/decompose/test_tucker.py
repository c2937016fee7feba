"""Two SVDs and orthogonal iteration against NumPy's SVD and tensorly."""

import numpy as np
import pytest
import tensorly
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import partial_tucker

from onnxlowrank.decompose.tucker import Tucker2, hooi, tucker_energy, two_svds

SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 6), st.integers(1, 5))
SEEDS = st.integers(0, 2**31)


def error(kernel, tucker):
    return float(((kernel - tucker.dense()) ** 2).sum())


def planted(shape, k1, k2, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    outputs, inputs, taps = shape
    core = rng.normal(size=(k2, k1, taps))
    kernel = np.einsum("fk,klt,cl->fct", rng.normal(size=(outputs, k2)), core, rng.normal(size=(inputs, k1)))
    return kernel + noise * np.linalg.norm(kernel) / np.sqrt(kernel.size) * rng.normal(size=shape)


def by_definition(kernel, k1, k2):
    """The best approximation of the unfolding over C, then of its result over F."""
    outputs, inputs, taps = kernel.shape
    u, s, vt = np.linalg.svd(kernel.transpose(1, 0, 2).reshape(inputs, -1), full_matrices=False)
    once = ((u[:, :k1] * s[:k1]) @ vt[:k1]).reshape(inputs, outputs, taps).transpose(1, 0, 2)
    u, s, vt = np.linalg.svd(once.reshape(outputs, -1), full_matrices=False)
    return ((u[:, :k2] * s[:k2]) @ vt[:k2]).reshape(kernel.shape)


@settings(max_examples=25, deadline=None)
@given(SHAPES, SEEDS)
def test_every_setting_of_the_two_svds(shape, seed):
    outputs, inputs, taps = shape
    kernel = np.random.default_rng(seed).normal(size=shape)
    total = (kernel**2).sum()
    energy = tucker_energy(kernel)
    everything = two_svds(kernel, inputs, outputs)
    assert energy.shape == (inputs + 1, outputs + 1)
    np.testing.assert_array_equal(energy[0], 0)
    np.testing.assert_array_equal(energy[:, 0], 0)
    np.testing.assert_allclose(everything.dense(), kernel, atol=1e-12)
    for k1 in range(1, inputs + 1):
        for k2 in range(1, outputs + 1):
            tucker = two_svds(kernel, k1, k2)
            assert tucker.inputs.shape == (inputs, k1)
            assert tucker.core.shape == (k2, k1, taps)
            assert tucker.outputs.shape == (outputs, k2)
            np.testing.assert_allclose(tucker.dense(), by_definition(kernel, k1, k2), atol=1e-6)
            assert error(kernel, tucker) <= (1 - energy[k1, k2] + 1e-9) * total
            kept = 1 - error(kernel, everything.first(k1, k2)) / total
            assert energy[k1, k2] == pytest.approx(kept, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(SHAPES, SEEDS, st.booleans(), st.data())
def test_iteration_is_never_worse_than_its_start(shape, seed, skewed, data):
    outputs, inputs, taps = shape
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=shape)
    k1, k2 = data.draw(st.integers(1, inputs)), data.draw(st.integers(1, outputs))
    start = two_svds(kernel, k1, k2)
    if skewed:
        factors = rng.normal(size=(inputs, k1)) + 3, rng.normal(size=(outputs, k2)) + 3  # the core fits badly, too
        start = Tucker2(factors[0], rng.normal(size=(k2, k1, taps)), factors[1])
    errors = [error(kernel, start)] + [error(kernel, hooi(kernel, start, sweeps, 0)) for sweeps in (0, 1, 2, 5)]
    assert np.all(np.diff(errors) <= 1e-9 * (kernel**2).sum())


@pytest.mark.parametrize(("shape", "ranks"), [((12, 10, 9), (3, 4)), ((9, 14, 4), (6, 2)), ((8, 6, 1), (3, 3))])
@pytest.mark.parametrize("noise", [None, 0.3, 0.0])
def test_iteration_is_as_good_as_tensorly(shape, ranks, noise):
    k1, k2 = ranks
    kernel = np.random.default_rng(4).normal(size=shape) if noise is None else planted(shape, k1, k2, noise)
    (core, factors), _ = partial_tucker(kernel, (k2, k1), modes=[0, 1], init="svd", n_iter_max=200, tol=1e-12)
    theirs = ((tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1]) - kernel) ** 2).sum()
    ours = error(kernel, hooi(kernel, two_svds(kernel, k1, k2), sweeps=200, tolerance=1e-9))
    assert ours <= theirs * (1 + 1e-3) + 1e-12 * (kernel**2).sum()


def test_iteration_gains_on_the_two_svds():
    kernel = np.random.default_rng(6).normal(size=(10, 10, 4))
    start = two_svds(kernel, 3, 3)
    assert error(kernel, hooi(kernel, start)) < 0.999 * error(kernel, start)


def test_iteration_reaches_planted_subspaces_from_anywhere():
    kernel = planted((12, 10, 9), 3, 4)
    rng = np.random.default_rng(1)
    start = Tucker2(rng.normal(size=(10, 3)), rng.normal(size=(4, 3, 9)), rng.normal(size=(12, 4)))
    np.testing.assert_allclose(hooi(kernel, start, 50, 1e-9).dense(), kernel, atol=1e-6 * np.abs(kernel).max())


def test_tolerance_ends_the_iteration():
    kernel = np.random.default_rng(6).normal(size=(10, 10, 4))
    start = two_svds(kernel, 3, 3)
    one, many = hooi(kernel, start, 1, 0), hooi(kernel, start, 100, tolerance=1.0)
    np.testing.assert_array_equal(one.dense(), many.dense())


def test_a_zero_kernel_stays_zero():
    kernel = np.zeros((4, 3, 2), np.float32)
    assert not hooi(kernel, two_svds(kernel, 2, 2)).dense().any()
    np.testing.assert_array_equal(tucker_energy(kernel), np.ones((4, 5)))

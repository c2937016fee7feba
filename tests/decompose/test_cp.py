"""CP over four modes: exact recovery, bounded terms, tensorly."""

import warnings

import numpy as np
import pytest
import tensorly
from helpers.tensors import border_tensor, random_tensor, random_terms, share
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import parafac

from onnxlowrank.decompose import cp
from onnxlowrank.decompose._als import Terms, joint_als
from onnxlowrank.decompose.cp import cp_energy, cp_terms
from onnxlowrank.decompose.outer_product import slice_terms

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
SEEDS = st.integers(0, 2**31)


def collinear_terms(shape, rank, cosine, seed):
    """Unit columns that all have the same cosine to a common one, about ``cosine`` among each other."""
    rng = np.random.default_rng(seed)
    factors = []
    for length in shape:
        common, *columns = rng.normal(size=(rank + 1, length))
        common /= np.linalg.norm(common)
        own = np.stack([column - (column @ common) * common for column in columns], 1)
        own /= np.linalg.norm(own, axis=0)
        factors.append(np.sqrt(cosine) * common[:, None] + np.sqrt(1 - cosine) * own)
    return Terms(tuple(factors))


def matches(found, planted):
    """Every planted term is one of those found, up to scale."""
    cosines = np.ones((planted.rank, found.rank))
    for one, other in zip(planted.factors, found.factors, strict=True):
        cosines *= (one / np.linalg.norm(one, axis=0)).T @ (other / np.linalg.norm(other, axis=0))
    return np.all(cosines.max(1) > 1 - 1e-6)


@pytest.mark.parametrize("shape", [(16, 12, 3, 3), (32, 24, 3, 3), (64, 48, 5, 5)], ids=str)
@pytest.mark.parametrize("cosine", [None, 0.9])
def test_a_kernel_of_rank_8_is_recovered(shape, cosine):
    planted = random_terms(shape, 8) if cosine is None else collinear_terms(shape, 8, cosine, 0)
    found = cp_terms(planted.dense(), 8)
    assert np.sqrt(share(found, planted.dense())) <= 1e-6
    assert matches(found, planted)


@pytest.mark.parametrize(("shape", "rank"), [((8, 6, 3, 3), 9), ((10, 10, 9), 5), ((12, 3, 5, 5), 6)], ids=str)
def test_recovery_of_more_terms_than_maps_and_of_three_modes(shape, rank):
    tensor = collinear_terms(shape, rank, 0.7, 2).dense()
    assert np.sqrt(share(cp_terms(tensor, rank), tensor)) <= 1e-6


def test_recovery_of_many_terms():
    """Too many unknowns for anything but the closed forms and alternating updates."""
    planted = collinear_terms((48, 40, 3, 3), 30, 0.5, 0)
    assert np.sqrt(share(cp_terms(planted.dense(), 30), planted.dense())) <= 1e-6


def test_recovery_of_fewer_terms_than_asked_for():
    tensor = random_terms((9, 8, 3, 3), 3, 2).dense()
    assert np.sqrt(share(cp_terms(tensor, 6), tensor)) <= 1e-6


def test_noise_is_left_over():
    planted = random_terms((16, 12, 3, 3), 6, 3).dense()
    noise = 0.05 * np.linalg.norm(planted) * (lambda n: n / np.linalg.norm(n))(random_tensor(planted.shape, 4))
    found = cp_terms(planted + noise, 6)
    assert found.squared_error(planted + noise) <= (noise**2).sum()
    assert found.squared_error(planted) <= 0.5 * (noise**2).sum()


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize(
    ("shape", "rank"), [((8, 6, 3, 3), 3), ((12, 10, 3, 3), 8), ((9, 7, 4), 5), ((16, 3, 5, 5), 6)]
)
def test_as_good_as_tensorly(shape, rank, structured):
    ours, theirs = [], []
    for seed in range(3):  # either may find the better local minimum: on average
        tensor = random_tensor(shape, seed)
        if structured:
            tensor = 0.1 * tensor + random_terms(shape, rank, seed + 2).dense()
        ours.append(share(cp_terms(tensor, rank, tolerance=1e-6), tensor))
        for init in ("svd", "random"):
            with warnings.catch_warnings(action="ignore"):  # fewer singular vectors than terms
                found = parafac(tensor, rank, init=init, n_iter_max=100, tol=1e-8, random_state=0)
            theirs.append(((tensor - tensorly.cp_to_tensor(found)) ** 2).sum() / (tensor**2).sum())
    assert np.mean(ours) <= (1 + 1e-3) * np.mean(theirs)


@settings(max_examples=20, deadline=None)
@given(SHAPES, SEEDS)
def test_energy_is_what_the_closed_form_keeps(shape, seed):
    kernel = random_tensor(shape, seed)
    energy = cp_energy(kernel)
    most = shape[2] * shape[3] * min(shape[:2])
    assert energy.shape == (most + 1,)
    for rank in range(1, most + 1):
        assert 1 - share(slice_terms(kernel, rank), kernel) == pytest.approx(energy[rank], abs=1e-9)
    assert share(slice_terms(kernel, most), kernel) < 1e-20


@settings(max_examples=15, deadline=None)
@given(SHAPES, st.integers(1, 5), SEEDS)
def test_any_shape_is_no_worse_than_its_closed_form(shape, rank, seed):
    kernel = random_tensor(shape, seed)
    rank = min(rank, shape[2] * shape[3] * min(shape[:2]))
    terms = cp_terms(kernel, rank, sweeps=20)
    assert [factor.shape for factor in terms.factors] == [(length, rank) for length in shape]
    assert share(terms, kernel) <= 1 - cp_energy(kernel)[rank] + 1e-9
    assert terms.size <= 10 * (kernel**2).sum() * (1 + 1e-9)


@settings(max_examples=15, deadline=None)
@given(SHAPES, st.integers(1, 5), SEEDS)
def test_never_worse_than_a_start(shape, rank, seed):
    kernel = random_tensor(shape, seed)
    start = random_terms(shape, rank, seed + 1)
    errors = [share(start, kernel)] + [share(cp_terms(kernel, rank, start, sweeps, 0), kernel) for sweeps in (0, 1, 3)]
    assert errors[1] <= errors[0] * (1 + 1e-9)
    assert min(errors[2:]) <= errors[1] * (1 + 1e-9)


def test_a_start_replaces_all_others():
    kernel = random_tensor((6, 5, 3, 3), 1)
    start = random_terms(kernel.shape, 4, 2)
    np.testing.assert_allclose(cp_terms(kernel, 4, start, sweeps=0).dense(), start.dense(), atol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_polish_is_never_worse_for_more_steps(seed):
    kernel = random_tensor((6, 5, 3, 3), seed)
    start = random_terms(kernel.shape, 4, seed + 1)
    errors = [share(cp._polished(kernel, start, steps, 0), kernel) for steps in range(8)]
    assert np.all(np.diff(errors) < 0)


def test_noise_leaves_the_start_by_eigenvectors_independent_columns():
    start = cp._pencil_terms(random_tensor((12, 10, 3, 3), 3), 8)
    assert [np.linalg.matrix_rank(factor) for factor in start.factors] == [8, 8, 3, 3]


def test_four_modes_are_never_worse_for_more_sweeps():
    kernel = random_tensor((12, 10, 3, 3), 8)
    start = slice_terms(kernel, 20)
    errors = [share(joint_als(kernel, start, sweeps, 0), kernel) for sweeps in range(12)]
    assert np.all(np.diff(errors) <= 1e-12)
    assert errors[-1] < 0.95 * share(start, kernel)


@pytest.mark.parametrize("rank", [4, 40])
def test_terms_of_noise_stay_bounded(rank):
    kernel = random_tensor((24, 20, 3, 3), 9)
    terms = cp_terms(kernel, rank, sweeps=300, tolerance=0)
    assert terms.size <= 10 * (kernel**2).sum()


@pytest.mark.parametrize("small", [0, 1200], ids=["updates", "polish"])
def test_terms_that_would_cancel_stay_bounded(small, monkeypatch):
    monkeypatch.setattr(cp, "_SMALL", small)
    tensor = border_tensor()
    terms = cp_terms(tensor, 2, sweeps=1000, tolerance=0)
    assert terms.size <= 10 * (tensor**2).sum()
    assert share(terms, tensor) < 1e-3


def test_many_terms_start_from_the_closed_form():
    kernel = random_tensor((24, 20, 3, 3), 9).astype(np.float32)
    terms = cp_terms(kernel, 100, sweeps=5)
    assert share(terms, kernel) < 0.9 * (1 - cp_energy(kernel)[100])


def test_a_zero_kernel_stays_zero():
    assert not cp_terms(np.zeros((4, 3, 3, 3)), 2).dense().any()


def test_normal_equations_are_those_of_the_derivative():
    kernel = random_tensor((4, 3, 2, 3), 1)
    terms = random_terms(kernel.shape, 2, 2)
    sizes = np.cumsum([factor.size for factor in terms.factors])
    columns = []
    for unknown in range(sizes[-1]):
        direction = np.split(np.eye(sizes[-1])[unknown], sizes[:-1])
        moved = [
            [
                factor + step * change.reshape(factor.shape)
                for factor, change in zip(terms.factors, direction, strict=True)
            ]
            for step in (1.0, -1.0)
        ]
        one, other = (Terms(tuple(factors)).dense() for factors in moved)
        columns.append((one - other).ravel() / 2)  # linear in a single entry
    jacobian = np.stack(columns, 1)
    hessian, gradient = cp._normal_equations(kernel, terms)
    np.testing.assert_allclose(hessian, jacobian.T @ jacobian, atol=1e-10)
    np.testing.assert_allclose(gradient, jacobian.T @ (kernel - terms.dense()).ravel(), atol=1e-10)

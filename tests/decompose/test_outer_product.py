"""Sums of outer products against the SVD, brute force and tensorly."""

import warnings

import numpy as np
import pytest
import tensorly
from helpers.tensors import border_tensor, random_tensor, random_terms, share
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import parafac

from onnxlowrank.decompose._als import Terms, joint_als
from onnxlowrank.decompose.outer_product import greedy_terms, slice_energy, slice_terms

SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 6), st.integers(1, 5))
SEEDS = st.integers(0, 2**31)


def dense_by_definition(terms):
    outputs, inputs, taps = terms.factors
    return np.einsum("fk,ck,tk->fct", outputs, inputs, taps)


def test_terms_are_what_they_say():
    terms = random_terms((4, 3, 5), 6)
    np.testing.assert_allclose(terms.dense(), dense_by_definition(terms), atol=1e-12)
    assert terms.rank == 6
    assert terms.first(2).rank == 2
    squares = [(dense_by_definition(Terms(tuple(f[:, [k]] for f in terms.factors))) ** 2).sum() for k in range(6)]
    assert terms.size == pytest.approx(sum(squares))
    balanced = terms.balanced()
    np.testing.assert_allclose(balanced.dense(), terms.dense(), atol=1e-12)
    norms = [np.linalg.norm(factor, axis=0) for factor in balanced.factors]
    np.testing.assert_allclose(norms, np.broadcast_to(norms[0], (3, 6)))


def test_balancing_keeps_a_term_of_zero():
    terms = random_terms((4, 3, 5), 2)
    terms.factors[1][:, 0] = 0
    np.testing.assert_allclose(terms.balanced().dense(), terms.dense(), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(SHAPES, SEEDS)
def test_slice_terms_are_orthogonal_nested_and_keep_their_energy(shape, seed):
    tensor = random_tensor(shape, seed)
    outputs, inputs, taps = shape
    most = taps * min(outputs, inputs)
    energy = slice_energy(tensor)
    assert energy.shape == (most + 1,)
    assert np.all(np.diff(energy, 2) <= 1e-12)  # the largest first
    everything = slice_terms(tensor, most)
    np.testing.assert_allclose(everything.dense(), tensor, atol=1e-10)
    gram = np.prod([factor.T @ factor for factor in everything.factors], axis=0)
    np.testing.assert_allclose(gram, np.diag(gram.diagonal()), atol=1e-8)
    for rank in range(1, most + 1):
        terms = slice_terms(tensor, rank)
        for mode, whole in zip(terms.factors, everything.factors, strict=True):
            np.testing.assert_array_equal(mode, whole[:, :rank])
        assert 1 - share(terms, tensor) == pytest.approx(energy[rank], abs=1e-9)


def test_slices_are_those_in_the_principal_axes_of_the_taps():
    tensor = random_tensor((6, 5, 4))
    tensor[..., 3] = tensor[..., 0]  # in the taps' own axes, one more slice to pay for
    _, _, axes = np.linalg.svd(tensor.reshape(-1, 4), full_matrices=False)
    squares = np.linalg.svd((tensor @ axes.T).transpose(2, 0, 1), compute_uv=False).ravel() ** 2
    expected = np.cumsum(np.sort(squares)[::-1]) / squares.sum()
    np.testing.assert_allclose(slice_energy(tensor)[1:], expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 5, 1), (6, 1, 5), (1, 6, 5)], ids=str)
def test_of_a_matrix_the_greedy_terms_are_its_svd(shape):
    tensor = random_tensor(shape, 2)
    squares = np.linalg.svd(tensor.reshape([n for n in shape if n > 1]), compute_uv=False) ** 2
    for rank in range(1, 6):
        terms = greedy_terms(tensor, rank, sweeps=2000, tolerance=1e-12)
        assert terms.squared_error(tensor) == pytest.approx(squares[rank:].sum(), abs=1e-4 * squares.sum())
        if shape[0] > 1:
            assert share(slice_terms(tensor, rank), tensor) == pytest.approx(squares[rank:].sum() / squares.sum())


def brute_force_square(tensor, starts=100, sweeps=200):
    """Squared norm of the best single term out of many random starts."""
    rng = np.random.default_rng(0)
    _, inputs, taps = tensor.shape
    c, t = rng.normal(size=(inputs, starts)), rng.normal(size=(taps, starts))
    for _ in range(sweeps):
        f = np.einsum("fct,cs,ts->fs", tensor, c, t, optimize=True)
        f /= np.linalg.norm(f, axis=0)
        c = np.einsum("fct,fs,ts->cs", tensor, f, t, optimize=True)
        c /= np.linalg.norm(c, axis=0)
        t = np.einsum("fct,fs,cs->ts", tensor, f, c, optimize=True)
        square = (t**2).sum(0)
        t /= np.sqrt(square)
    return square.max()


@pytest.mark.parametrize("shape", [(4, 3, 3), (6, 5, 2), (8, 7, 9), (3, 20, 4)], ids=str)
def test_first_term_is_the_best_there_is(shape):
    for seed in range(3):
        tensor = random_tensor(shape, seed)
        term = greedy_terms(tensor, 1, sweeps=500, tolerance=1e-8)
        assert term.size >= (1 - 1e-4) * brute_force_square(tensor)
        assert term.squared_error(tensor) == pytest.approx((tensor**2).sum() - term.size)


def test_first_term_need_not_lie_on_the_leading_tap_axis():
    """The first slice has the larger norm, the second the larger term, and the two do not meet."""
    tensor = np.zeros((6, 6, 2))
    tensor[:5, :5, 0] = np.eye(5)
    tensor[5, 5, 1] = 2
    axes = np.linalg.qr(random_tensor((2, 2)))[0]
    assert greedy_terms(tensor @ axes, 1).size == pytest.approx(4)


@settings(max_examples=15, deadline=None)
@given(SHAPES, SEEDS)
def test_greedy_terms_are_nested_and_each_takes_its_own_norm(shape, seed):
    tensor = random_tensor(shape, seed)
    terms = greedy_terms(tensor, 4)
    left = (tensor**2).sum()
    for rank in range(1, 5):
        fewer = greedy_terms(tensor, rank)
        for mode, whole in zip(fewer.factors, terms.factors, strict=True):
            np.testing.assert_array_equal(mode, whole[:, :rank])
        newest = Terms(tuple(factor[:, -1:] for factor in fewer.factors))
        assert fewer.squared_error(tensor) == pytest.approx(left - newest.size, abs=1e-9 * (tensor**2).sum())
        left = fewer.squared_error(tensor)


def test_greedy_terms_take_up_a_start():
    """From the terms themselves, no term needs more than an update; without, one update is not enough."""
    tensor = random_tensor((16, 12, 9), 1)
    converged = greedy_terms(tensor, 3, sweeps=1000, tolerance=1e-9)
    cold, warm = greedy_terms(tensor, 3, sweeps=1), greedy_terms(tensor, 3, start=converged, sweeps=1)
    assert share(warm, tensor) == pytest.approx(share(converged, tensor), rel=1e-5)
    assert share(cold, tensor) > 1.005 * share(converged, tensor)


def test_greedy_terms_of_zero_are_zero():
    assert not greedy_terms(np.zeros((3, 4, 2), np.float32), 2).dense().any()


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.integers(1, 5), st.sampled_from(["greedy", "slices", "random"]), SEEDS)
def test_joint_updates_are_never_worse_than_fewer(shape, rank, kind, seed):
    tensor = random_tensor(shape, seed)
    rank = min(rank, shape[2] * min(shape[:2]))
    starts = {"greedy": greedy_terms, "slices": slice_terms}
    start = starts[kind](tensor, rank) if kind in starts else random_terms(shape, rank, seed + 1)
    errors = [share(start, tensor)] + [share(joint_als(tensor, start, sweeps, 0), tensor) for sweeps in range(7)]
    assert np.all(np.diff(errors) <= 1e-10)


@pytest.mark.parametrize("start", [greedy_terms, slice_terms], ids=lambda f: f.__name__)
def test_joint_updates_gain_on_either_start(start):
    tensor = random_tensor((16, 12, 9), 3)
    terms = start(tensor, 12)
    improved = joint_als(tensor, terms, 20)
    assert share(improved, tensor) < 0.97 * share(terms, tensor)
    norms = [np.linalg.norm(factor, axis=0) for factor in improved.factors]
    np.testing.assert_allclose(norms, np.broadcast_to(norms[0], (3, 12)))


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize(("shape", "rank"), [((12, 10, 9), 3), ((12, 10, 9), 12), ((20, 8, 4), 6), ((7, 9, 1), 3)])
def test_joint_updates_are_as_good_as_tensorly(shape, rank, structured):
    ours, theirs = [], []
    for seed in range(5):  # either may find the better local minimum: on average
        tensor = random_tensor(shape, seed)
        if structured:
            tensor = 0.1 * tensor + random_terms(shape, rank, seed + 3).dense()
        with warnings.catch_warnings(action="ignore"):  # fewer singular vectors than terms
            found = parafac(tensor, rank, init="svd", n_iter_max=100, tol=1e-9, random_state=0)
        theirs.append(((tensor - tensorly.cp_to_tensor(found)) ** 2).sum() / (tensor**2).sum())
        starts = greedy_terms(tensor, rank), slice_terms(tensor, rank)
        ours.append(min(share(joint_als(tensor, start, 100, 1e-9), tensor) for start in starts))
    assert np.mean(ours) <= (1 + 1e-3) * np.mean(theirs)


def test_joint_updates_recover_planted_terms_from_nearby():
    planted = random_terms((16, 12, 9), 8)
    start = Terms(tuple(factor + 0.3 * random_tensor(factor.shape) for factor in planted.factors))
    assert share(joint_als(planted.dense(), start, 100, 0), planted.dense()) < 1e-12


def test_joint_updates_stop_when_nothing_is_gained():
    tensor = random_tensor((8, 7, 9))
    start = slice_terms(tensor, 4)
    once = joint_als(tensor, start, 6, tolerance=1.0)
    np.testing.assert_array_equal(once.dense(), joint_als(tensor, start, 1000, tolerance=1.0).dense())


def test_terms_that_would_cancel_stay_bounded():
    tensor = border_tensor()
    terms = joint_als(tensor, greedy_terms(tensor, 2), 2000, 0)
    assert share(terms, tensor) < 1e-3
    assert terms.size <= 10 * (tensor**2).sum()


def test_joint_updates_survive_copies_and_zeros():
    tensor = random_tensor((6, 5, 4))
    start = slice_terms(tensor, 3)
    copied = Terms(tuple(np.concatenate([factor, factor, 0 * factor], 1) for factor in start.factors))
    assert share(joint_als(tensor, copied, 10), tensor) <= share(copied, tensor)
    zero = np.zeros((6, 5, 4))
    assert not joint_als(zero, slice_terms(zero, 3)).dense().any()
    assert np.all(slice_energy(zero) == 1)


def test_a_start_may_be_large():
    """A start beyond the bound is still improved upon."""
    tensor = border_tensor()
    a, b = np.linalg.qr(random_tensor((5, 2), 1))[0].T
    near = Terms((np.stack([200 * a + b, -200 * a], 1), *2 * (np.stack([a + b / 200, a], 1),)))
    assert near.size > 10 * (tensor**2).sum()
    assert share(joint_als(tensor, near, 20, 0), tensor) < 0.999 * share(near, tensor)

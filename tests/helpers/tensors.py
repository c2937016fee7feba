"""Helpers for the tests of decompositions of 3-tensors."""

import numpy as np

from onnxlowrank.decompose._als import Terms


def random_terms(shape, rank, seed=0):
    rng = np.random.default_rng(seed)
    return Terms(tuple(rng.normal(size=(length, rank)) for length in shape))


def random_tensor(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def share(terms, tensor):
    """Squared error relative to the tensor's squared norm."""
    return terms.squared_error(tensor) / (tensor**2).sum()


def border_tensor():
    """Rank 3, and as close as one likes to tensors of rank 2 whose two terms grow and cancel."""
    a, b = np.linalg.qr(random_tensor((5, 2), 1))[0].T
    return sum(np.einsum("i,j,k->ijk", *vectors) for vectors in ((a, a, b), (a, b, a), (b, a, a)))

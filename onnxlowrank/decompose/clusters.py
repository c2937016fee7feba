"""Balanced clusters of filters around low-dimensional subspaces (Denton 2014, Sec. 3.3 and 3.4).

The paper balances k-means "at each iteration" and replaces "the Euclidean distance with a subspace projection
distance". An item ``i`` is a matrix ``M_i [p, q]``, a cluster ``k`` an orthonormal basis ``B_k [p, d]`` through the
origin, and the cost ``|M_i|^2 - |B_k' M_i|^2``: what the subspace loses of the item's columns. A heavy item counts
more, signs do not count. Lloyd's two steps are both exact. The best ``B_k`` for given members are the leading left
singular vectors of their columns; the best labels for given bases are a linear assignment. So the cost never rises.
Only inner products of columns matter: the items are first turned into ``min(p, n * q)`` coordinates.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxlowrank.decompose.spectrum import Float64Array, left_axes

IntArray = NDArray[np.intp]

ITERATIONS = 30
"""At most so many assignments per start; labels that repeat end it sooner."""


def balanced_clusters(
    vectors: NDArray[np.floating], count: int, seed: int = 0, restarts: int = 3, dimension: int = 1
) -> IntArray:
    """Return ``[n]`` labels ``0..count-1``, in order of first appearance; cluster sizes differ by at most one.

    Args:
        vectors: ``[n, p]``, or ``[n, p, q]``: items whose ``q`` columns are to lie near their cluster's subspace.
        count: Number of clusters, at most ``n``.
        seed: Of the starts; equal seeds give equal labels.
        restarts: Number of starts, of which the one of the lowest cost wins.
        dimension: Of the subspaces, at most ``p``; 1 is a line through the origin.

    Raises:
        ValueError: If ``vectors`` are not finite, or their shape or another argument is out of bounds.
    """
    stack = _stack(vectors, dimension)
    p, n, q = stack.shape
    if not 1 <= count <= n:
        raise ValueError(f"cannot form {count} clusters of {n} items")
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1, not {restarts}")
    (triangle,) = scipy.linalg.qr(stack.reshape(p, n * q), mode="r")
    stack = triangle[: n * q].reshape(-1, n, q)
    rng = np.random.default_rng(seed)
    starts = (_seeds(stack, count, min(dimension, len(stack)), rng) for _ in range(restarts))
    labels, _ = max((_descend(stack, bases) for bases in starts), key=lambda found: found[1])
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def cluster_bases(vectors: NDArray[np.floating], labels: IntArray, dimension: int = 1) -> Float64Array:
    """Return the clusters' orthonormal bases ``[count, p, dimension]``, the direction that holds most first.

    Args:
        vectors: ``[n, p]`` or ``[n, p, q]``.
        labels: ``[n]`` out of ``0..count-1``, each of them taken.
        dimension: Of the subspaces, at most ``p``.

    Raises:
        ValueError: If the shape of ``vectors`` or ``dimension`` is out of bounds.
    """
    return _bases(_stack(vectors, dimension), labels, dimension)


def group_size(labels: IntArray) -> int:
    """Return the size of the largest cluster."""
    return int(np.bincount(labels).max())


def slots(labels: IntArray) -> IntArray:
    """Return the place ``[n]`` of every item when clusters stand side by side, each as wide as the largest."""
    order = np.argsort(labels, kind="stable")
    starts = np.cumsum(np.bincount(labels)) - np.bincount(labels)
    places = np.empty_like(order)
    places[order] = labels[order] * group_size(labels) + np.arange(len(labels)) - starts[labels[order]]
    return places


def balanced_assignment(captured: Float64Array) -> IntArray:
    """Return the ``[n]`` labels that capture most under sizes of ``floor`` or ``ceil`` of ``n / count``.

    Every cluster has ``s = ceil(n / count)`` slots and each of the ``count * s`` slots is filled: by an item or by one
    of the ``count * s - n`` idle rows, which cost nothing and may take only the last slot of a cluster. So no cluster
    holds fewer than ``s - 1`` items, and the square assignment decides which of them do.

    Args:
        captured: ``[n, count]``: energy ``|B_k' M_i|^2`` of each item within each cluster's subspace.
    """
    n, count = captured.shape
    slots = -(-n // count)
    idle = np.full((count * slots - n, count * slots), np.inf)
    idle[:, -count:] = 0
    _, taken = scipy.optimize.linear_sum_assignment(np.vstack([np.tile(-captured, slots), idle]))
    labels: IntArray = taken[:n] % count
    return labels


def _stack(vectors: NDArray[np.floating], dimension: int) -> Float64Array:
    if vectors.ndim not in (2, 3):
        raise ValueError(f"vectors must be [n, p] or [n, p, q], not of shape {vectors.shape}")
    if not 1 <= dimension <= vectors.shape[1]:
        raise ValueError(f"no subspace of dimension {dimension} in a space of {vectors.shape[1]}")
    return vectors.astype(np.float64).reshape(*vectors.shape[:2], -1).transpose(1, 0, 2)


def _descend(stack: Float64Array, bases: Float64Array) -> tuple[IntArray, float]:
    """Return the labels to which Lloyd's steps lead from ``bases`` and the energy that their clusters capture."""
    labels: IntArray = np.full(stack.shape[1], -1)
    for _ in range(ITERATIONS):
        moved = balanced_assignment(_captured(stack, bases))
        if np.array_equal(moved, labels):
            break
        labels, bases = moved, _bases(stack, moved, bases.shape[2])
    return labels, float(np.take_along_axis(_captured(stack, bases), labels[:, None], 1).sum())


def _seeds(stack: Float64Array, count: int, dimension: int, rng: np.random.Generator) -> Float64Array:
    """Return ``[count, p, dimension]`` bases as in k-means++: each grown around an item that those before lose much of.

    One item may span too little: from its leading direction the basis grows to that of the ``dimension`` items at the
    smallest angles, and from there to that of the nearest ``n / count``.
    """
    tiny = np.finfo(np.float64).tiny
    energy = (stack**2).sum((0, 2))
    size = len(energy) // count
    lost, bases = energy, []
    for _ in range(count):
        weights = np.maximum(lost, 0) + tiny  # even where nothing is lost
        chosen = rng.choice(len(weights), p=weights / weights.sum())
        basis = left_axes(stack[:, chosen], 1)[1]
        for group in (min(dimension, size), size):
            cosines = _captured(stack, basis[None])[:, 0] / np.maximum(energy, tiny)
            near = np.argsort(-cosines, kind="stable")[:group]
            basis = left_axes(stack[:, near].reshape(len(stack), -1), dimension)[1]
        bases.append(basis)
        lost = np.minimum(lost, energy - _captured(stack, basis[None])[:, 0])
    return np.stack(bases)


def _captured(stack: Float64Array, bases: Float64Array) -> Float64Array:
    """Return ``[n, count]``: ``|B_k' M_i|^2``."""
    p, n, q = stack.shape
    inside = bases.transpose(0, 2, 1) @ stack.reshape(p, n * q)  # [count, dimension, n * q]
    energies: Float64Array = (inside**2).sum(1).reshape(-1, n, q).sum(2)
    return energies.T


def _bases(stack: Float64Array, labels: IntArray, dimension: int) -> Float64Array:
    pieces = [stack[:, labels == k].reshape(len(stack), -1) for k in range(labels.max() + 1)]
    return np.stack([left_axes(piece, dimension)[1] for piece in pieces])

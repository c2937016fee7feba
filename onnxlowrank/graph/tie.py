"""Ties nodes that share a weight: one layer, computed at several places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxlowrank.graph.branches import reads_not_taken
from onnxlowrank.graph.index import Index
from onnxlowrank.graph.layer import FloatArray, Layer


def tie(index: Index, layers: Sequence[tuple[str, Layer]]) -> list[Layer]:
    """Return layers of which those that compute the same function with the same weight became one.

    Where the attributes or the biases differ, or something else reads the weight as well, ``shares_weight`` is set.
    What the branches read that are not taken, see :mod:`onnxlowrank.graph.branches`, counts not: it takes no time.

    Args:
        index: Of the model.
        layers: In graph order, each with the name of the constant its weight is made of.
    """
    found: list[list[Layer]] = []
    constants: list[str] = []
    by_constant: dict[int, list[int]] = {}
    not_taken = Counter(tensor for node in index.nodes for tensor in reads_not_taken(node))
    for name, layer in layers:
        same = by_constant.setdefault(id(index.constants[name]), [])
        group = next((one for one in same if _computes_the_same(found[one][0], layer)), None)
        if group is None:
            same.append(len(found))
            found.append([layer])
            constants.append(name)
        else:
            found[group].append(layer)
    return [
        replace(
            group[0],
            elsewhere=tuple(layer.places[0] for layer in group[1:]),
            shares_weight=index.uses(name) - not_taken[name] > len(group),
        )
        for name, group in zip(constants, found, strict=True)
    ]


def _computes_the_same(one: Layer, other: Layer) -> bool:
    """Return whether two layers of the same constant are the same function of their inputs."""
    about = [(layer.op, layer.columns, layer.geometry, layer.group, layer.weight.shape) for layer in (one, other)]
    return about[0] == about[1] and _equal(one.weight, other.weight) and _equal(one.bias, other.bias)


def _equal(one: FloatArray | None, other: FloatArray | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))

"""Chains made for int8: all maps between two links use the whole of the one range they share.

An activation tensor has one scale, so a map that is a tenth as large as another one is rounded to a tenth as many
steps. Between linear links any scale of a map is free: the rows that give it are multiplied, the columns that take it
divided (Nagel et al. 2019, Sec. 4.1, where ReLU stands between; here nothing does), and the chain computes what it did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.layer import FloatArray, Layer
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.progress import Advance
from onnxlowrank.quantize.observe import activations

Scales = NDArray[np.float64]

_MOST = 2.0**10
"""By which a map is scaled up: one that is next to nothing says little, and its columns vanish."""


def equalise(chain: Chain, sizes: Sequence[Scales]) -> Chain:
    """Return the chain that computes the same, and whose inner maps all reach as far as the one that reaches furthest.

    Args:
        chain: As it is written.
        sizes: Behind every link but the last, how far its maps reach ``[maps]``, e.g. their numbers of largest
            magnitude. Maps that reach down are turned over: then all reach up, and one range suits them better.
    """
    steps = list(chain.steps)
    for number, size in enumerate(sizes):
        scales = _scales(size)
        steps[number] = _with_outputs(steps[number], scales)
        steps[number + 1] = _with_inputs(steps[number + 1], 1 / scales)
    return Chain(tuple(steps), chain.bias)


def equalised(
    model: onnx.ModelProto, layers: Sequence[Layer], chains: Mapping[str, Chain], inputs: Inputs, advance: Advance
) -> dict[str, Chain]:
    """Return chains with their inner maps scaled by what these are on sample inputs.

    Args:
        model: A normalised network.
        layers: Its layers.
        chains: In place of layers, by their names.
        inputs: Sample inputs.
        advance: Told of every feed.
    """
    written = rewrite(model, layers, chains)
    own = {node.name for node in model.graph.node}
    inner = {
        layer.name: inner_tensors(written, own, layer, chains[layer.name]) for layer in layers if layer.name in chains
    }
    axes = {name: 1 for layer in layers if layer.is_conv for found in inner.get(layer.name, ()) for name in found}
    sizes: dict[str, Scales] = {}
    tensors = [name for tensors in inner.values() for found in tensors for name in found]
    if not tensors:
        return dict(chains)
    for values in activations(written, tensors, inputs, advance):
        for name, value in values.items():
            axis = axes.get(name, -1)
            by_map = np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)
            found = _further(by_map.max(axis=1, initial=0), by_map.min(axis=1, initial=0))
            sizes[name] = _further(sizes.get(name, found), found)
    return {
        name: equalise(chain, [_furthest([sizes[one] for one in found]) for found in inner[name]])
        for name, chain in chains.items()
    }


def _furthest(sizes: Sequence[Scales]) -> Scales:
    first, *others = sizes
    for other in others:
        first = _further(first, other)
    return first


def _further(one: FloatArray, other: FloatArray) -> Scales:
    """Return whichever is further from zero, entry by entry."""
    return np.where(np.abs(other) > np.abs(one), other, one).astype(np.float64)


def _scales(sizes: Scales) -> Scales:
    """Return what makes all maps reach as far up as the largest one reaches."""
    largest = np.abs(sizes).max(initial=0.0)
    if not (np.isfinite(largest) and largest > 0):
        return np.ones_like(sizes)
    signs = np.where(sizes < 0, -1.0, 1.0)
    scales: Scales = signs * largest / np.maximum(np.abs(sizes), largest / _MOST)
    return scales


def _with_outputs(step: Step, scales: Scales) -> Step:
    """Return a link whose output maps are multiplied by ``scales``."""
    rows = np.ones(step.weight.shape[0])
    rows[step.given] = scales
    return replace(step, weight=_times(step.weight, rows.reshape(-1, *(1,) * (step.weight.ndim - 1))))


def _with_inputs(step: Step, scales: Scales) -> Step:
    """Return the link that computes the same of input maps multiplied by ``1 / scales``."""
    groups = np.asarray(scales)[step.taken].reshape(step.group, -1)  # [groups, maps of each]
    columns = np.repeat(groups, step.weight.shape[0] // step.group, axis=0)
    return replace(step, weight=_times(step.weight, columns.reshape(*columns.shape, *(1,) * (step.weight.ndim - 2))))


def _times(weight: FloatArray, scales: Scales) -> FloatArray:
    return (weight * scales).astype(weight.dtype)


def inner_tensors(written: onnx.ModelProto, own: set[str], layer: Layer, chain: Chain) -> list[list[str]]:
    """Return, behind every link but the last, the tensor at each place of a layer.

    Args:
        written: A network with the chain in place of the layer.
        own: Names of the nodes that it had before.
        layer: The layer.
        chain: The chain.
    """
    places = []
    for place in layer.places:
        mine = [
            node
            for node in written.graph.node
            if node.name not in own and node.name.rpartition("/lowrank/")[0] == place.name
        ]
        ends, position = [], 0
        for step in chain.steps[:-1]:
            position += _nodes_of(step)
            ends.append(mine[position - 1].output[0])
        places.append(ends)
    return [list(tensors) for tensors in zip(*places, strict=True)]


def _nodes_of(step: Step) -> int:
    """Return how many nodes a link is written as, see :mod:`onnxlowrank.graph.rewrite`."""
    return (step.group + 2 if step.split else 1) + (step.take is not None) + (step.give is not None)

"""Takes back what rounding does to the responses of an int8 network: weights are rounded anew, biases moved.

From the input of the network to its output, each layer is looked at as it is computed behind those that have been
refitted before it. On what these give, the weights of a row are rounded together, not each to its nearest step
(:mod:`onnxlowrank.decompose.rounding`). Those of the last link of a chain are first drawn to what gives the response of
the float32 network, by ridge regression on inputs that rounding has perturbed: the asymmetric fit of Zhang 2015,
Eq. 12, with quantisation as one more perturbation. Other layers are rounded to what they were.

Then the mean: each output map sums up thousands of rounding errors, whose mean is not zero. It is the same at all
positions, so the bias takes it back (Nagel et al. 2019, Sec. 4.2, measured on inputs); where an activation is behind,
the mean of what that gives (:mod:`onnxlowrank.decompose.bias_shift`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.decompose.activation import IDENTITY, Activation
from onnxlowrank.decompose.bias_shift import bias_shift
from onnxlowrank.decompose.rounding import round_together
from onnxlowrank.graph.index import Index
from onnxlowrank.graph.outside import values as array_of
from onnxlowrank.graph.surroundings import activation, residual
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.progress import Advance
from onnxlowrank.quantize.forward import Forward
from onnxlowrank.quantize.int8_layers import (
    Float64Array,
    Int8Layer,
    int8_layers,
    largest_weight,
    map_axis,
    sampled_responses,
)
from onnxlowrank.quantize.observe import activations
from onnxlowrank.quantize.qdq import chain_owner
from onnxlowrank.quantize.row_moments import RowMoments

_ROWS, _ROWS_BEHIND = 16_384, 4096
"""Of a layer, that its weights are rounded on, and that are looked at behind its activation."""
_MOST_COLUMNS = 2304
"""Of a weight that is rounded anew: of wider ones it takes long, and their many errors are small."""
_READ_BEHIND = "/read behind"
_RIDGE, _LEAST_RIDGE = 3.0, 1e-2
"""Times columns / rows, and at least: the pull to the weights as they were, a share of the mean variance of inputs."""


@dataclass(frozen=True)
class _Behind:
    """An activation behind a layer: the tensor that it reads, and the node that writes that."""

    tensor: str
    writer: str
    activation: Activation


def refitted(
    float32: ModelProto, int8: ModelProto, inputs: Inputs, weight_bits: int, advance: Advance, weights: bool = True
) -> ModelProto:
    """Return a copy of an int8 network whose layers have responses closer to those of the float32 network.

    Biases that are not int32, or that several layers share, stay as they are; so do weights that these share.

    Args:
        float32: The network.
        int8: The same, quantised; its nodes go by the same names.
        inputs: Sample inputs.
        weight_bits: 8, or 7 for weights within +-64.
        advance: Told of all that is done, 1 in sum.
        weights: Whether weights are rounded anew, or biases moved alone.
    """
    copy = ModelProto()
    copy.CopyFrom(int8)
    layers, largest = int8_layers(copy), largest_weight(weight_bits)
    before = {node.name: node for node in float32.graph.node}
    constants = {tensor.name: tensor for tensor in float32.graph.initializer}
    rounded = {one.node.name for one in layers if weights and one.own_weight and one.columns <= _MOST_COLUMNS}
    fitted = {name for name in _last_links(layers) if name in rounded}
    part = 1 / (len(layers) + 1)
    with RowStore() as store:
        behind = _activations([before[one.node.name] for one in layers], float32)
        means = _float32_responses([before[one.node.name] for one in layers], fitted, behind, float32, inputs, store)
        writers = {node.name: node.output[0] for node in copy.graph.node}
        advance(part)
        forward = Forward(copy, inputs)
        for layer in layers:
            name = layer.node.name
            moments = RowMoments()
            targets = store.read(name) if name in fitted else None
            for index, source in enumerate(forward.to(layer.source)):
                if name in rounded:
                    read = layer.read(source, _numbers(inputs, index))
                    here = None if targets is None else targets[moments.rows : moments.rows + len(read)]
                    moments.add(read, here)
            if name in rounded:
                weight = _float32_rows(layer, constants[before[name].input[1]])
                forward.replace(layer.with_rows(_rounded(layer, weight, moments, largest)))
            if layer.bias is not None:
                moved = _moved(layer, forward, means[name], behind.get(name), writers, store, inputs)
                if np.isfinite(moved).all():
                    forward.replace(layer.with_bias(moved))
            advance(part)
        return forward.model


def _last_links(layers: Sequence[Int8Layer]) -> set[str]:
    """Return the names of the nodes that are last in chains, as far as they have a bias to take the mean back."""
    last = {chain_owner(layer.node.name): layer for layer in layers if chain_owner(layer.node.name)}
    return {layer.node.name for layer in last.values() if layer.bias is not None}


def _numbers(inputs: Inputs, index: int, rows: int = _ROWS) -> NDArray[np.float32]:
    """Return the random numbers that choose the positions of one feed; all feeds give so many rows."""
    return np.random.default_rng([0, index]).random(-(-rows // inputs.samples), dtype=np.float32)


def _float32_responses(
    nodes: Sequence[NodeProto],
    fitted: set[str],
    behind: Mapping[str, _Behind],
    model: ModelProto,
    inputs: Inputs,
    store: RowStore,
) -> dict[str, Float64Array]:
    """Return the mean of every map of what nodes write, by their names, and store rows of what some of them write.

    Of those with an activation behind them also rows of what that reads.
    """
    sums: dict[str, Float64Array] = {}
    counts: dict[str, int] = {}
    tensors = dict.fromkeys([*(node.output[0] for node in nodes), *(one.tensor for one in behind.values())])
    for index, values in enumerate(activations(model, list(tensors), inputs, lambda amount: None)):
        for node in nodes:
            _add(node, values[node.output[0]], sums, counts)
            if node.name in fitted:
                store.append(node.name, sampled_responses(node, values[node.output[0]], _numbers(inputs, index)))
            if node.name in behind:
                read = sampled_responses(node, values[behind[node.name].tensor], _numbers(inputs, index, _ROWS_BEHIND))
                store.append(node.name + _READ_BEHIND, read)
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


def _activations(nodes: Sequence[NodeProto], model: ModelProto) -> dict[str, _Behind]:
    """Return the activations behind nodes, a residual Add between them or not, by the names of those that have one."""
    index = Index.of(model)
    writers = {name: node.name for node in index.nodes for name in node.output}
    found = {}
    for node in nodes:
        tensor, _ = residual(index, node.output[0])
        how = activation(index, tensor)
        if how != IDENTITY:
            found[node.name] = _Behind(tensor, writers[tensor], how)
    return found


def _moved(
    layer: Int8Layer,
    forward: Forward,
    mean: Float64Array,
    behind: _Behind | None,
    writers: Mapping[str, str],
    store: RowStore,
    inputs: Inputs,
) -> Float64Array:
    """Return what the bias of a layer is to be moved by.

    Args:
        layer: As it is now.
        forward: The int8 network.
        mean: Of what the layer gives in float32.
        behind: The activation behind it.
        writers: What nodes of the int8 network write, by their names.
        store: Has the rows that the activation reads in float32.
        inputs: Sample inputs.
    """
    if behind is None or behind.writer not in writers:
        return mean - _mean(layer, forward)
    tensor = writers[behind.writer]
    rows = [
        sampled_responses(layer.node, np.asarray(values[tensor], np.float32), _numbers(inputs, index, _ROWS_BEHIND))
        for index, values in enumerate(forward.at([tensor]))
    ]
    return bias_shift(behind.activation, store.read(layer.node.name + _READ_BEHIND), np.concatenate(rows))


def _mean(layer: Int8Layer, forward: Forward) -> Float64Array:
    """Return the mean of every map of what a layer gives as it is now."""
    sums: dict[str, Float64Array] = {}
    counts: dict[str, int] = {}
    for values in forward.at([layer.node.output[0]]):
        _add(layer.node, values[layer.node.output[0]], sums, counts)
    return sums[layer.node.name] / max(counts[layer.node.name], 1)


def _add(node: NodeProto, response: NDArray[np.generic], sums: dict[str, Float64Array], counts: dict[str, int]) -> None:
    """Add the response of a node to the sums of its maps."""
    axis = map_axis(node)
    by_map = np.moveaxis(response, axis, 0).reshape(response.shape[axis], -1)
    sums[node.name] = sums.get(node.name, 0.0) + by_map.sum(axis=1, dtype=np.float64)
    counts[node.name] = counts.get(node.name, 0) + by_map.shape[1]


def _float32_rows(layer: Int8Layer, weight: TensorProto) -> Float64Array:
    """Return the weight of a layer in float32, ``[F, D]``, with zeros for input maps that only the int8 one has."""
    values = array_of(weight)
    more = layer.weight.dims[1] - values.shape[1]
    return layer.rows_of(np.pad(values, [(0, 0), (0, more), *[(0, 0)] * (values.ndim - 2)]))


def _rounded(layer: Int8Layer, weight: Float64Array, moments: RowMoments, largest: int) -> NDArray[np.int64]:
    """Return the weight ``[F, D]`` in steps, fitted first if there are responses to fit it to."""
    found = np.empty(weight.shape, np.int64)
    each = len(weight) // layer.group
    inner = bool(chain_owner(layer.node.name))
    for group in range(layer.group):
        rows = slice(group * each, (group + 1) * each)
        second = moments.second(group, centred=inner or layer.bias is not None)
        ridge = np.trace(second) / len(second) * max(_LEAST_RIDGE, _RIDGE * len(second) / moments.rows)
        ridge = ridge if ridge > 0 else 1.0  # where nothing varies, any weight will do, and those that were there stay
        second[np.diag_indices(len(second))] += ridge
        wanted = weight[rows]
        cross = moments.cross(group, rows)
        if cross is not None:
            pulled = cross + ridge * wanted
            wanted = np.asarray(np.linalg.solve(second, pulled.T).T, np.float64)
        found[rows] = round_together(wanted, layer.steps[rows], second, largest)
    return found

"""What int8 code makes of one layer, or of a chain in its place, computed in float32 with numbers on int8 grids.

Every row of a weight has its own step, the largest magnitude in it over 127 (64 where weights have 7 bits). An
activation has one of 256 numbers: ``s (q - z)`` with ``q`` from 0 to 255, zero among them, over a range that is chosen
as the writer chooses it, on equalised maps. What is rounded is what the layer reads, its weights, and what each link
hands to the next. The response itself is rounded where the next layer reads it, behind its ReLU if there is one: that
belongs to the next layer. Links have no activation between them, so there is none to absorb.

Here weights are rounded to their nearest steps, each by itself; the writer rounds a row together, and then refits the
last link (:mod:`onnxlowrank.quantize.refit`), which takes a part of this back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.layer import FloatArray, Layer
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.graph.walk import names, rebuild, unique
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.quantize.equalise import equalised, inner_tensors
from onnxlowrank.quantize.int8_layers import Float64Array, largest_weight
from onnxlowrank.quantize.observe import activations, observe
from onnxlowrank.quantize.ranges import LEVELS, Range, Ranging, grid

_INPUT, _RESPONSE = "x", "y"


@dataclass(frozen=True, eq=False)
class Rounding:
    """What rounding does to a response.

    Attributes:
        moved: ``[F]``, by how much the mean of every map moves; the writer takes that back.
        noise: Variance of the rest of the error, summed over the maps.
        variance: That of the response without it, likewise.
    """

    moved: Float64Array
    noise: float
    variance: float


def rounding_of(
    layer: Layer, chain: Chain, read: NDArray[np.float32], ends: Range, ranging: Ranging, weight_bits: int
) -> Rounding:
    """Return what rounding does to the response of a chain.

    Args:
        layer: What it stands for.
        chain: Finite.
        read: What the layer reads, some samples.
        ends: The range of that.
        ranging: Chooses the ranges of inner maps.
        weight_bits: 8, or 7 for weights within +-64.
    """
    model, alone = _alone(layer, read.ndim)
    given, rounded = (_inputs(values) for values in (read, on_grid(read, ends)))
    (chain,) = equalised(model, [alone], {layer.name: chain}, given, _nothing).values()
    written, coarse = (
        rewrite(model, [alone], {layer.name: one}) for one in (chain, with_weights_on_grid(chain, weight_bits))
    )
    inner = [tensor for tensors in inner_tensors(written, {layer.name}, alone, chain) for tensor in tensors]
    seen = observe(written, inner, given, _nothing) if inner else {}
    ranges = {tensor: ends for tensor, ends in ((name, ranging(one)) for name, one in seen.items()) if ends.is_usable}
    coarse = with_rounded_reads(coarse, {node.name for node in coarse.graph.node}, ranges)
    before, after = (_rows(layer, one, values) for one, values in ((written, given), (coarse, rounded)))
    error = after - before
    return Rounding(error.mean(axis=0), float(error.var(axis=0).sum()), float(before.var(axis=0).sum()))


def on_grid(values: NDArray[np.float32], ends: Range) -> NDArray[np.float32]:
    """Return numbers as they are once they have been rounded to 256 steps of a usable range."""
    scale, zero = grid(ends)
    steps = np.clip(np.rint(values / np.float32(scale)), -zero, LEVELS - zero)
    rounded: NDArray[np.float32] = steps.astype(np.float32) * np.float32(scale)
    return rounded


def with_weights_on_grid(chain: Chain, weight_bits: int) -> Chain:
    """Return a chain whose weights are whole numbers of steps, one step a row."""
    return replace(chain, steps=tuple(_on_grid(step, largest_weight(weight_bits)) for step in chain.steps))


def with_rounded_reads(model: ModelProto, nodes: Collection[str], ranges: Mapping[str, Range]) -> ModelProto:
    """Return a network some of whose nodes read tensors that have been rounded to 256 steps.

    It does so with nodes that compute in float32: onnxruntime makes of QuantizeLinear and DequantizeLinear whatever it
    likes.

    Args:
        model: A network of opset 11 or newer.
        nodes: Names of its nodes.
        ranges: Usable ones, of what is rounded where these read it.
    """
    taken = names(model)
    made: list[NodeProto] = []
    constants: list[TensorProto] = []
    rounded: dict[str, str] = {}
    for node in model.graph.node:
        wanted = [name for name in node.input if name in ranges] if node.name in nodes else []
        if wanted:
            for name in dict.fromkeys(wanted):
                if name not in rounded:
                    written, added = _rounding(name, ranges[name], taken)
                    rounded[name] = written[-1].output[0]
                    made += written
                    constants += added
            copy = NodeProto()
            copy.CopyFrom(node)
            for position, name in enumerate(node.input):
                copy.input[position] = rounded[name] if name in wanted else name
            node = copy
        made.append(node)
    graph = model.graph
    return rebuild(
        model, nodes=made, initializers=[*graph.initializer, *constants], inputs=graph.input, outputs=graph.output
    )


def _rounding(tensor: str, ends: Range, taken: set[str]) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return the nodes that round a tensor, and their constants."""
    scale, zero = grid(ends)
    values = {"scale": scale, "low": -zero, "high": LEVELS - zero}
    constants = [
        numpy_helper.from_array(np.array(value, np.float32), unique(f"{tensor}/{name}", taken))
        for name, value in values.items()
    ]
    step, low, high = (one.name for one in constants)
    nodes = []
    for op, more in (("Div", [step]), ("Round", []), ("Clip", [low, high]), ("Mul", [step])):
        output = unique(f"{tensor}/{op.lower()}", taken)
        nodes.append(helper.make_node(op, [tensor, *more], [output], name=output))
        tensor = output
    return nodes, constants


def _on_grid(step: Step, largest: int) -> Step:
    rows = step.weight.reshape(len(step.weight), -1).astype(np.float64)
    most = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    size = np.where(most > 0, most, 1.0) / largest
    return replace(step, weight=(np.rint(rows / size) * size).reshape(step.weight.shape).astype(np.float32))


def _alone(layer: Layer, axes: int) -> tuple[ModelProto, Layer]:
    """Return a network of one node, in the place of a layer, and the layer there: it is to be rewritten."""
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * axes if name == _INPUT else None)
        for name in (_INPUT, _RESPONSE)
    ]
    node = helper.make_node("Identity", [_INPUT], [_RESPONSE], name=layer.name)
    graph = helper.make_graph([node], "layer", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, replace(layer, input=_INPUT, output=_RESPONSE, nodes=(layer.name,), elsewhere=())


def _inputs(values: NDArray[np.float32]) -> Inputs:
    return Inputs(lambda index: {_INPUT: values}, 1, len(values), "what a layer reads")


def _rows(layer: Layer, model: ModelProto, inputs: Inputs) -> Float64Array:
    """Return the response ``[n, F]`` of a network of one layer."""
    (values,) = (one[_RESPONSE] for one in activations(model, [_RESPONSE], inputs, _nothing))
    by_map: FloatArray = values if layer.channels_last else np.moveaxis(values, 1, -1)
    return by_map.reshape(-1, layer.outputs).astype(np.float64)


def _nothing(amount: float) -> None:
    """Hear of progress."""

"""Replaces layers by chains."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, NodeProto
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxlowrank.graph.chain import Chain, IntArray, Step
from onnxlowrank.graph.convolution import conv_attributes, conv_operator, conv_weight
from onnxlowrank.graph.layer import FloatArray, Layer, Place
from onnxlowrank.graph.walk import names, needed, opset, rebuild, unique


def rewrite(model: ModelProto, layers: Sequence[Layer], chains: Mapping[str, Chain]) -> ModelProto:
    """Return a copy of ``model`` in which every layer that ``chains`` names is computed by its chain.

    The nodes of a chain stand where the layer stood, are called ``<layer>/lowrank/<step>`` and end in the layer's
    output; at other places of the layer they are called after the first node there, and share the weights. Every other
    node, and all that is not computation, stays exactly as it was; weights that nothing reads
    any more are dropped. Equal arguments give equal bytes.

    Args:
        model: A normalised model.
        layers: Layers of that model.
        chains: Chains by the name of the layer they replace.

    Raises:
        ValueError: ``chains`` names a layer that is not in ``layers``, the nodes of a layer are not in ``model``, or
            the nodes of ``model`` have no unique names.
    """
    replaced = [layer for layer in layers if layer.name in chains]
    if len(replaced) != len(chains):
        raise ValueError(f"no such layers: {sorted(set(chains) - {layer.name for layer in layers})}")

    positions = {node.name: position for position, node in enumerate(model.graph.node)}
    if len(positions) != len(model.graph.node):
        raise ValueError("the nodes of the model have no unique names; normalise it first")

    builder = _Builder(names(model), opset(model))
    placed: dict[int, list[NodeProto]] = {}  # what stands where nodes of layers stood
    for layer in replaced:
        for place, written in builder.places(layer, chains[layer.name]):
            if not positions.keys() >= set(place.nodes):
                raise ValueError(f"the nodes of layer '{place.name}' are not in the model")
            there = sorted(positions[name] for name in place.nodes)
            placed |= {position: [] for position in there}
            placed[there[-1]] = [OnnxExporter.export_node(node) for node in written]

    nodes = [new for old, node in enumerate(model.graph.node) for new in placed.get(old, [node])]
    outputs = [output.name for output in model.graph.output]
    added = [OnnxExporter.export_tensor_proto(tensor) for tensor in builder.constants]
    return rebuild(
        model,
        nodes=needed(nodes, outputs),
        initializers=[*model.graph.initializer, *added],
        inputs=model.graph.input,
        outputs=model.graph.output,
    )


class _Builder:
    """Makes the nodes of chains.

    Attributes:
        constants: The weights and biases added so far.
    """

    def __init__(self, taken: set[str], opset: int) -> None:
        self.constants: list[gs.Constant] = []
        self._taken = taken
        self._opset = opset

    def places(self, layer: Layer, chain: Chain) -> list[tuple[Place, list[gs.Node]]]:
        """Return the nodes that compute ``chain`` at every place of a layer."""
        first, *others = layer.places
        written = self._nodes(layer, chain)
        placed = [(place, self._copies(written, first, place)) for place in others]
        placed.append((first, written))
        for place, nodes in placed:
            nodes[-1].outputs = [gs.Variable(place.output)]
        return placed

    def _copies(self, written: Sequence[gs.Node], first: Place, place: Place) -> list[gs.Node]:
        """Return nodes that compute at ``place`` what ``written`` compute at the ``first`` one, with its constants."""
        tensors = {first.input: gs.Variable(place.input)}
        copies = []
        for node in written:
            name = unique(place.name + node.name.removeprefix(first.name), self._taken)
            outputs = [self._variable(f"{name}/output") for _ in node.outputs]
            inputs = [tensors.get(tensor.name, tensor) for tensor in node.inputs]
            tensors |= {tensor.name: copy for tensor, copy in zip(node.outputs, outputs, strict=True)}
            copies.append(gs.Node(node.op, name, dict(node.attrs), inputs=inputs, outputs=outputs))
        return copies

    def _nodes(self, layer: Layer, chain: Chain) -> list[gs.Node]:
        """Return the nodes of ``chain``, wired to the layer's input."""
        nodes: list[gs.Node] = []
        tensor: gs.Tensor = gs.Variable(layer.input)
        for step in chain.steps:
            name = unique(f"{layer.name}/lowrank/{step.name}", self._taken)
            bias = chain.bias if step is chain.steps[-1] else None
            for node in self._link(layer, step, name, bias, tensor):
                nodes.append(node)
                tensor = node.outputs[0]
        if layer.op == "MatMul" and chain.bias is not None:
            name = unique(f"{layer.name}/lowrank/bias", self._taken)
            addend = chain.bias[:, None] if layer.columns else chain.bias
            nodes.append(self._node("Add", name, [tensor, self._constant(f"{name}.bias", addend)]))
        return nodes

    def _link(
        self, layer: Layer, step: Step, name: str, bias: FloatArray | None, source: gs.Tensor
    ) -> Iterator[gs.Node]:
        """Yield the nodes of one step; the last one's first output is the step's."""
        if step.take is not None:
            source = yield from self._gather(f"{name}/take", source, step.take)
        if step.give is not None and bias is not None:
            spread = np.zeros(step.weight.shape[0])
            spread[step.give] = bias
            bias = spread
        if not step.split:
            node = self._dense(layer, step, name, bias, source)
            yield node
        else:
            parts = self._part(name, step, source)
            yield parts
            f = step.weight.shape[0] // step.group
            convolutions = []
            for g, part in enumerate(parts.outputs):
                rows = slice(g * f, (g + 1) * f)
                one = Step(step.name, step.weight[rows], step.geometry)
                own = unique(f"{name}/{g}", self._taken)
                convolutions.append(self._dense(layer, one, own, None if bias is None else bias[rows], part))
            yield from convolutions
            joined = [node.outputs[0] for node in convolutions]
            node = self._node("Concat", unique(f"{name}/concat", self._taken), joined, axis=1)
            yield node
        if step.give is not None:
            yield from self._gather(f"{name}/give", node.outputs[0], step.give)

    def _dense(self, layer: Layer, step: Step, name: str, bias: FloatArray | None, source: gs.Tensor) -> gs.Node:
        """Return the one node that computes a step on maps in their order."""
        if layer.op == "MatMul":
            if layer.columns:
                return self._node("MatMul", name, [self._constant(f"{name}.weight", step.weight), source])
            return self._node("MatMul", name, [source, self._constant(f"{name}.weight", step.weight.T)])
        operands = [self._constant(f"{name}.weight", conv_weight(step))]
        if layer.op == "Gemm" and bias is None and self._opset < 11:  # until then its C was not optional
            bias = np.zeros(step.weight.shape[0])
        if bias is not None:
            operands.append(self._constant(f"{name}.bias", bias))
        attributes = conv_attributes(step) if layer.is_conv else {"transB": 1}
        if layer.op == "Gemm" and layer.columns and source.name in {place.input for place in layer.places}:
            attributes["transA"] = 1
        op = conv_operator(step.geometry) if layer.is_conv else layer.op
        return self._node(op, name, [source, *operands], **attributes)

    def _gather(self, name: str, source: gs.Tensor, order: IntArray) -> Generator[gs.Node, None, gs.Tensor]:
        """Yield the node that puts maps in an order; return its output."""
        name = unique(name, self._taken)
        node = self._node("Gather", name, [source, self._constant(f"{name}.order", order, np.int64)], axis=1)
        yield node
        return node.outputs[0]

    def _part(self, name: str, step: Step, source: gs.Tensor) -> gs.Node:
        """Return the node that parts the maps of the groups."""
        name, sizes = unique(f"{name}/split", self._taken), [step.weight.shape[1]] * step.group
        node = self._node("Split", name, [source], axis=1)
        if self._opset < 13:
            node.attrs["split"] = sizes
        else:
            node.inputs.append(self._constant(f"{name}.sizes", np.array(sizes), np.int64))
        node.outputs = [self._variable(f"{name}/output") for _ in sizes]
        return node

    def _node(self, op: str, name: str, inputs: list[gs.Tensor], **attributes: Any) -> gs.Node:
        return gs.Node(op, name, attributes, inputs=inputs, outputs=[self._variable(f"{name}/output")])

    def _variable(self, name: str) -> gs.Variable:
        return gs.Variable(unique(name, self._taken), dtype=np.float32)

    def _constant(self, name: str, values: np.ndarray[Any, Any], dtype: type = np.float32) -> gs.Constant:
        """Return a new initializer."""
        constant = gs.Constant(unique(name, self._taken), np.ascontiguousarray(values, dtype))
        self.constants.append(constant)
        return constant

"""Replaces layers by chains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxlowrank.chain import Chain, Step
from onnxlowrank.graph.convolution import conv_attributes
from onnxlowrank.graph.walk import names, opset, rebuild, unique
from onnxlowrank.layer import Layer


def rewrite(model: ModelProto, layers: Sequence[Layer], chains: Mapping[str, Chain]) -> ModelProto:
    """Return a copy of ``model`` in which every layer that ``chains`` names is computed by its chain.

    The nodes of a chain stand where the layer stood, are called ``<layer>/lowrank/<step>`` and end in the layer's
    output. Every other node, and all that is not computation, stays exactly as it was; weights that nothing reads
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

    originals = {node.name: node for node in model.graph.node}
    if len(originals) != len(model.graph.node):
        raise ValueError("the nodes of the model have no unique names; normalise it first")

    graph = gs.import_onnx(model)
    builder = _Builder(graph, names(model), opset(model))
    for layer in replaced:
        builder.replace(layer, chains[layer.name])
    graph.cleanup()

    nodes = [originals.get(node.name) or OnnxExporter.export_node(node) for node in graph.nodes]
    added = [OnnxExporter.export_tensor_proto(tensor) for tensor in builder.constants]
    return rebuild(
        model,
        nodes=nodes,
        initializers=[*model.graph.initializer, *added],
        inputs=model.graph.input,
        outputs=model.graph.output,
    )


class _Builder:
    """Puts chains into a graph in place of layers.

    Attributes:
        constants: The weights and biases added so far.
    """

    def __init__(self, graph: gs.Graph, taken: set[str], opset: int) -> None:
        self.constants: list[gs.Constant] = []
        self._graph = graph
        self._tensors = graph.tensors()
        self._taken = taken
        self._opset = opset

    def replace(self, layer: Layer, chain: Chain) -> None:
        """Put ``chain`` where the last node of ``layer`` is and take the nodes of ``layer`` out."""
        nodes = self._graph.nodes
        positions = [i for i, node in enumerate(nodes) if node.name in layer.nodes]
        if len(positions) != len(layer.nodes):
            raise ValueError(f"the nodes of layer '{layer.name}' are not in the model")
        for i in positions:
            nodes[i].outputs.clear()
        nodes[positions[-1] : positions[-1] + 1] = self._nodes(layer, chain)
        for i in reversed(positions[:-1]):
            del nodes[i]

    def _nodes(self, layer: Layer, chain: Chain) -> list[gs.Node]:
        """Return the nodes of ``chain``, wired from the layer's input to its output."""
        links = list(self._links(layer, chain))
        inner = [gs.Variable(unique(f"{name}/output", self._taken), dtype=np.float32) for _, name, _, _ in links[:-1]]
        tensors = [self._tensors[layer.input], *inner, self._tensors[layer.output]]
        return [
            gs.Node(op, name, attributes, inputs=[source, *operands], outputs=[target])
            for (op, name, attributes, operands), (source, target) in zip(links, pairwise(tensors), strict=True)
        ]

    def _links(self, layer: Layer, chain: Chain) -> Iterator[tuple[str, str, dict[str, Any], list[gs.Constant]]]:
        """Yield operator, name, attributes and constant operands of every node of ``chain``."""
        for step in chain.steps:
            name = unique(f"{layer.name}/lowrank/{step.name}", self._taken)
            bias = chain.bias if step is chain.steps[-1] else None
            if layer.op == "MatMul":
                yield "MatMul", name, {}, [self._constant(f"{name}.weight", step.weight.T)]
                continue
            operands = [self._constant(f"{name}.weight", step.weight)]
            if layer.op == "Gemm" and bias is None and self._opset < 11:  # until then its C was not optional
                bias = np.zeros(step.weight.shape[0])
            if bias is not None:
                operands.append(self._constant(f"{name}.bias", bias))
            yield layer.op, name, self._attributes(layer, step), operands
        if layer.op == "MatMul" and chain.bias is not None:
            name = unique(f"{layer.name}/lowrank/bias", self._taken)
            yield "Add", name, {}, [self._constant(f"{name}.bias", chain.bias)]

    @staticmethod
    def _attributes(layer: Layer, step: Step) -> dict[str, Any]:
        """Return the attributes of the Conv or Gemm node for ``step``."""
        return conv_attributes(step) if layer.is_conv else {"transB": 1}

    def _constant(self, name: str, values: np.ndarray[Any, Any]) -> gs.Constant:
        """Return a new float32 initializer."""
        constant = gs.Constant(unique(name, self._taken), np.ascontiguousarray(values, np.float32))
        self.constants.append(constant)
        return constant

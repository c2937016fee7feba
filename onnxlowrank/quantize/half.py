"""Half precision: a float32 network becomes one of float16, but for what is out of that range on sample inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto
from onnxruntime.transformers.float16 import convert_float_to_float16

from onnxlowrank.calibrate.hold_out import spread
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.index import attributes, is_standard
from onnxlowrank.graph.outside import values
from onnxlowrank.graph.walk import needed, rebuild
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.progress import Progress
from onnxlowrank.quantize.observe import activations

_LARGEST = float(np.finfo(np.float16).max) / 2
"""Of a number, so that sums on their way and other inputs have some room."""
_OBSERVED = 32
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Half:
    """What it takes to make float16 networks of one network.

    Attributes:
        inputs: Sample inputs.
    """

    inputs: Inputs

    def outline(self, model: ModelProto) -> ModelProto:
        """Return a network in half precision, to be timed."""
        return narrowed(model)

    def network(
        self,
        chains: Mapping[str, Chain],
        write: Callable[[Mapping[str, Chain]], ModelProto],
        progress: Progress,
    ) -> ModelProto:
        """Return the network with chains in place of layers, in half precision where numbers are in its range."""
        model = write(chains)
        few = self.inputs.subset(spread(self.inputs, _OBSERVED))
        advance = progress.stage("ranges", len(few))
        tensors = [
            name for node in model.graph.node for name in node.output if name and not is_standard(node, "Constant")
        ]
        out = {tensor.name for tensor in model.graph.initializer if _is_out(values(tensor))}
        for found in activations(model, tensors, few, advance):
            out |= {name for name, value in found.items() if _is_out(value)}
        kept = [node.name for node in model.graph.node if out.intersection([*node.input, *node.output])]
        _LOG.info("in float32 stay %s", kept)
        return narrowed(model, kept)


def narrowed(model: ModelProto, float32: Collection[str] = ()) -> ModelProto:
    """Return a copy of a network in half precision; inputs and outputs stay as they are.

    Args:
        model: A network whose nodes have unique names.
        float32: Names of nodes that stay in float32.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    made = convert_float_to_float16(copy, keep_io_types=True, node_block_list=list(float32)).graph
    outputs = [output.name for output in model.graph.output]
    nodes = needed(_in_order(_without_detours(made.node)), outputs)
    result = rebuild(
        model, nodes=nodes, initializers=made.initializer, inputs=model.graph.input, outputs=model.graph.output
    )
    del result.graph.value_info[:]
    return result


def _without_detours(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Return nodes of which none reads what went from float32 to float16 and back: numbers out of range are lost there.

    That is what stands between two nodes that stay in float32.
    """
    nodes = list(nodes)
    narrow = {node.output[0]: node.input[0] for node in nodes if _casts_to(node, TensorProto.FLOAT16)}
    straight = {
        node.output[0]: narrow[node.input[0]]
        for node in nodes
        if _casts_to(node, TensorProto.FLOAT) and node.input[0] in narrow
    }
    for node in nodes:
        node.input[:] = [straight.get(name, name) for name in node.input]
    return nodes


def _casts_to(node: NodeProto, kind: int) -> bool:
    return is_standard(node, "Cast") and attributes(node)["to"] == kind


def _in_order(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Return nodes in an order in which each comes behind those that write what it reads."""
    left, ordered = list(nodes), []
    written = {name for node in left for name in node.output}
    while left:
        ready = [node for node in left if not written.intersection(node.input)]
        if not ready:
            raise ValueError("the graph has a circle")
        ordered += ready
        for node in ready:
            written.difference_update(node.output)
        left = [node for node in left if not any(node is one for one in ready)]
    return ordered


def _is_out(value: NDArray[np.generic]) -> bool:
    return value.dtype == np.float32 and bool(value.size) and not float(np.abs(value).max()) <= _LARGEST

"""The input projections of recurrent layers as layers of their own: an LSTM, a GRU or an RNN, unfolded and folded.

A recurrent layer computes its gates from ``W x_t + R h_(t-1) + b``. All ``W x_t`` of a sequence are one matrix product,
which low rank makes cheaper. ``R`` is multiplied inside the operator's own loop over the steps, which takes it whole;
two factors would take a loop of other operators. So ``R`` stays, and

    LSTM(X; W, R)  =  LSTM(X W'; I, R)  =  LSTM(X V'; U, R)    where  W = U V

The first form is the *unfolded* one: a MatMul whose response is what a decomposition is to approximate, in front of a
recurrent layer that reads one block of it a direction, by parts of an identity; it is calibrated and fitted like any
fully connected layer. The last one is the *folded* one, which is written: the last link of a chain is the recurrent
layer's own ``W``. The directions share ``V``.

For ``T`` steps, ``I`` inputs, ``H`` hidden units, ``G`` gates and ``D`` directions, ``T I D G H`` multiply-accumulates
become ``T K (I + D G H)``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxlowrank.graph.index import Index, is_standard
from onnxlowrank.graph.walk import names, rebuild, unique

RECURRENT = ("LSTM", "GRU", "RNN")
_READS_BLOCKS = "/lowrank.identity"  # behind the name of W, where it only takes the blocks of a projection apart


def unfold_recurrent(model: ModelProto) -> ModelProto:
    """Return a normalised model in which the input projections of recurrent layers are MatMuls.

    Those whose ``W`` is not constant, or not float32, stay. The MatMul of a node is called ``<node>/input``.
    """
    index, taken = Index.of(model), names(model)
    nodes: list[NodeProto] = []
    added: dict[str, TensorProto] = {}
    for node in model.graph.node:
        weight = index.weights(node.input[1]) if is_standard(node, *RECURRENT) else None
        if weight is None or weight.ndim != 3 or not weight.size:
            nodes.append(node)
            continue
        directions, gates, size = weight.shape
        blocks = np.eye(directions * gates, dtype=np.float32).reshape(directions, gates, -1)
        product, projected = f"{node.input[1]}/lowrank.transposed", unique(f"{node.name}/input/output", taken)
        transposed = np.ascontiguousarray(weight.reshape(-1, size).T)
        added[product] = numpy_helper.from_array(transposed, product)
        identity = node.input[1] + _READS_BLOCKS
        added[identity] = numpy_helper.from_array(blocks, identity)
        name = unique(f"{node.name}/input", taken)
        nodes.append(helper.make_node("MatMul", [node.input[0], product], [projected], name))
        nodes.append(_with_inputs(node, {0: projected, 1: identity}))
    return _with_nodes(model, nodes, added) if added else model


def fold_recurrent(model: ModelProto) -> ModelProto:
    """Undo :func:`unfold_recurrent`, whatever computes the projections by now: the last product becomes ``W``.

    A bias behind it becomes part of the recurrent layer's. Where the projection is computed by anything else, the
    recurrent layer stays unfolded, which computes the same.
    """
    if not any(reads_blocks(node) for node in model.graph.node):
        return model
    index = Index.of(model)
    writers = {name: node for node in model.graph.node for name in node.output if name}
    dropped: set[str] = set()
    replaced: dict[str, NodeProto] = {}
    added: dict[str, TensorProto] = {}
    for node in filter(reads_blocks, model.graph.node):
        blocks, product, bias = index.weights(node.input[1]), writers.get(node.input[0]), None
        gone = [product]
        if product is not None and is_standard(product, "Add"):
            bias = index.weights(product.input[1])
            gone.append(product := writers.get(product.input[0]) if bias is not None else None)
        if blocks is None or product is None or not is_standard(product, "MatMul"):
            continue
        right = index.weights(product.input[1])
        if right is None or any(one is None or index.sole_reader(one.output[0]) is None for one in gone):
            continue
        name = node.input[1].removesuffix(_READS_BLOCKS)
        weight = np.ascontiguousarray(right.T).reshape(*blocks.shape[:2], -1)
        known = numpy_helper.to_array(added[name]) if name in added else index.array(name)
        if known is not None and not np.array_equal(known, weight):
            name = (
                f"{node.name}/{name}"  # something else reads the weight that was, or another node has another one now
            )
        added[name] = numpy_helper.from_array(weight, name)
        inputs = {0: product.input[0], 1: name}
        if bias is not None:
            inputs[3] = f"{node.name}/lowrank.bias"
            added[inputs[3]] = numpy_helper.from_array(_with_bias(index, node, bias, blocks.shape[:2]), inputs[3])
        replaced[node.name] = _with_inputs(node, inputs)
        dropped |= {one.name for one in gone if one is not None}
    nodes = [replaced.get(node.name, node) for node in model.graph.node if node.name not in dropped]
    return _with_nodes(model, nodes, added) if added else model


def reads_blocks(node: NodeProto) -> bool:
    """Return whether a node is a recurrent layer whose input projection is a MatMul in front of it."""
    return is_standard(node, *RECURRENT) and node.input[1].endswith(_READS_BLOCKS)


def _with_bias(index: Index, node: NodeProto, bias: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the bias ``[D, 2 G H]`` of a recurrent layer with more in its first half, that of the projection."""
    directions, gates = shape
    given = index.weights(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    total = np.zeros((directions, 2 * gates), np.float32) if given is None else given.copy()
    total[:, :gates] += np.broadcast_to(bias.reshape(-1), (directions * gates,)).reshape(directions, gates)
    return total


def _with_inputs(node: NodeProto, inputs: Mapping[int, str]) -> NodeProto:
    changed = NodeProto()
    changed.CopyFrom(node)
    changed.input.extend([""] * (max(inputs) + 1 - len(changed.input)))
    for position, name in inputs.items():
        changed.input[position] = name
    return changed


def _with_nodes(model: ModelProto, nodes: list[NodeProto], added: Mapping[str, TensorProto]) -> ModelProto:
    initializers = [*(one for one in model.graph.initializer if one.name not in added), *added.values()]
    return rebuild(model, nodes=nodes, initializers=initializers, inputs=model.graph.input, outputs=model.graph.output)

"""Which nodes of a network draw random numbers, other ones in every run, and how to make them draw the same ones."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxlowrank.graph.index import is_standard
from onnxlowrank.graph.outside import values
from onnxlowrank.graph.walk import subgraphs, walk

_DRAWING = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")


def random_nodes(model: ModelProto) -> list[NodeProto]:
    """Return the nodes that draw random numbers and have no seed, in graphs inside of nodes and functions as well.

    A node with a seed draws the same numbers in every session, as long as it is run as often there.
    """
    bodies = (model.graph.node, *(function.node for function in model.functions))
    nodes = [node for body in bodies for node in walk(body)]
    drawing = [node for node in nodes if is_standard(node, *_DRAWING) or is_standard(node, "Dropout")]
    if not drawing:
        return []
    constants = _constants(model, nodes)
    return [node for node in drawing if _draws(node, constants) and not _has_seed(node)]


def with_seeds(model: ModelProto, seed: int) -> ModelProto:
    """Return the network with a seed at every node that draws random numbers and has none; itself without such nodes.

    Args:
        model: The network.
        seed: Of all of them; each gets another one.
    """
    if not random_nodes(model):
        return model
    seeded = ModelProto()
    seeded.CopyFrom(model)
    nodes = random_nodes(seeded)
    # from seeds near each other onnxruntime's generator draws much the same numbers, from 0 and 1 the very same
    seeds = np.random.default_rng(seed).choice(np.arange(1, 2**24), len(nodes), replace=False)
    for node, own in zip(nodes, seeds.tolist(), strict=True):
        node.attribute.append(helper.make_attribute("seed", own if node.op_type == "Dropout" else float(own)))
    return seeded


def _has_seed(node: NodeProto) -> bool:
    return any(attribute.name == "seed" for attribute in node.attribute)


def _draws(node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    """Return whether a node draws; a Dropout does in training mode alone."""
    if not is_standard(node, "Dropout"):
        return True
    ratio, training = (constants.get(node.input[i]) if len(node.input) > i else None for i in (1, 2))
    if len(node.input) < 3 or not node.input[2]:
        return False
    return all(tensor is None or bool(values(tensor)) for tensor in (ratio, training))


def _constants(model: ModelProto, nodes: list[NodeProto]) -> dict[str, TensorProto]:
    """Return the initializers and the values of Constant nodes, in whatever graph they are."""
    graphs = [model.graph, *(graph for node in nodes for graph in subgraphs(node))]
    found = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
    for node in nodes:
        if is_standard(node, "Constant") and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found

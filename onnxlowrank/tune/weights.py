"""Which weights are trained, and how the values they have become are put into the network: nothing else changes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxlowrank.errors import NothingToTrainError, UnsupportedModelError
from onnxlowrank.graph.index import is_standard
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.outside import is_large
from onnxlowrank.graph.walk import needed, reads
from onnxlowrank.tune.network import is_known
from onnxlowrank.tune.quantised import dequantised_constants, source_of

CHAINS, ABOVE, ALL = "chains", "above", "all"
MODES = (CHAINS, ABOVE, ALL)

_REAL = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_MOVED = ("Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "DequantizeLinear")


@dataclass(frozen=True)
class Trained:
    """What is trained of a network.

    Attributes:
        weights: Names of constants.
        nodes: Names of the nodes that read them, in the order of the graph.
        stopped_by: Operators that no gradient gets through, with the node: what is in front of these stays.
    """

    weights: tuple[str, ...]
    nodes: tuple[str, ...]
    stopped_by: tuple[str, ...] = ()


def chain_nodes(original: ModelProto, optimised: ModelProto) -> list[NodeProto]:
    """Return the nodes of a network that the original one, its BatchNorm folded or not, does not have."""
    known = {node.name for model in (original, normalise(original)) for node in model.graph.node if node.name}
    written = {name for node in original.graph.node for name in node.output}
    return [
        node
        for node in optimised.graph.node
        if (node.name not in known if node.name else node.output[0] not in written)
        and not is_standard(node, "Constant")
    ]


def trained_weights(original: ModelProto, optimised: ModelProto, mode: str, judged: Collection[str]) -> Trained:
    """Return what is to be trained of an optimised network.

    Args:
        original: The network it was made of.
        optimised: The network.
        mode: ``chains``: what stands in place of layers; ``above``: layers that nothing approximated comes after, so
            that what is approximated stays, and all in front of it (Denton 2014, Sec. 3.5); ``all``.
        judged: Tensors that outputs are judged by; what these do not depend on is not trained.

    Raises:
        NothingToTrainError: There is nothing to train in this mode.
        UnsupportedModelError: The network is too large, or no gradient reaches any of it.
    """
    if is_large(optimised):
        raise UnsupportedModelError(
            "the optimised network is beyond 2 GiB, which cannot be fine-tuned; give a smaller one"
        )
    nodes = needed(optimised.graph.node, judged)
    readers = dict(_weights(optimised, nodes))
    layers = {_key(node) for its in readers.values() for node in its}
    chains = layers.intersection(map(_key, chain_nodes(original, optimised)))
    if mode != ALL and not chains:
        raise NothingToTrainError(
            f"OPTIMISED has no layer that ORIGINAL has not, so --tune {mode} has nothing to begin with; use --tune all"
        )
    if mode == CHAINS:
        chosen = {name: its for name, its in readers.items() if chains & {_key(node) for node in its}}
    elif mode == ABOVE:
        fixed = _upstream(nodes, [node for node in nodes if _key(node) in chains])
        chosen = {name: its for name, its in readers.items() if not fixed & {_key(node) for node in its}}
        if not chosen:
            raise NothingToTrainError(
                "--tune above leaves nothing to train: the last layer is approximated itself; use --tune chains or all"
            )
    else:
        chosen = readers
    if not chosen:
        raise UnsupportedModelError("the optimised network has no weights that could be trained")
    unknown = [node for node in nodes if not is_known(node)]
    behind = _upstream(nodes, unknown)
    reached = {name: its for name, its in chosen.items() if not behind & {_key(node) for node in its}}
    stopping = [node for node in unknown if _key(node) in _downstream(nodes, chosen)]
    names = tuple(dict.fromkeys(f"{node.op_type} (node '{node.name or node.output[0]}')" for node in stopping))
    if not reached:
        raise UnsupportedModelError(
            f"PyTorch is not taught to differentiate {_listed(names)}, which all that is to be trained leads to; "
            "nothing can be fine-tuned in front of it"
        )
    its_nodes = {_key(node) for its in reached.values() for node in its}
    return Trained(tuple(reached), tuple(key for node in nodes if (key := _key(node)) in its_nodes), names)


def changed(model: ModelProto, found: Mapping[str, NDArray[np.floating]]) -> ModelProto:
    """Return a copy of a network with other values in some of its constants, stored as they were."""
    result = ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in found:
            _write(tensor, found[tensor.name])
    for node in result.graph.node:
        if is_standard(node, "Constant") and node.output[0] in found:
            for attribute in node.attribute:
                if attribute.name == "value":
                    _write(attribute.t, found[node.output[0]])
    return result


def _listed(names: Sequence[str]) -> str:
    most = 5
    return ", ".join(names[:most]) + (f" and {len(names) - most} others" if len(names) > most else "")


def _key(node: NodeProto) -> str:
    return node.name or node.output[0]


def _write(tensor: TensorProto, found: NDArray[np.floating]) -> None:
    """Put values into a tensor, in the field where it has them."""
    values = found.reshape(tuple(tensor.dims)).astype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if tensor.HasField("raw_data"):
        tensor.raw_data = numpy_helper.from_array(values).raw_data
    elif tensor.double_data:
        tensor.double_data[:] = values.ravel().tolist()
    elif tensor.int32_data:
        whole = values if np.issubdtype(values.dtype, np.integer) else values.view(np.uint16)
        tensor.int32_data[:] = whole.ravel().tolist()
    else:
        tensor.float_data[:] = values.ravel().tolist()


def _weights(model: ModelProto, nodes: Sequence[NodeProto]) -> Iterator[tuple[str, list[NodeProto]]]:
    """Yield the names of constants that multiply in layers or are added there, and the nodes that read them."""
    real = {tensor.name for tensor in model.graph.initializer if tensor.data_type in _REAL}
    real -= {info.name for info in model.graph.input}
    real |= dequantised_constants(model).keys()
    writers = {name: node for node in nodes for name in node.output}
    for node in nodes:
        if is_standard(node, "Constant") and any(
            one.name == "value" and one.t.data_type in _REAL for one in node.attribute
        ):
            real.add(node.output[0])
    found: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in _operands(node, writers):
            constant = _origin(name, writers)
            if constant in real:
                found.setdefault(constant, []).append(node)
    yield from found.items()


def _operands(node: NodeProto, writers: Mapping[str, NodeProto]) -> list[str]:
    """Return the inputs of a node that may be weights."""
    if is_standard(node, "Conv", "ConvTranspose", "Gemm"):
        return [name for name in node.input[1:] if name]
    if is_standard(node, "MatMul"):
        return list(node.input)
    if is_standard(node, "Add") and any(
        source in writers and is_standard(writers[source], "MatMul")
        for source in (source_of(name, writers) for name in node.input)
    ):
        return list(node.input)
    return []


def _origin(name: str, writers: Mapping[str, NodeProto]) -> str:
    """Return what a tensor is before it is moved or cast."""
    while name in writers and is_standard(writers[name], *_MOVED):
        name = writers[name].input[0]
    return name


def _upstream(nodes: Sequence[NodeProto], of: Sequence[NodeProto]) -> set[str]:
    """Return the keys of nodes that some of these depend on, these included."""
    wanted = {name for node in of for name in reads(node)}
    found = {_key(node) for node in of}
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            found.add(_key(node))
            wanted.update(reads(node))
    return found


def _downstream(nodes: Sequence[NodeProto], constants: Collection[str]) -> set[str]:
    """Return the keys of nodes that depend on some of these constants."""
    moved, found = set(constants), set()
    for node in nodes:
        if moved.intersection(reads(node)):
            found.add(_key(node))
            moved.update(node.output)
    return found

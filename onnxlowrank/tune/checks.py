"""Whether PyTorch computes what onnxruntime does, before anything is trained.

Where activations are rounded, the least difference puts some of them on the other side, and with every layer these
become more: onnxruntime itself, asked not to fuse nodes, gives outputs that are off by a per cent. So from one rounding
to the next it is looked whether PyTorch comes to the same integers, with what onnxruntime found at the last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxlowrank.errors import UnsupportedModelError
from onnxlowrank.graph.index import is_standard
from onnxlowrank.graph.probe import expose
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.hardware import adds_int8_exactly
from onnxlowrank.measure.sessions import all_threads, open_session, running
from onnxlowrank.tune.libraries import Torch, torch
from onnxlowrank.tune.network import TorchNetwork
from onnxlowrank.tune.quantised import has_wide_weights
from onnxlowrank.tune.student import Student

_TOLERANCE = 1e-3
"""Relative error of a tensor; and of integers, how many may be off by more than one."""
_OTHER_SIDE = 0.5
"""How many integers may be off by one: the mean of four others often is right between two."""
_COMPUTED = "/computed"


def check_same(model: ModelProto, student: Student, feeds: Sequence[Feeds]) -> None:
    """Check that a network that is trained computes in PyTorch what it does in onnxruntime.

    Args:
        model: The network.
        student: That in PyTorch.
        feeds: Inputs; few where anything is rounded, since all of that is computed.

    Raises:
        UnsupportedModelError: It computes something else.
    """
    compared = _stages(model, student, feeds) if student.rounds else _outputs(model, student, feeds)
    for name, mine, wanted in compared:
        error = _error(mine, wanted)
        if not error <= _TOLERANCE:
            advice = "please report this with the network"
            if has_wide_weights(model) and not adds_int8_exactly():
                advice = "this processor adds int8 products up exactly only of --int8-weights 7bit: make it with these"
            raise UnsupportedModelError(
                f"PyTorch computes something else for tensor '{name}' of OPTIMISED than onnxruntime (error "
                f"{error:.2g}), so it cannot be fine-tuned; {advice}"
            )


def outputs_of(model: ModelProto, tensors: Sequence[str], feeds: Iterable[Feeds]) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield what onnxruntime computes, in the order of the feeds."""
    session = open_session(expose(model, tensors), all_threads())
    names = {value.name for value in session.get_inputs()}
    for one in feeds:
        with running(one):
            found = session.run(list(tensors), {name: one[name] for name in names})
        yield dict(zip(tensors, found, strict=True))


def arrays(found: dict[str, Torch]) -> dict[str, NDArray[Any]]:
    """Return tensors as arrays."""
    return {name: value.detach().cpu().numpy() for name, value in found.items()}


Compared = Iterator[tuple[str, NDArray[Any], NDArray[Any]]]


def _outputs(model: ModelProto, student: Student, feeds: Sequence[Feeds]) -> Compared:
    """Yield what the student gives, and what it should."""
    for one, expected in zip(feeds, outputs_of(model, student.outputs, feeds), strict=True):
        with torch.no_grad():
            found = arrays(student.run(one))
        yield from ((name, found[name], values) for name, values in expected.items())


def _stages(model: ModelProto, student: Student, feeds: Sequence[Feeds]) -> Compared:
    """Yield what PyTorch makes of the integers that onnxruntime comes to, and what it should."""
    nodes = [_renamed(node) for node in student.nodes]
    rounded = [node.output[0] for node in student.nodes if is_standard(node, "QuantizeLinear")]
    outputs = [*(f"{name}{_COMPUTED}" for name in rounded), *student.outputs]
    network = TorchNetwork(model, nodes, [], outputs, student.device)
    inside = sorted(network.feeds - {info.name for info in model.graph.input})
    tensors = list(dict.fromkeys([*inside, *rounded, *student.outputs]))
    for one, expected in zip(feeds, outputs_of(model, tensors, feeds), strict=True):
        with torch.no_grad():
            found = arrays(network.run({**one, **expected}))
        yield from ((name, found[f"{name}{_COMPUTED}"], expected[name]) for name in rounded)
        yield from ((name, found[name], expected[name]) for name in student.outputs)


def _renamed(node: NodeProto) -> NodeProto:
    """Return a node that writes no integers that another one reads."""
    if not is_standard(node, "QuantizeLinear"):
        return node
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.output[0] = f"{node.output[0]}{_COMPUTED}"
    return copy


def _error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    if found.shape != wanted.shape:
        return math.inf
    difference = np.abs(found.astype(np.float64) - wanted)
    if np.issubdtype(wanted.dtype, np.integer):
        if difference.size and np.mean(difference > 0.5) > _OTHER_SIDE:
            return float(np.mean(difference > 0.5))
        return float(np.mean(difference > 1.5)) if difference.size else 0.0
    norm = float(np.linalg.norm(wanted.astype(np.float64)))
    return float(np.linalg.norm(difference)) / (norm or 1.0)

"""A network, or the upper part of one, run by PyTorch node by node, so that it can be differentiated.

The graph stays what it is: weights that are trained are leaves of PyTorch's graph under their own names, and what they
have become is read back under these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxlowrank.errors import UnsupportedModelError
from onnxlowrank.graph.index import attributes, is_standard
from onnxlowrank.graph.outside import values
from onnxlowrank.graph.walk import needed, opset, reads
from onnxlowrank.tune import elementwise, layers, quantised, shapes
from onnxlowrank.tune.call import Call, Operator
from onnxlowrank.tune.libraries import Torch, torch

OPERATORS: Mapping[str, Operator] = {
    **elementwise.OPERATORS,
    **layers.OPERATORS,
    **shapes.OPERATORS,
    **quantised.OPERATORS,
}
"""What PyTorch is asked to compute, by the names of operators of the default domain."""
_COMPUTED = {**OPERATORS, **quantised.PAIR}


def is_known(node: NodeProto) -> bool:
    """Return whether a node's operator is one that PyTorch is asked to compute."""
    return node.op_type in OPERATORS and is_standard(node, node.op_type)


class TorchNetwork:
    """Nodes of a network in PyTorch.

    Attributes:
        parameters: What is trained, by name, in single precision at least: leaves that require gradients. Of integers
            they are the steps, see :mod:`onnxlowrank.tune.quantised`.
        outputs: The tensors that it gives.
    """

    def __init__(
        self, model: ModelProto, nodes: Sequence[NodeProto], trained: Sequence[str], outputs: Sequence[str], device: str
    ) -> None:
        """Take in nodes.

        Args:
            model: The network.
            nodes: Some of its nodes, in their order, all of known operators.
            trained: Names of constants that are trained.
            outputs: Tensors that the nodes write, or that they are given.
            device: Of PyTorch, ``cpu`` or ``cuda``.
        """
        self.outputs, self.device = tuple(outputs), device
        self._nodes = quantised.with_pairs(needed(nodes, outputs), outputs)
        used = {name for node in self._nodes for name in reads(node)}
        self._calls = [
            (node, _COMPUTED[node.op_type], Call(attributes(node), opset(model), len(node.output)))
            for node in self._nodes
        ]
        self._constants = {
            tensor.name: self._constant(np.array(values(tensor)), tensor.name)
            for tensor in model.graph.initializer
            if tensor.name in used
        }
        written = {name for node in self._nodes if node.op_type != "Constant" for name in node.output}
        for node, compute, call in self._calls:
            if is_standard(node, "Constant"):
                found = compute(call, [])
                self._constants[node.output[0]] = found.to(device) if found.is_floating_point() else found
        self._calls = [one for one in self._calls if not is_standard(one[0], "Constant")]
        self.parameters: dict[str, Torch] = {}
        bounds = quantised.bounds_of(model)
        self._bounds = {name: bounds[name] for name in trained if name in bounds}
        for name in trained:
            value = self._constants[name]
            wide = value if value.dtype == torch.float64 else value.float()
            self._constants[name] = self.parameters[name] = wide.to(device).clone().requires_grad_(True)
        self.feeds = used - written - self._constants.keys() | (set(outputs) - written - self._constants.keys())
        last = {name: index for index, (node, _, _) in enumerate(self._calls) for name in reads(node)}
        kept = set(outputs)
        self._done: list[list[str]] = [[] for _ in self._calls]
        for name, index in last.items():
            if name not in kept:
                self._done[index].append(name)

    def run(self, feeds: Mapping[str, NDArray[Any] | Torch]) -> dict[str, Torch]:
        """Return the outputs for one feed, of arrays or of tensors.

        Raises:
            Exception: Whatever PyTorch trips over.
        """
        found = dict(self._constants)
        for name, bounds in self._bounds.items():
            found[name] = quantised.rounded(self.parameters[name], bounds)
        found |= {
            name: self._tensor(value) if isinstance(value, np.ndarray) else value
            for name, value in feeds.items()
            if name in self.feeds
        }
        for (node, compute, call), done in zip(self._calls, self._done, strict=True):
            given = compute(call, [found[name] if name else None for name in node.input])
            if len(node.output) == 1:
                found[node.output[0]] = given
            else:
                found |= {name: one for name, one in zip(node.output, given, strict=False) if name}
            for name in done:
                found.pop(name, None)
        return {name: found[name] for name in self.outputs}

    def _constant(self, array: NDArray[Any], name: str) -> Torch:
        try:
            return self._tensor(array)
        except TypeError:
            raise UnsupportedModelError(
                f"PyTorch has no type for tensor '{name}' of the optimised network ({array.dtype.name}), so it cannot "
                "be fine-tuned; give a float32 network, or one of int8"
            ) from None

    def _tensor(self, array: NDArray[Any]) -> Torch:
        """Return an array as a tensor, images channel by channel within a pixel; whole numbers stay on the CPU."""
        if array.dtype.name == "bfloat16":
            tensor = torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
        else:
            tensor = torch.from_numpy(np.ascontiguousarray(array))
        tensor = tensor.reshape(array.shape)
        if not tensor.is_floating_point():
            return tensor
        tensor = tensor.to(self.device)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

"""One use of an operator, as the functions that compute it in PyTorch are told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxlowrank.tune.libraries import Torch, torch

Inputs = Sequence[Any]
"""Tensors of PyTorch; None for an input that is left out."""


@dataclass(frozen=True)
class Call:
    """A node without its inputs.

    Attributes:
        attributes: By name; texts are decoded.
        opset: Version of the standard operators.
        outputs: How many the node has.
    """

    attributes: Mapping[str, Any]
    opset: int
    outputs: int = 1

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)

    def setting(self, name: str, inputs: Inputs, position: int, default: Any = None) -> Any:
        """Return whole numbers that older opsets have as an attribute, newer ones as an input: a list of them."""
        if len(inputs) > position and inputs[position] is not None:
            return inputs[position].reshape(-1).tolist()
        return self.attributes.get(name, default)


Operator = Callable[[Call, Inputs], Any]
"""Computes a node: a tensor, or a sequence of them."""


def together(*tensors: Torch) -> list[Torch]:
    """Return tensors on one device: where any is on an accelerator, all are."""
    device = next((one.device for one in tensors if one.device.type != "cpu"), None)
    return list(tensors) if device is None else [one.to(device) for one in tensors]


def sizes(values: Sequence[int]) -> Torch:
    """Return whole numbers as a tensor; those about shapes stay on the CPU."""
    return torch.tensor(list(values), dtype=torch.int64)

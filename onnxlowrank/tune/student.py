"""The network that is trained: what no trained weight reaches is run as it is, the rest is differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxlowrank.boundary import reason
from onnxlowrank.errors import UnsupportedModelError
from onnxlowrank.graph.probe import expose
from onnxlowrank.graph.walk import needed, reads
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.sessions import all_threads, open_session, running
from onnxlowrank.tune.libraries import Torch, torch
from onnxlowrank.tune.network import TorchNetwork, is_known
from onnxlowrank.tune.quantised import bounds_of, is_quantised
from onnxlowrank.tune.weights import changed


class Student:
    """A network in two parts.

    Attributes:
        parameters: What is trained, by name.
        outputs: The tensors that it gives.
        nodes: What PyTorch computes.
        device: Of PyTorch.
    """

    def __init__(self, model: ModelProto, trained: Sequence[str], outputs: Sequence[str], device: str) -> None:
        """Take in a network.

        Args:
            model: The network.
            trained: Its constants that are trained; all nodes that depend on them have known operators.
            outputs: The tensors to give.
            device: Of PyTorch.
        """
        self._model, self.device, self.outputs = model, device, tuple(outputs)
        nodes = needed(model.graph.node, outputs)
        moved = set(trained)
        above, below = [], []
        for node in nodes:
            if moved.intersection(reads(node)) or node.op_type == "Constant":
                above.append(node)
                if node.op_type != "Constant":
                    moved.update(node.output)
            if not moved.intersection(node.output):
                below.append(node)
        self._above = TorchNetwork(model, above, trained, outputs, device)
        self.parameters = self._above.parameters
        given = {info.name for info in model.graph.input}
        self._between = sorted(self._above.feeds - given)
        self._below: TorchNetwork | None = None
        self._session: Any = None
        if self._between and all(map(is_known, needed(below, self._between))):
            self._below = TorchNetwork(model, below, [], self._between, device)
        elif self._between:
            self._session = open_session(expose(model, self._between), all_threads())
        self.nodes = above if self._below is None else nodes

    @property
    def rounds(self) -> bool:
        """Whether PyTorch rounds anything."""
        return is_quantised(self.nodes)

    def run(self, feeds: Feeds) -> dict[str, Torch]:
        """Return the outputs, through which gradients come back to the parameters.

        Raises:
            UnsupportedModelError: PyTorch fails on an operator.
        """
        given: dict[str, Any] = dict(feeds)
        try:
            if self._below is not None:
                with torch.no_grad():
                    given |= self._below.run(feeds)
            elif self._session is not None:
                given |= self._run_below(feeds)
            return self._above.run(given)
        except KeyboardInterrupt:
            raise
        except Exception as error:  # whatever PyTorch trips over
            raise UnsupportedModelError(f"PyTorch cannot run the optimised network ({reason(error)})") from error

    def _run_below(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        names = {value.name for value in self._session.get_inputs()}
        with running(feeds):
            found = self._session.run(self._between, {name: feeds[name] for name in names})
        return dict(zip(self._between, found, strict=True))

    def values(self) -> dict[str, Torch]:
        """Return copies of the parameters."""
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    def set(self, values: dict[str, Torch]) -> None:
        """Give the parameters other values."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(values[name])

    def model(self, values: dict[str, Torch]) -> ModelProto:
        """Return the network with these values of the parameters."""
        arrays: dict[str, NDArray[np.floating]] = {name: value.cpu().numpy() for name, value in values.items()}
        for name, bounds in bounds_of(self._model).items():
            if name in arrays:
                arrays[name] = np.clip(np.rint(arrays[name]), *bounds)
        return changed(self._model, arrays)

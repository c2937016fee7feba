"""The original network as the teacher: what its tensors are, for the inputs as they are fed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto

from onnxlowrank.graph.probe import expose
from onnxlowrank.graph.walk import needed
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.sessions import all_threads, open_session, running
from onnxlowrank.tune.libraries import Torch, torch
from onnxlowrank.tune.network import TorchNetwork, is_known


class Reference:
    """The original network; run by onnxruntime, or by PyTorch where that has an accelerator and all its operators."""

    def __init__(self, model: ModelProto, tensors: Sequence[str], device: str) -> None:
        self._tensors, self._device = tuple(tensors), device
        nodes = needed(model.graph.node, tensors)
        self._network: TorchNetwork | None = None
        if device != "cpu" and all(map(is_known, nodes)):
            self._network = TorchNetwork(model, nodes, [], tensors, device)
        else:
            self._session = open_session(expose(model, self._tensors), all_threads())
            self._names = {value.name for value in self._session.get_inputs()}

    def run(self, feeds: Feeds) -> dict[str, Torch]:
        """Return its tensors for one feed."""
        if self._network is not None:
            with torch.no_grad():
                return self._network.run(feeds)
        with running(feeds):
            found = self._session.run(self._tensors, {name: feeds[name] for name in self._names})
        return {
            name: torch.from_numpy(np.ascontiguousarray(value)).to(self._device)
            for name, value in zip(self._tensors, found, strict=True)
        }

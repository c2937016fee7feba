"""Runs a network whose constants change layer by layer, without running anew all that is before the layer at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnxlowrank.calibrate.stored_tensors import MOST_BYTES, StoredTensors, is_numeric
from onnxlowrank.graph.cut import behind, frontier
from onnxlowrank.graph.probe import expose, tensor_names
from onnxlowrank.inputs.feeds import Inputs, byte_count
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.sessions import all_threads, open_session, running

Values = dict[str, NDArray[np.generic]]


class Forward:
    """A network on its way from its inputs to its outputs.

    What carries all that is computed later is kept for all inputs, and what is before it is forgotten; see
    :class:`~onnxlowrank.calibrate.prefix_cache.PrefixCache`, which does so for layers that become chains.
    """

    def __init__(self, model: ModelProto, inputs: Inputs) -> None:
        """Begin at the inputs.

        Args:
            model: A network.
            inputs: Sample inputs.
        """
        self._whole = self._left = model, inputs

    def replace(self, tensor: TensorProto) -> None:
        """Give the constant of a tensor's name its values from now on."""
        for model in {id(one): one for one, _ in (self._whole, self._left)}.values():
            for constant in model.graph.initializer:
                if constant.name == tensor.name:
                    constant.CopyFrom(tensor)

    @property
    def model(self) -> ModelProto:
        """The network with all constants as they are now."""
        return self._whole[0]

    def to(self, tensor: str) -> Iterator[NDArray[np.generic]]:
        """Yield a tensor for one feed after the other; no constant before it may change from now on."""
        left, inputs = self._left
        carried = frontier(left, tensor) if tensor in tensor_names(left) else None
        if carried is None:
            yield from (values[tensor] for values in self.at([tensor]))
            return
        fed = {value.name for value in left.graph.input}
        stored = StoredTensors(carried)
        part = expose(left, [name for name in carried if name not in fed])
        for feeds, values in _run(part, inputs):
            every: Feeds = {name: values[name] if name in values else feeds[name] for name in carried}
            if not all(map(is_numeric, every.values())) or byte_count(every) * len(inputs) > MOST_BYTES:
                stored.complete = False
            stored.add(every)
            yield every[tensor]
        rest = behind(left, stored.described()) if stored.complete else None
        if rest is not None:
            self._left = rest, stored.inputs(self._whole[1])

    def at(self, tensors: Sequence[str]) -> Iterator[Values]:
        """Yield tensors for one feed after the other."""
        has_all = tensor_names(self._left[0]).issuperset(tensors)
        model, inputs = self._left if has_all else self._whole
        fed = {value.name for value in model.graph.input}
        computed = [name for name in tensors if name not in fed]
        for feeds, values in _run(expose(model, computed), inputs) if computed else ((feeds, {}) for feeds in inputs):
            yield values | {name: feeds[name] for name in tensors if name in fed}


def _run(model: ModelProto, inputs: Inputs) -> Iterator[tuple[Feeds, Values]]:
    """Yield every feed with the outputs of a network."""
    session = open_session(model, all_threads())
    wanted = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    for feeds in inputs:
        with running(feeds):
            found = session.run(names, {name: value for name, value in feeds.items() if name in wanted})
        yield feeds, dict(zip(names, found, strict=True))

"""A model while nodes and constants change: in edits, each of which is made whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from onnxlowrank.graph.channelwise import Array, NotFoldableError
from onnxlowrank.graph.index import Index
from onnxlowrank.graph.shared_weights import renamed
from onnxlowrank.graph.walk import names, reads, rebuild, unique


@dataclass(eq=False)
class Edits:
    """Changes that belong together: new nodes by position, values of constants, numbers of maps of tensors.

    Constants that are copies are named in ``copies``, each with the one it is a copy of.
    """

    nodes: dict[int, NodeProto] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


class Editor:
    """A model with its changes so far.

    Attributes:
        nodes: The nodes by position; None where one was taken out.
        readers: Positions of the nodes that read a tensor, as in :class:`Index`.
        outputs: Names of the outputs.
    """

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._index = Index.of(model)
        self._initializers = {tensor.name for tensor in model.graph.initializer}
        self._taken = names(model)
        self._changed = Edits()
        self.nodes: list[NodeProto | None] = list(self._index.nodes)
        self.readers = self._index.readers
        self.outputs = self._index.outputs

    def copy(self, position: int) -> NodeProto:
        """Return a copy of the node at ``position``, to be changed."""
        copy, node = NodeProto(), self.nodes[position]
        assert node is not None
        copy.CopyFrom(node)
        return copy

    def read(self, name: str) -> Array | None:
        """Return the value of a constant, or None if that tensor is not constant."""
        changed = self._changed.values.get(name)
        return self._index.array(name) if changed is None else changed

    def constant(self, name: str) -> Array:
        """Return the value of a constant.

        Raises:
            NotFoldableError: It is none.
        """
        value = self.read(name)
        if value is None:
            raise NotFoldableError
        return value

    def maps(self, name: str) -> int:
        """Return the number of maps of a tensor.

        Raises:
            NotFoldableError: It is unknown.
        """
        shape = self._index.shapes.get(name, ())
        size = self._changed.sizes.get(name, shape[1] if len(shape) > 1 else None)
        if size is None:
            raise NotFoldableError
        return size

    def positions(self, name: str) -> int:
        """Return the number of positions of a tensor ``[N, C, *spatial]``.

        Raises:
            NotFoldableError: It is unknown.
        """
        count = 1
        for size in self._index.shapes.get(name, (None,) * 3)[2:]:
            if size is None:
                raise NotFoldableError
            count *= size
        return count

    def rank(self, *tensors: str) -> int | None:
        """Return the number of axes of all ``tensors``; None if it is unknown or differs."""
        ranks = {len(self._index.shapes[name]) if name in self._index.shapes else None for name in tensors}
        return ranks.pop() if len(ranks) == 1 else None

    def replace(self, edits: Edits, node: NodeProto, position: int, values: Array) -> None:
        """Note that ``node`` reads ``values`` in place of a constant, which stays as it is for its other readers."""
        name = node.input[position]
        is_own = name in self._initializers or name in self._changed.values
        if not is_own or len(self.readers[name]) > 1 or name in self.outputs:
            source, name = name, unique(f"{name}/permuted", self._taken | edits.values.keys())
            edits.copies[name] = self._changed.copies.get(source, source)
        edits.values[name] = values
        node.input[position] = name

    def apply(self, edits: Edits, removed: int | None = None) -> None:
        """Make the changes of ``edits`` and take out the node at ``removed``."""
        if removed is not None:
            self.nodes[removed] = None
        for i, node in edits.nodes.items():
            self.nodes[i] = node
        self._changed.values.update(edits.values)
        self._changed.copies.update(edits.copies)
        self._changed.sizes.update(edits.sizes)
        self._taken.update(edits.values)
        self.readers = {}
        for i, other in enumerate(self.nodes):
            for name in reads(other) if other is not None else ():
                self.readers.setdefault(name, []).append(i)

    def result(self) -> ModelProto:
        """Return the model as it is now; value infos that its changes made wrong are gone."""
        graph, values = self._model.graph, self._changed.values
        added = [(name, value) for name, value in values.items() if name not in self._initializers]
        same = self._equal_copies()
        result = rebuild(
            self._model,
            nodes=self._alive(list(renamed(filter(None, self.nodes), same))),
            initializers=[
                *(_with_values(tensor, values.get(tensor.name)) for tensor in graph.initializer),
                *(numpy_helper.from_array(value, name) for name, value in added),
            ],
            inputs=graph.input,
            outputs=graph.output,
        )
        kept = [info for info in result.graph.value_info if not self._is_resized(info.name)]
        del result.graph.value_info[:]
        result.graph.value_info.extend(kept)
        return result

    def _equal_copies(self) -> dict[str, str]:
        """Return the copies that became what another copy of the same constant did, or it itself, and that one."""
        same: dict[str, str] = {}
        origins: dict[str, list[str]] = {}
        for name, source in self._changed.copies.items():
            others = origins.setdefault(source, [source])
            one = next((one for one in others if np.array_equal(self.constant(one), self.constant(name))), None)
            if one is None:
                others.append(name)
            else:
                same[name] = one
        return same

    def _alive(self, nodes: Sequence[NodeProto]) -> Iterable[NodeProto]:
        """Return ``nodes`` without those whose only use was to name constants that nothing reads any more."""
        alive: list[NodeProto] = []
        used = set(self.outputs)
        for node in reversed(nodes):
            had_readers = all(name in self._index.constants and self._index.readers.get(name) for name in node.output)
            if not had_readers or used.intersection(node.output):
                alive.append(node)
                used.update(reads(node))
        return reversed(alive)

    def _is_resized(self, name: str) -> bool:
        """Return whether a tensor has another number of maps than before."""
        size = self._changed.sizes.get(name)
        return size is not None and self._index.shapes.get(name, (None, size))[1] != size


def _with_values(tensor: TensorProto, values: Array | None) -> TensorProto:
    """Return ``tensor``, with other values if there are any."""
    if values is None:
        return tensor
    changed = numpy_helper.from_array(np.ascontiguousarray(values), tensor.name)
    changed.doc_string = tensor.doc_string
    changed.metadata_props.extend(tensor.metadata_props)
    return changed

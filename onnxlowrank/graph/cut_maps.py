"""Takes out the filters whose maps no link reads, where chains choose among maps (He 2017).

A link on some of its input maps begins with a Gather. Nobody needs the others, unless something else reads them: so the
layers that make them need not. Which maps of which tensor have to stay follows from who reads it:

* a Gather of a chain reads the maps it chooses, and of these only those that its own readers need;
* an operator that treats every map by itself (ReLU, pooling, BatchNorm, a depthwise Conv, a sum) has the same maps on
  all sides: where one of them has to stay, in an operand or in the output, it stays in all;
* a Concat of maps hands each of its operands their part;
* everything else reads, and writes, all of its maps, but for the Convs of one group: these write any.

That is solved from below: no map stays at first, and sets of maps grow until all of this holds. What reads a tensor in
other ways (another layer, an output, a sum with a shortcut that lives on) makes all of it stay, and the Gather too,
which then samples. Convs lose the filters of maps that go, with their biases; operators in between the constants.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxlowrank.graph.channelwise import Array, NotFoldableError, Order, operands, vectors
from onnxlowrank.graph.edit import Editor, Edits
from onnxlowrank.graph.index import attributes, is_standard
from onnxlowrank.graph.permute import fold_gathers, is_choice, is_marked, set_group
from onnxlowrank.graph.walk import reads

Mask = NDArray[np.bool_]


def cut_maps(model: ModelProto) -> ModelProto:
    """Return a model without the filters whose maps no chain chose and nothing else reads.

    The outputs are the same, bit by bit where the provider's order of summation does not depend on the number of maps.

    Args:
        model: One whose shapes can be inferred; what is not known stays whole.
    """
    cut = _Cut.of(model)
    return model if cut is None else fold_gathers(cut.apply())


def filters_left(model: ModelProto) -> dict[str, int]:
    """Return how many filters :func:`cut_maps` leaves, by the names of the Convs that lose some."""
    cut = _Cut.of(model)
    return {} if cut is None else cut.filters_left()


class _Cut:
    """The maps of the tensors of one model that stay."""

    @staticmethod
    def of(model: ModelProto) -> _Cut | None:
        """Return what stays of a model; None where no chain chooses among maps."""
        if not any(is_marked(node) and "/take" in node.name for node in model.graph.node):
            return None
        editor = Editor(model)
        marked = [node for node in editor.nodes if node is not None and is_marked(node)]
        if not any(is_choice(node, order) for node in marked if (order := _order(editor, node)) is not None):
            return None
        return _Cut(editor)

    def __init__(self, editor: Editor) -> None:
        """Find the maps that stay."""
        self._editor = editor
        self._nodes = [(i, node) for i, node in enumerate(editor.nodes) if node is not None]
        self._stay: dict[str, Mask] = {}
        self._grown = True
        written = [name for _, node in self._nodes for name in node.output if name]
        given = {name for _, node in self._nodes for name in reads(node) if editor.read(name) is None}.difference(
            written
        )
        for name in (*written, *given):
            try:
                self._stay[name] = np.full(editor.maps(name), name in given)
            except NotFoldableError:
                continue
        for name in editor.outputs:
            self._all(name)
        while self._grown:
            self._grown = False
            for _, node in reversed(self._nodes):
                self._relate(node)
            if not self._grown:
                for name in written:
                    if editor.readers.get(name) and name in self._stay and not self._stay[name].any():
                        self._grow(name, np.arange(len(self._stay[name])) == 0)

    def apply(self) -> ModelProto:
        """Return the model without the rest."""
        edits = Edits()
        for i, node in self._nodes:
            if not any(self._is_cut(name) for name in (*node.input, *node.output)):
                continue
            edits.nodes[i] = self._editor.copy(i)
            self._cut(edits.nodes[i], edits)
        edits.sizes |= {name: int(mask.sum()) for name, mask in self._stay.items() if not mask.all()}
        self._editor.apply(edits)
        return self._editor.result()

    def filters_left(self) -> dict[str, int]:
        """Return how many filters stay, by the names of the Convs that lose some."""
        return {
            node.name: int(self._stay[node.output[0]].sum())
            for _, node in self._nodes
            if is_standard(node, "Conv", "ConvTranspose") and self._is_cut(node.output[0])
        }

    def _is_cut(self, name: str) -> bool:
        return name in self._stay and not self._stay[name].all()

    def _grow(self, name: str, mask: Mask) -> None:
        """Let maps of a tensor stay."""
        if name in self._stay and (mask & ~self._stay[name]).any():
            self._stay[name] |= mask
            self._grown = True

    def _all(self, *tensors: str) -> None:
        """Let tensors stay whole."""
        for name in tensors:
            if name in self._stay:
                self._grow(name, np.ones_like(self._stay[name]))

    def _relate(self, node: NodeProto) -> None:
        """Let stay what a node makes stay."""
        order = _order(self._editor, node) if is_marked(node) else None
        written = node.output[0] if node.output else ""
        if order is not None and written in self._stay:
            self._grow(node.input[0], np.isin(np.arange(order.size), order.maps[self._stay[written]]))
        elif self._writes_any(node):
            self._all(*reads(node))
        elif (through := self._through(node)) is not None:
            for name in through:
                self._grow(written, self._stay[name])
            for name in through:
                self._grow(name, self._stay[written])
        elif (parts := self._parts(node)) is not None:
            for name, part in parts.items():
                self._grow(name, self._stay[written][part])
                whole = np.zeros_like(self._stay[written])
                whole[part] = self._stay[name]
                self._grow(written, whole)
        else:
            self._all(*reads(node), *node.output)

    def _writes_any(self, node: NodeProto) -> bool:
        """Return whether a node is a Conv of one group with constant weights."""
        return (
            is_standard(node, "Conv", "ConvTranspose")
            and attributes(node).get("group", 1) == 1
            and node.output[0] in self._stay
            and all(self._editor.read(name) is not None for name in node.input[1:] if name)
        )

    def _through(self, node: NodeProto) -> list[str] | None:
        """Return the operands of a node that treats every map by itself; None where it does not."""
        written = node.output[0] if node.output else ""
        if written not in self._stay or any(self._editor.readers.get(name) for name in node.output[1:]):
            return None
        maps, read = len(self._stay[written]), self._editor.read
        if is_standard(node, "Conv"):
            weight, rest = read(node.input[1]), [read(name) for name in node.input[1:] if name]
            if weight is None or any(one is None for one in rest) or node.input[0] not in self._stay:
                return None
            is_depthwise = attributes(node).get("group", 1) == maps == len(weight) and weight.shape[1] == 1
            return [node.input[0]] if is_depthwise else None
        try:
            positions = operands(node, read)
            rank = self._editor.rank(*(node.input[position] for position in positions))
            if rank is None and len(positions) > 1:
                return None
            vectors(node, read, rank, maps)
        except NotFoldableError:
            return None
        found = [node.input[position] for position in positions]
        fit = set(found) >= {name for name in reads(node) if read(name) is None}
        return found if found and fit and all(len(self._stay.get(name, ())) == maps for name in found) else None

    def _parts(self, node: NodeProto) -> dict[str, slice] | None:
        """Return the operands of a Concat of different maps, and where they are in its output; None otherwise."""
        if not is_standard(node, "Concat") or attributes(node)["axis"] != 1 or node.output[0] not in self._stay:
            return None
        parts, start = {}, 0
        for name in node.input:
            if name not in self._stay or name in parts:
                return None
            parts[name] = slice(start, start + len(self._stay[name]))
            start = parts[name].stop
        return parts if start == len(self._stay[node.output[0]]) else None

    def _cut(self, node: NodeProto, edits: Edits) -> None:
        """Take the rest out of a node."""
        editor, written = self._editor, node.output[0]

        def only(position: int, axis: int) -> None:
            values: Array = editor.constant(node.input[position]).compress(self._stay[written], axis)
            editor.replace(edits, node, position, values)

        if is_marked(node):
            maps = editor.constant(node.input[1])
            before = self._stay.get(node.input[0], np.ones(int(maps.max()) + 1, bool))
            editor.replace(edits, node, 1, (np.cumsum(before) - 1)[maps[self._stay[written]]].astype(np.int64))
        elif not self._is_cut(written) or is_standard(node, "Concat"):
            return
        elif is_standard(node, "Conv", "ConvTranspose"):
            if attributes(node).get("group", 1) > 1:
                set_group(node, int(self._stay[written].sum()))
            for position, name in enumerate(node.input):
                if position and name:
                    only(position, 1 if position == 1 and node.op_type == "ConvTranspose" else 0)
        else:
            rank = editor.rank(*(node.input[position] for position in operands(node, editor.read)))
            for position, axis in vectors(node, editor.read, rank, len(self._stay[written])):
                only(position, axis)


def _order(editor: Editor, node: NodeProto) -> Order | None:
    """Return the order that a Gather of a chain puts maps in, or which it chooses; None where that is not known."""
    maps = editor.read(node.input[1])
    try:
        return None if maps is None or maps.ndim != 1 else Order(maps.astype(np.intp), editor.maps(node.input[0]))
    except NotFoldableError:
        return None

"""Folds the orders of maps that chains leave behind into the weights around them.

A link whose groups are clusters of maps ends, or begins, with a Gather that puts maps in order. It copies a whole
tensor and leaves the provider's layout, so it may cost more than the link saves. Wherever every way from the Gather
leads, over operators that treat each map by itself, to weights that can be reordered instead, it goes: down to the
input maps of all Convs and fully connected layers that read it, or else up to the filters of the Convs that feed it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np
from onnx import ModelProto, NodeProto

from onnxlowrank.graph.channelwise import Array, NotFoldableError, Order, operands, vectors
from onnxlowrank.graph.edit import Editor, Edits
from onnxlowrank.graph.index import attributes, is_standard
from onnxlowrank.graph.walk import reads

Reorder = Callable[[Array, int], Array]
"""Returns a constant, which has one entry a map on the axis given, in another order of maps."""

_MARKED = re.compile(r"/lowrank/.+/(give|take)(_\d+)?$")


def fold_gathers(model: ModelProto) -> ModelProto:
    """Return a copy of ``model`` without the Gathers of chains that fold into weights.

    Only Gathers named ``<layer>/lowrank/<step>/give`` or ``/take`` are looked at, as ``rewrite`` writes them. Such a
    Gather is folded whole or stays as it is: it stays where one way leads to an output of the model, to a sum with a
    tensor in another order, or to an operator that may mix maps. One that runs into the next is merged into that.
    Weights with other readers are copied.

    The outputs are the same up to the order of summation. In between, tensors behind a folded Gather hold their maps
    in the chain's order, those that the Gather left out among them; so layers are to be fitted before. Equal
    arguments give equal bytes.

    Args:
        model: A model whose shapes can be inferred; where they cannot, Gathers stay.
    """
    marked = [position for position, node in enumerate(model.graph.node) if is_marked(node)]
    if not marked:
        same = ModelProto()
        same.CopyFrom(model)
        return same
    folder = _Folder(Editor(model))
    for position in marked:
        folder.fold(position)
    return folder.editor.result()


class _Folder:
    """Folds Gathers of one model, one after the other."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor

    def fold(self, position: int) -> None:
        """Fold the Gather at ``position``, if that is possible."""
        for attempt in (self._skip, self._push, self._pull):
            try:
                edits = attempt(position)
            except NotFoldableError:
                continue
            self.editor.apply(edits, removed=position)
            return

    def _gather(self, position: int) -> tuple[str, str, Order]:
        """Return source, target and order of the Gather at ``position``."""
        node = self.editor.nodes[position]
        assert node is not None
        maps = self.editor.constant(node.input[1]).astype(np.intp)
        return node.input[0], node.output[0], Order(maps, self.editor.maps(node.input[0]))

    def _whole(self, position: int) -> tuple[str, str, Order]:
        """Return the same of a Gather that is no choice among maps: that is moved by :mod:`.cut_maps`.

        Raises:
            NotFoldableError: It is one.
        """
        found, node = self._gather(position), self.editor.nodes[position]
        if node is not None and is_choice(node, found[2]):
            raise NotFoldableError
        return found

    def _skip(self, position: int) -> Edits:
        """Let a Gather go that changes nothing, as two that are merged may."""
        source, target, order = self._gather(position)
        if not order.same(Order(np.arange(order.size), order.size)) or target in self.editor.outputs:
            raise NotFoldableError
        edits = Edits({i: self.editor.copy(i) for i in self.editor.readers.get(target, ())})
        _rename(edits.nodes.values(), target, source)
        if any(target in reads(node) for node in edits.nodes.values()):  # in a subgraph
            raise NotFoldableError
        return edits

    def _push(self, position: int) -> Edits:
        """Fold the Gather into what reads it."""
        source, target, order = self._whole(position)
        edits, orders = Edits(), {target: order}
        for i in range(position + 1, len(self.editor.nodes)):
            node = self.editor.nodes[i]
            if node is None or orders.keys().isdisjoint(reads(node)):
                continue
            edits.nodes[i] = self.editor.copy(i)
            passed_on = self._pushed(edits.nodes[i], orders, edits)
            if passed_on is not None:
                orders[node.output[0]] = passed_on
                edits.sizes[node.output[0]] = passed_on.size
        if not self.editor.outputs.isdisjoint(orders):
            raise NotFoldableError
        _rename(edits.nodes.values(), target, source)
        return edits

    def _pushed(self, node: NodeProto, orders: dict[str, Order], edits: Edits) -> Order | None:
        """Let ``node`` read reordered tensors; return the order of its output, None for the output it had."""
        moved = [position for position, name in enumerate(node.input) if name in orders]
        if not moved:  # read in a subgraph
            raise NotFoldableError
        order = orders[node.input[moved[0]]]
        if is_standard(node, "Concat"):
            return self._joined(node, orders)
        if is_standard(node, "Conv", "Gemm", "MatMul", "Flatten", "Reshape") or is_marked(node):
            if moved != [0]:
                raise NotFoldableError
            return self._into(node, order, edits)
        through = operands(node, self.editor.read)
        if moved != through or not all(order.same(orders[node.input[position]]) for position in moved):
            raise NotFoldableError
        self._reorder_vectors(node, through, len(order.maps), order.spread, edits)
        return order

    def _into(self, node: NodeProto, order: Order, edits: Edits) -> Order | None:
        """Let ``node`` read its first input reordered; return the order of its output, None for the one it had."""
        if node.op_type == "Conv":
            return self._into_conv(node, order, edits)
        if node.op_type in ("Flatten", "Reshape"):
            return self._flattened(node, order)
        if node.op_type == "Gather":
            maps = order.maps[self.editor.constant(node.input[1])].astype(np.int64)
            self.editor.replace(edits, node, 1, maps)
        else:
            self._into_matrix(node, order, edits)
        return None

    def _into_conv(self, node: NodeProto, order: Order, edits: Edits) -> Order | None:
        """Reorder the input maps of a Conv, or the filters of a depthwise one."""
        group, weight = attributes(node).get("group", 1), self.editor.constant(node.input[1])
        if group == 1:
            self.editor.replace(edits, node, 1, order.summed(weight, 1))
            return None
        if group != len(order.maps):
            raise NotFoldableError
        filters = order.blocks(weight.shape[0] // group)
        self._reorder_filters(node, lambda values, axis: filters.spread(values, axis, 0.0), edits)
        set_group(node, order.size)
        return filters

    def _into_matrix(self, node: NodeProto, order: Order, edits: Edits) -> None:
        """Reorder the matrix of a Gemm or a MatMul."""
        values, weight = attributes(node), self.editor.constant(node.input[1])
        if self.editor.rank(node.input[0]) != 2 or weight.ndim != 2 or values.get("transA", 0):
            raise NotFoldableError
        self.editor.replace(edits, node, 1, order.summed(weight, 1 if values.get("transB", 0) else 0))

    def _flattened(self, node: NodeProto, order: Order) -> Order:
        """Return the order behind a Flatten, or a Reshape that does the same."""
        result = order.blocks(self.editor.positions(node.input[0]))
        if self.editor.rank(node.output[0]) != 2 or self.editor.maps(node.output[0]) != len(result.maps):
            raise NotFoldableError
        grows = order.size != len(order.maps)
        if grows and node.op_type == "Reshape" and self.editor.constant(node.input[1])[-1] != -1:
            raise NotFoldableError
        return result

    def _joined(self, node: NodeProto, orders: dict[str, Order]) -> Order:
        """Return the order behind a Concat of maps."""
        if attributes(node)["axis"] != 1:
            raise NotFoldableError
        parts, start = [], 0
        for name in node.input:
            size = orders[name].size if name in orders else self.editor.maps(name)
            parts.append(start + (orders[name].maps if name in orders else np.arange(size)))
            start += size
        return Order(np.concatenate(parts), start)

    def _pull(self, position: int) -> Edits:
        """Fold the Gather into what it reads."""
        source, target, order = self._whole(position)
        edits, wanted, done = Edits(), {source}, {position}
        for i in range(position - 1, -1, -1):
            node = self.editor.nodes[i]
            if node is None or wanted.isdisjoint(node.output):
                continue
            written = node.output[0]
            if written in self.editor.outputs or not done.issuperset(self.editor.readers.get(written, ())):
                raise NotFoldableError
            edits.nodes[i] = self.editor.copy(i)
            wanted.update(self._pulled(edits.nodes[i], order, edits))
            wanted.discard(written)
            edits.sizes[written] = len(order.maps)
            done.add(i)
            if written == source:
                edits.nodes[i].output[0] = target
        if wanted:
            raise NotFoldableError
        return edits

    def _pulled(self, node: NodeProto, order: Order, edits: Edits) -> list[str]:
        """Let ``node`` write its maps in the order; return the tensors it must read in that order for this."""

        def reorder(values: Array, axis: int) -> Array:
            return values.take(order.maps, axis)

        if is_standard(node, "Conv"):
            group, weight = attributes(node).get("group", 1), self.editor.constant(node.input[1])
            is_depthwise = group == weight.shape[0] and weight.shape[1] == 1
            if group > 1 and not is_depthwise:
                raise NotFoldableError
            self._reorder_filters(node, reorder, edits)
            if group == 1:
                return []
            set_group(node, len(order.maps))
            return [node.input[0]]
        through = operands(node, self.editor.read)
        if any(self.editor.maps(node.input[position]) != order.size for position in through):
            raise NotFoldableError
        self._reorder_vectors(node, through, order.size, reorder, edits)
        return [node.input[position] for position in through]

    def _reorder_filters(self, node: NodeProto, reorder: Reorder, edits: Edits) -> None:
        """Reorder the filters of a Conv and its bias."""
        for position, name in enumerate(node.input):
            if position and name:
                self.editor.replace(edits, node, position, reorder(self.editor.constant(name), 0))

    def _reorder_vectors(self, node: NodeProto, through: list[int], maps: int, reorder: Reorder, edits: Edits) -> None:
        """Reorder the constants that ``node`` applies map by map to its operands ``through``."""
        editor, rank = self.editor, self.editor.rank(*(node.input[position] for position in through))
        is_read = any(editor.readers.get(name) or name in editor.outputs for name in node.output[1:])
        if is_read or (rank is None and len(through) > 1):
            raise NotFoldableError
        for position, axis in vectors(node, editor.read, rank, maps):
            editor.replace(edits, node, position, reorder(editor.constant(node.input[position]), axis))


def is_marked(node: NodeProto) -> bool:
    """Return whether ``node`` is a Gather that puts maps in order for a link of a chain, or chooses among them."""
    is_named = is_standard(node, "Gather") and _MARKED.search(node.name) is not None
    return is_named and attributes(node).get("axis", 0) == 1


def is_choice(node: NodeProto, order: Order) -> bool:
    """Return whether such a Gather is in front of a link, and leaves maps out."""
    marked = _MARKED.search(node.name)
    return marked is not None and marked[1] == "take" and len(np.unique(order.maps)) < order.size


def _rename(nodes: Iterable[NodeProto], old: str, new: str) -> None:
    """Let ``nodes`` read the tensor ``new`` where they read ``old``."""
    for node in nodes:
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new


def set_group(node: NodeProto, group: int) -> None:
    """Set the number of groups of a Conv that has the attribute."""
    next(attribute for attribute in node.attribute if attribute.name == "group").i = group

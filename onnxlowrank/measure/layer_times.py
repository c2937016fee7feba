"""Milliseconds of the layers of a network, or of the links of the chains in their place, from those of its nodes.

Where onnxruntime brings a tensor into another layout, that is done for the node behind it, and where that is of no
layer, because of the one before: a chain that needs its maps in the order of a Gather pays for leaving the layout of
blocked channels and for coming back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from onnxlowrank.graph.layer import Layer
from onnxlowrank.measure.node_times import NodeTime

_CHAIN = "/lowrank/"  # as rewrite names the nodes of a chain: the layer, this, the link, and what it consists of


def time_per_layer(
    times: Sequence[NodeTime], layers: Sequence[Layer], own: Collection[str] = ()
) -> tuple[dict[str, float], float]:
    """Return the milliseconds of every layer, and those of all the rest.

    Args:
        times: Of the network ``layers`` were found in, or of that network with some of them rewritten.
        layers: The layers.
        own: Names of the nodes of the network they were found in, which are of no chain, whatever they are called.

    Returns:
        The sum of the medians of each layer's nodes, whether its own or those of the chain in its place, and of what
        is fused with them or lays out tensors for them; and the sum over all nodes of no layer.
    """
    per_link, rest = time_per_link(times, layers, own)
    return {name: sum(links.values()) for name, links in per_link.items()}, rest


def time_per_link(
    times: Sequence[NodeTime], layers: Sequence[Layer], own: Collection[str] = ()
) -> tuple[dict[str, dict[str, float]], float]:
    """Return what :func:`time_per_layer` does, part by part: by the names of the links, "" for the layer's own nodes.

    Names that a link has at the second of a layer's places, or where the first was taken, are numbered.
    """
    found: dict[str, dict[str, float]] = {layer.name: {} for layer in layers}
    rest = 0.0
    for part, owner in zip(times, _owners(times, layers, own), strict=True):
        if owner is None:
            rest += part.median
        else:
            layer, link = owner
            found[layer][link] = found[layer].get(link, 0.0) + part.median
    return found, rest


def _owners(times: Sequence[NodeTime], layers: Sequence[Layer], own: Collection[str]) -> list[tuple[str, str] | None]:
    """Return for every node the layer and the link it belongs to."""
    of_node = {name: layer.name for layer in layers for place in layer.places for name in place.nodes}
    owners: list[tuple[str, str] | None] = []
    for part in times:
        name = part.node or ""
        chain_of, _, inside = ("", "", "") if name in own else name.rpartition(_CHAIN)
        if name in of_node:
            owners.append((of_node[name], ""))
        else:
            owners.append((of_node[chain_of], inside.partition("/")[0]) if chain_of in of_node else None)
    behind: tuple[str, str] | None = None
    for index in reversed(range(len(times))):
        if not times[index].lays_out:
            behind = owners[index]
        elif behind is not None:
            owners[index] = behind
    before: tuple[str, str] | None = None
    for index, part in enumerate(times):
        if not part.lays_out:
            before = owners[index]
        elif owners[index] is None:
            owners[index] = before
    return owners

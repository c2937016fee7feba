"""Which passes suit which layer, and why a layer is kept."""

from __future__ import annotations

import re
from collections.abc import Sequence

from onnxlowrank.errors import OptionError
from onnxlowrank.graph.layer import Layer
from onnxlowrank.passes.base import ApplicablePasses, Pass
from onnxlowrank.plan.manual_ranks import some_names


def applicable_passes(
    layers: Sequence[Layer], methods: Sequence[Pass], only: Sequence[str], exclude: Sequence[str], conv_only: bool
) -> tuple[ApplicablePasses, dict[str, str]]:
    """Return the passes that suit every layer, and for the layers without any the reasons."""
    for option, patterns in (("--only", only), ("--exclude", exclude)):
        for pattern in patterns:
            if not any(_is_named(layer, pattern) for layer in layers):
                raise OptionError(f"{option} {pattern} matches no layer; layers are {some_names(layers)}")
    applicable: dict[str, dict[str, Pass]] = {}
    reasons: dict[str, str] = {}
    for layer in layers:
        if only and not any(_is_named(layer, pattern) for pattern in only):
            reasons[layer.name] = "not in --only"
        elif any(_is_named(layer, pattern) for pattern in exclude):
            reasons[layer.name] = "excluded"
        elif conv_only and not layer.is_conv:
            reasons[layer.name] = "--target macs counts convolutions"
        elif layer.shares_weight:
            reasons[layer.name] = "its weight is shared by nodes that compute something else with it"
        elif reason := _unfit(layer):
            reasons[layer.name] = reason
        else:
            refusals = {one.name: one.refusal(layer) for one in methods if layer.op in one.ops}
            willing = {one.name: one for one in methods if refusals.get(one.name, "") is None}
            if willing:
                applicable[layer.name] = willing
            else:
                reasons[layer.name] = (
                    "; ".join(sorted(set(filter(None, refusals.values())))) or f"no pass for {layer.op} chosen"
                )
    return applicable, reasons


def matches(name: str, pattern: str) -> bool:
    """Return whether a layer's name is what a pattern says: ``*`` is any text, ``?`` one character, all else itself.

    A pattern that is a layer's name matches it, whatever characters that has.
    """
    wild = "".join({"*": ".*", "?": "."}.get(one) or re.escape(one) for one in pattern)
    return name == pattern or re.fullmatch(wild, name, re.DOTALL) is not None


def _is_named(layer: Layer, pattern: str) -> bool:
    """Return whether a pattern matches a layer, by the name of its node at any of its places."""
    return any(matches(place.name, pattern) for place in layer.places)


def _unfit(layer: Layer) -> str | None:
    """Return why responses of a layer cannot be sampled, whatever the pass; None if they can."""
    if any(len(place.input_shape) < 2 for place in layer.places):
        return "its input has one axis"
    if any(0 in place.input_shape or 0 in place.output_shape for place in layer.places):
        return "it computes nothing for the first input"
    return None

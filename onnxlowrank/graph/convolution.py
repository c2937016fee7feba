"""The attributes of the Conv node that a link of a chain becomes."""

from __future__ import annotations

from typing import Any

from onnxlowrank.graph.chain import Step


def conv_attributes(step: Step) -> dict[str, Any]:
    """Return the attributes of a Conv node that computes ``step``."""
    geometry = step.geometry
    attributes: dict[str, Any] = {
        "kernel_shape": list(step.kernel),
        "strides": list(geometry.strides),
        "dilations": list(geometry.dilations),
        "group": step.group,
    }
    if geometry.auto_pad == "NOTSET":
        attributes["pads"] = list(geometry.pads)
    else:
        attributes["auto_pad"] = geometry.auto_pad
    return attributes

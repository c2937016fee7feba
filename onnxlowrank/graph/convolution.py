"""The Conv or ConvTranspose node that a link of a chain becomes: its operator, attributes and weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxlowrank.graph.chain import Step
from onnxlowrank.graph.layer import FloatArray, Geometry


def conv_operator(geometry: Geometry) -> str:
    """Return the operator that moves a kernel as ``geometry`` says."""
    return "ConvTranspose" if geometry.transposed else "Conv"


def conv_weight(step: Step) -> FloatArray:
    """Return the weight of the node that computes ``step``: of a ConvTranspose, input maps come first."""
    return swapped(step.weight, step.group) if step.geometry.transposed else step.weight


def swapped(weight: FloatArray, group: int) -> FloatArray:
    """Return a weight ``[F, C/group, ...]`` as ``[C, F/group, ...]``, or the other way round."""
    parts = weight.reshape(group, -1, *weight.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(-1, parts.shape[1], *weight.shape[2:]))


def conv_attributes(step: Step) -> dict[str, Any]:
    """Return the attributes of the node that computes ``step``."""
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
    if any(geometry.output_padding):
        attributes["output_padding"] = list(geometry.output_padding)
    return attributes

"""The choice of ``--metric``: how errors of a kernel are weighed before its last factor is refitted (Denton 2014)."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnxlowrank.calibrate.gradients import squared_gradients
from onnxlowrank.calibrate.statistics import MetricOf, data_metric
from onnxlowrank.decompose.metric import element_weights, frobenius
from onnxlowrank.graph.layer import Layer
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.passes.base import ApplicablePasses
from onnxlowrank.progress import Progress

METRICS = ("data", "frobenius", "mahalanobis")


def metric_of(
    name: str,
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    applicable: ApplicablePasses,
    inputs: Inputs,
    progress: Progress,
) -> MetricOf:
    """Return what makes a layer's metric; for ``mahalanobis`` the network is differentiated here."""
    if name == "data":
        return data_metric
    if name == "frobenius":
        return lambda layer, patches: frobenius(layer.outputs, layer.inputs, layer.taps)
    weighed = [layer for layer in layers if any(one.uses_metric for one in applicable.get(layer.name, {}).values())]
    squares = squared_gradients(model, weighed, inputs, progress.stage("gradients", 1.0))
    return lambda layer, patches: element_weights(squares[layer.name])

"""Statistics of the original network: one run over the inputs gives what the passes of every layer ask for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from onnxlowrank.calibrate.capture import ROWS_PER_LAYER, RowStore, sample
from onnxlowrank.decompose.metric import Metric, data_covariance
from onnxlowrank.decompose.moments import Moments
from onnxlowrank.decompose.patches import PatchMoments
from onnxlowrank.graph.chain import Window
from onnxlowrank.graph.layer import Layer, Place
from onnxlowrank.graph.probe import Probe, unused_ending
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.passes.base import RESPONSE, ApplicablePasses, Features, Pass, Statistics
from onnxlowrank.progress import Progress

_TARGET, _PATCHES = "target", "patches"


_MOST_PATCHES = 16_000
"""About how many patches of a layer enter its moments: enough for the covariance, whose time grows with them."""


MetricOf = Callable[[Layer, PatchMoments], Metric]


def data_metric(layer: Layer, patches: PatchMoments) -> Metric:
    """Return the metric of the responses: the data covariance of Denton 2014, Eq. 3."""
    return data_covariance(patches, layer.outputs)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a network is calibrated with.

    Attributes:
        model: The normalised network.
        layers: Its layers, in the order of the graph.
        applicable: Which of them may be rewritten, and how.
        inputs: Sample inputs.
        preactivations: Keeps the sampled preactivations of the original network, under the layers' names.
        seed: Of the sampled positions.
        held_out: Indices of the inputs that statistics leave out, so that drafts can be judged on them. Fits take all.
    """

    model: onnx.ModelProto
    layers: Sequence[Layer]
    applicable: ApplicablePasses
    inputs: Inputs
    preactivations: RowStore
    seed: int = 0
    held_out: Collection[int] = ()


def collect_statistics(
    calibration: Calibration, progress: Progress, metric: MetricOf = data_metric
) -> dict[str, Statistics]:
    """Run the original network once over all inputs, and store their sampled preactivations.

    Args:
        calibration: The network and its inputs.
        progress: Told how far it is.
        metric: Makes a layer's metric of the moments of its patches.

    Returns:
        For each layer that may be rewritten the moments of its response and of whatever its passes ask for.
    """
    layers, applicable, inputs = calibration.layers, calibration.applicable, calibration.inputs
    ending = unused_ending(calibration.model, "::onnxlowrank")
    known = {layer.name: layer for layer in layers}
    meant: dict[str, tuple[str, str]] = {}
    probes = []
    for layer in layers:
        if layer.name in applicable:
            for kind, probe in _probes(layer, list(applicable[layer.name].values())):
                name = f"{len(meant)}{ending}"
                meant[name] = layer.name, kind
                probes.append(replace(probe, name=name))
    if not probes:
        return {}
    moments: dict[str, dict[str, Moments]] = {name: {} for name in applicable}
    unseen: dict[str, Moments] = {}
    patches: dict[str, PatchMoments] = {}
    thin = ROWS_PER_LAYER // _MOST_PATCHES
    samples = sample(calibration.model, probes, inputs, calibration.seed, progress.stage("statistics", len(inputs)))
    for index, rows in enumerate(samples):
        for name, values in rows.items():
            layer_name, kind = meant[name]
            if kind == _TARGET:
                calibration.preactivations.append(layer_name, values)
            elif index in calibration.held_out:
                if kind == RESPONSE:
                    unseen.setdefault(layer_name, Moments(values.shape[1])).add(values)
            elif kind == _PATCHES:
                layer = known[layer_name]
                if layer_name not in patches:
                    patches[layer_name] = PatchMoments(layer.inputs, layer.taps)
                patches[layer_name].add(values[::thin])
            else:
                if kind not in moments[layer_name]:
                    moments[layer_name][kind] = Moments(values.shape[1])
                moments[layer_name][kind].add(values)
    for name, found in moments.items():
        found[RESPONSE].spread(known[name].white)
    return {
        name: _statistics(known[name], moments[name], unseen.get(name), patches.get(name), metric)
        for name in applicable
    }


def _statistics(
    layer: Layer, moments: Mapping[str, Moments], unseen: Moments | None, patches: PatchMoments | None, metric: MetricOf
) -> Statistics:
    if patches is None:
        return Statistics(moments, unseen)
    return Statistics(moments, unseen, data_metric(layer, patches), metric(layer, patches))


def _probes(layer: Layer, passes: Collection[Pass]) -> Iterator[tuple[str, Probe]]:
    """Yield what is sampled for a layer, place by place: kinds, and probes that have no names yet."""
    wanted = {kind: features for one in passes for kind, features in one.moments(layer).items()}
    if any(one.uses_metric for one in passes):
        wanted[_PATCHES] = Features(layer.input, (), Window(layer.kernel, layer.geometry))
    for place in layer.places:
        yield RESPONSE, place_probe("", place.output, layer)
        yield _TARGET, place_probe("", place.preactivation, layer)
        for kind, features in wanted.items():
            yield kind, feature_probe("", features, layer, place)


def feature_probe(name: str, wanted: Features, layer: Layer, place: Place) -> Probe:
    """Return the probe that samples features of a layer at one of its places."""
    tensor = {layer.input: place.input, layer.output: place.output}.get(wanted.tensor, wanted.tensor)
    return replace(place_probe(name, tensor, layer), steps=wanted.steps, window=wanted.window)


def place_probe(name: str, tensor: str, layer: Layer) -> Probe:
    """Return the probe that samples a tensor at one place of a layer; all its places together share the positions."""
    return Probe(name, tensor, not layer.is_conv, share=len(layer.places))

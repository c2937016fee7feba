"""Statistics of the original network: one run over the inputs gives what the passes of every layer ask for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxlowrank.calibrate.capture import RowStore, sample
from onnxlowrank.calibrate.padding import Padding
from onnxlowrank.decompose.metric import Metric, data_covariance
from onnxlowrank.decompose.moments import ImageMoments, Moments
from onnxlowrank.decompose.patches import PatchMoments
from onnxlowrank.graph.chain import Window
from onnxlowrank.graph.layer import Layer, Place
from onnxlowrank.graph.probe import Probe, unused_ending
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.passes.base import RESPONSE, ApplicablePasses, Features, Pass, Statistics
from onnxlowrank.progress import Progress

_TARGET, _PATCHES = "target", "patches"


_FEWER_PATCHES = 3
"""Of a layer's rows one in so many is a patch that enters its moments: enough for them, and large to gather."""


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
        For each layer that may be rewritten the moments of its response and of whatever its passes ask for; nothing
        for a layer of which any of that is not finite, which cannot be fitted.
    """
    layers, applicable, inputs = calibration.layers, calibration.applicable, calibration.inputs
    wanted = {
        (layer.name, kind, number): probed
        for layer in layers
        if layer.name in applicable
        for number in range(len(layer.places))
        for kind, probed in _wanted(layer, list(applicable[layer.name].values())).items()
    }
    if not wanted:
        return {}
    known = {layer.name: layer for layer in layers}
    ending = unused_ending(calibration.model, "::onnxlowrank")
    meant = {f"{number}{ending}": key for number, key in enumerate(wanted)}
    probes = [
        _fewer(key[1], wanted[key], feature_probe(name, wanted[key], known[key[0]], known[key[0]].places[key[2]]))
        for name, key in meant.items()
    ]
    moments: dict[str, dict[str, Moments]] = {name: {} for name in applicable}
    overflowing: set[str] = set()
    unseen: dict[str, Moments] = {}
    patches: dict[str, PatchMoments] = {}
    padding, shares = Padding(inputs, calibration.seed), {probe.name: probe.share for probe in probes}
    samples = sample(calibration.model, probes, inputs, calibration.seed, progress.stage("statistics", len(inputs)))
    for index, rows in enumerate(samples):
        for name, values in rows.items():
            layer_name, kind, _ = meant[name]
            if padding.is_in(known[layer_name]):
                values = padding.without(values, index, shares[name])
            if layer_name in overflowing or not np.isfinite(values).all():
                overflowing.add(layer_name)
            elif kind == _TARGET:
                calibration.preactivations.append(layer_name, values)
            elif index in calibration.held_out:
                if kind == RESPONSE:
                    if layer_name not in unseen:
                        unseen[layer_name] = _of_response(known[layer_name])
                    unseen[layer_name].add(values)
            elif kind == _PATCHES:
                layer = known[layer_name]
                if layer_name not in patches:
                    patches[layer_name] = PatchMoments(layer.inputs, layer.taps)
                patches[layer_name].add(values)
            else:
                if kind not in moments[layer_name]:
                    moments[layer_name][kind] = (
                        _of_response(known[layer_name])
                        if kind == RESPONSE
                        else Moments(values.shape[1], wanted[meant[name]].groups)
                    )
                moments[layer_name][kind].add(values)
    finite = [name for name in applicable if name not in overflowing]
    for name in finite:
        seen = moments[name][RESPONSE]
        if isinstance(seen, ImageMoments):
            seen.spread_white()
        else:
            seen.spread(known[name].white)
    return {
        name: _statistics(known[name], moments[name], unseen.get(name), patches.get(name), metric) for name in finite
    }


def _statistics(
    layer: Layer, moments: Mapping[str, Moments], unseen: Moments | None, patches: PatchMoments | None, metric: MetricOf
) -> Statistics:
    if patches is None:
        return Statistics(moments, unseen)
    return Statistics(moments, unseen, data_metric(layer, patches), metric(layer, patches))


def _of_response(layer: Layer) -> Moments:
    """Return no moments yet of a layer's response: of one that widens its input, by those of that."""
    return ImageMoments(layer.weight, layer.bias) if layer.widens else Moments(layer.outputs)


def _wanted(layer: Layer, passes: Collection[Pass]) -> dict[str, Features]:
    """Return what is sampled for a layer, by kind, in the names of its first place."""
    wanted = {RESPONSE: Features(layer.input if layer.widens else layer.output), _TARGET: Features(layer.preactivation)}
    wanted |= {kind: features for one in passes for kind, features in one.moments(layer).items()}
    if any(one.uses_metric for one in passes):
        wanted[_PATCHES] = Features(layer.input, (), Window(layer.kernel, layer.geometry))
    return wanted


def _fewer(kind: str, wanted: Features, probe: Probe) -> Probe:
    """Return the probe at fewer positions where it samples patches, whole ones or of groups of maps."""
    return replace(probe, share=probe.share * _FEWER_PATCHES) if kind == _PATCHES or wanted.groups > 1 else probe


def feature_probe(name: str, wanted: Features, layer: Layer, place: Place) -> Probe:
    """Return the probe that samples features of a layer at one of its places."""
    there = {
        layer.preactivation: place.preactivation,
        layer.input: place.input,
        layer.output: place.output,
    }
    tensor = there.get(wanted.tensor, wanted.tensor)
    return replace(place_probe(name, tensor, layer), steps=wanted.steps, window=wanted.window)


def place_probe(name: str, tensor: str, layer: Layer) -> Probe:
    """Return the probe that samples a tensor at one place of a layer; all its places together share the positions."""
    return Probe(name, tensor, layer.channels_last, share=len(layer.places))

"""Calibration and fit: statistics of the original network, then the layers one by one, shallow to deep."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnxlowrank.calibrate.capture import ROWS_PER_LAYER, Spool, sample
from onnxlowrank.calibrate.feeds import Inputs
from onnxlowrank.chain import Chain, Window
from onnxlowrank.choose import Suited
from onnxlowrank.decompose.metric import Metric, data_covariance
from onnxlowrank.decompose.moments import Moments
from onnxlowrank.decompose.patches import PatchMoments
from onnxlowrank.decompose.regression import Samples
from onnxlowrank.graph.probe import Probe
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.layer import Layer
from onnxlowrank.passes.base import KEEP, RESPONSE, Features, Pass, Statistics
from onnxlowrank.progress import Progress
from onnxlowrank.select.energy import Plan

_TARGET, _PATCHES = "target", "patches"
_FEATURES, _SHORTCUT = "onnxlowrank::features", "onnxlowrank::shortcut"

_MOST_PATCHES = 16_000
"""About how many patches of a layer enter its moments: enough for the covariance, whose time grows with them."""

Forms = Callable[[Layer, Chain], Sequence[str]]
"""Chooses the forms in which the links of a chain are written."""

Weigh = Callable[[Layer, PatchMoments], Metric]


def default_forms(layer: Layer, chain: Chain) -> Sequence[str]:
    """Choose forms without a measurement."""
    return chain.forms


def data_metric(layer: Layer, patches: PatchMoments) -> Metric:
    """Return the metric of the responses: the data covariance of Denton 2014, Eq. 3."""
    return data_covariance(patches, layer.outputs)


def collect_statistics(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    suited: Suited,
    inputs: Inputs,
    spool: Spool,
    seed: int,
    progress: Progress,
    metric: Weigh = data_metric,
) -> dict[str, Statistics]:
    """Run the original network once over all inputs.

    Args:
        model: The normalised network.
        layers: Its layers.
        suited: Which of them may be rewritten, and how.
        inputs: Calibration inputs.
        spool: Is given the sampled preactivations of these layers, under their names.
        seed: Of the sampled positions.
        progress: Told how far it is.
        metric: Makes a layer's metric of the moments of its patches.

    Returns:
        For each of these layers the moments of its response and of whatever its passes ask for.
    """
    probes = [
        probe for layer in layers if layer.name in suited for probe in _probes(layer, list(suited[layer.name].values()))
    ]
    if not probes:
        return {}
    moments: dict[str, dict[str, Moments]] = {name: {} for name in suited}
    patches: dict[str, PatchMoments] = {}
    known = {layer.name: layer for layer in layers}
    thin = ROWS_PER_LAYER // _MOST_PATCHES
    for rows in sample(model, probes, inputs, seed, progress.stage("statistics", len(inputs))):
        for name, values in rows.items():
            layer_name, kind = _split(name)
            if kind == _TARGET:
                spool.append(layer_name, values)
            elif kind == _PATCHES:
                layer = known[layer_name]
                patches.setdefault(layer_name, PatchMoments(layer.inputs, math.prod(layer.kernel))).add(values[::thin])
            else:
                moments[layer_name].setdefault(kind, Moments(values.shape[1])).add(values)
    return {name: _statistics(known[name], moments[name], patches.get(name), metric) for name in suited}


def _statistics(
    layer: Layer, moments: Mapping[str, Moments], patches: PatchMoments | None, metric: Weigh
) -> Statistics:
    if patches is None:
        return Statistics(moments)
    return Statistics(moments, data_metric(layer, patches), metric(layer, patches))


def fit_plan(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    plan: Plan,
    suited: Suited,
    statistics: Mapping[str, Statistics],
    inputs: Inputs,
    spool: Spool,
    seed: int,
    progress: Progress,
    nonlinear: bool = True,
    asymmetric: bool = True,
    forms: Forms = default_forms,
) -> dict[str, Chain]:
    """Fit the chains of a plan, each on what the already rewritten prefix of the network gives (Zhang 2015, Eq. 12).

    Args:
        model: The normalised network.
        layers: Its layers, in the order of the graph.
        plan: One candidate a layer.
        suited: As for :func:`collect_statistics`.
        statistics: From :func:`collect_statistics`.
        inputs: The same inputs.
        spool: The spool it filled.
        seed: The same seed.
        progress: Told how far it is.
        nonlinear: Whether activations are taken into account (Eq. 5, 6).
        asymmetric: Whether features come from the rewritten prefix; otherwise from the original network.
        forms: Chooses how chains are written.
    """
    chains: dict[str, Chain] = {}
    chosen = [layer for layer in layers if plan[layer.name].method != KEEP]
    advance = progress.stage("fit", len(chosen) * (len(inputs) + 1))
    for layer in chosen:
        candidate, moments = plan[layer.name], statistics[layer.name]
        method = suited[layer.name][candidate.method]
        draft = method.draft(layer, candidate.setting, moments)
        probes = [_probe(_FEATURES, draft.features, layer)]
        if layer.shortcut is not None:
            probes.append(Probe(_SHORTCUT, layer.shortcut, not layer.is_conv))
        prefix = rewrite(model, layers, chains) if asymmetric else model
        rows = list(sample(prefix, probes, inputs, seed, advance))
        samples = Samples(
            features=np.concatenate([row[_FEATURES] for row in rows]),
            target=spool.read(layer.name),
            shortcut=None if layer.shortcut is None else np.concatenate([row[_SHORTCUT] for row in rows]),
            activation=layer.activation,
        )
        del rows
        fitted = method.fit(layer, candidate.setting, draft, samples, nonlinear)
        chains[layer.name] = fitted.lowered(forms(layer, method.outline(layer, candidate.setting)))
        advance(1)
    return chains


def _probes(layer: Layer, passes: Collection[Pass]) -> Iterator[Probe]:
    yield _probe(_join(layer.name, RESPONSE), Features(layer.output), layer)
    yield _probe(_join(layer.name, _TARGET), Features(layer.preactivation), layer)
    moments = {kind: wanted for one in passes for kind, wanted in one.moments(layer).items()}
    for kind, wanted in moments.items():
        yield _probe(_join(layer.name, kind), wanted, layer)
    if any(one.weighs for one in passes):
        yield _probe(
            _join(layer.name, _PATCHES), Features(layer.input, (), Window(layer.kernel, layer.geometry)), layer
        )


def _probe(name: str, wanted: Features, layer: Layer) -> Probe:
    return Probe(name, wanted.tensor, not layer.is_conv, wanted.steps, wanted.window)


def _join(layer: str, kind: str) -> str:
    return f"{layer}::{kind}"


def _split(name: str) -> tuple[str, str]:
    layer, _, kind = name.rpartition("::")
    return layer, kind

"""Calibration and fit: statistics of the original network, then the layers one by one, shallow to deep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnxlowrank.calibrate.capture import Spool, sample
from onnxlowrank.calibrate.feeds import Inputs
from onnxlowrank.chain import Chain
from onnxlowrank.choose import Suited
from onnxlowrank.decompose.moments import Moments
from onnxlowrank.decompose.regression import Samples
from onnxlowrank.graph.probe import Probe
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.layer import Layer
from onnxlowrank.passes.base import KEEP, RESPONSE, Pass, Statistics
from onnxlowrank.progress import Progress
from onnxlowrank.select.energy import Plan

_TARGET, _FEATURES, _SHORTCUT = "target", "onnxlowrank::features", "onnxlowrank::shortcut"


def collect_statistics(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    suited: Suited,
    inputs: Inputs,
    spool: Spool,
    seed: int,
    progress: Progress,
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

    Returns:
        For each of these layers the moments of its response and of whatever its passes ask for.
    """
    probes = [
        probe for layer in layers if layer.name in suited for probe in _probes(layer, suited[layer.name].values())
    ]
    moments: dict[str, dict[str, Moments]] = {name: {} for name in suited}
    if not probes:
        return {}
    for rows in sample(model, probes, inputs, seed, progress.stage("statistics", len(inputs))):
        for name, values in rows.items():
            layer_name, kind = _split(name)
            if kind == _TARGET:
                spool.append(layer_name, values)
            else:
                moments[layer_name].setdefault(kind, Moments(values.shape[1])).add(values)
    return dict(moments)


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
    """
    chains: dict[str, Chain] = {}
    chosen = [layer for layer in layers if plan[layer.name].method != KEEP]
    advance = progress.stage("fit", len(chosen) * (len(inputs) + 1))
    for layer in chosen:
        candidate, moments = plan[layer.name], statistics[layer.name]
        method = suited[layer.name][candidate.method]
        wanted = method.features(layer, candidate.setting, moments)
        probes = [Probe(_FEATURES, wanted.tensor, not layer.is_conv, wanted.steps)]
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
        chains[layer.name] = method.fit(layer, candidate.setting, moments, samples, nonlinear)
        advance(1)
    return chains


def _probes(layer: Layer, passes: Iterable[Pass]) -> Iterator[Probe]:
    last = not layer.is_conv
    yield Probe(_join(layer.name, RESPONSE), layer.output, last)
    yield Probe(_join(layer.name, _TARGET), layer.preactivation, last)
    moments = {kind: steps for one in passes for kind, steps in one.moments(layer).items()}
    for kind, steps in moments.items():
        yield Probe(_join(layer.name, kind), layer.input, last, steps)


def _join(layer: str, kind: str) -> str:
    return f"{layer}::{kind}"


def _split(name: str) -> tuple[str, str]:
    layer, _, kind = name.rpartition("::")
    return layer, kind

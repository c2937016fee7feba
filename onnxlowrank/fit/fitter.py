"""Calibration and fit: statistics of the original network, then the layers one by one, shallow to deep."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import onnx

from onnxlowrank.calibrate.capture import ROWS_PER_LAYER, Spool, sample
from onnxlowrank.calibrate.prefix_cache import Frontier
from onnxlowrank.decompose.metric import Metric, data_covariance
from onnxlowrank.decompose.moments import Moments
from onnxlowrank.decompose.patches import PatchMoments
from onnxlowrank.decompose.regression import Samples
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.graph.chain import Chain, Window
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.probe import Probe
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.parallel import in_parallel
from onnxlowrank.passes.base import KEEP, RESPONSE, Candidate, Features, Pass, Statistics
from onnxlowrank.plan.candidates import Suited
from onnxlowrank.plan.selection import Plan
from onnxlowrank.progress import Advance, Progress

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


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a network is calibrated with.

    Attributes:
        model: The normalised network.
        layers: Its layers, in the order of the graph.
        suited: Which of them may be rewritten, and how.
        inputs: Sample inputs.
        spool: Keeps the sampled preactivations of the original network, under the layers' names.
        seed: Of the sampled positions.
        held_out: Indices of the inputs that statistics leave out, so that drafts can be judged on them. Fits take all.
    """

    model: onnx.ModelProto
    layers: Sequence[Layer]
    suited: Suited
    inputs: Inputs
    spool: Spool
    seed: int = 0
    held_out: Collection[int] = ()


def collect_statistics(about: Calibration, progress: Progress, metric: Weigh = data_metric) -> dict[str, Statistics]:
    """Run the original network once over all inputs, and fill the spool.

    Args:
        about: The network and its inputs.
        progress: Told how far it is.
        metric: Makes a layer's metric of the moments of its patches.

    Returns:
        For each layer that may be rewritten the moments of its response and of whatever its passes ask for.
    """
    layers, suited, inputs = about.layers, about.suited, about.inputs
    probes = [
        probe for layer in layers if layer.name in suited for probe in _probes(layer, list(suited[layer.name].values()))
    ]
    if not probes:
        return {}
    moments: dict[str, dict[str, Moments]] = {name: {} for name in suited}
    unseen: dict[str, Moments] = {}
    patches: dict[str, PatchMoments] = {}
    known = {layer.name: layer for layer in layers}
    thin = ROWS_PER_LAYER // _MOST_PATCHES
    samples = sample(about.model, probes, inputs, about.seed, progress.stage("statistics", len(inputs)))
    for index, rows in enumerate(samples):
        for name, values in rows.items():
            layer_name, kind = _split(name)
            if kind == _TARGET:
                about.spool.append(layer_name, values)
            elif index in about.held_out:
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
        name: _statistics(known[name], moments[name], unseen.get(name), patches.get(name), metric) for name in suited
    }


def _statistics(
    layer: Layer, moments: Mapping[str, Moments], unseen: Moments | None, patches: PatchMoments | None, metric: Weigh
) -> Statistics:
    if patches is None:
        return Statistics(moments, unseen)
    return Statistics(moments, unseen, data_metric(layer, patches), metric(layer, patches))


class Fitter:
    """Fits plans, and reuses what does not change from one plan to the next.

    A chain is fitted on what the rewritten layers before it give, so it stays as long as these stay.
    """

    def __init__(
        self,
        calibration: Calibration,
        drafts: Drafts,
        forms: Forms = default_forms,
        nonlinear: bool = True,
        asymmetric: bool = True,
    ) -> None:
        """Take in what all plans share.

        Args:
            calibration: The network and its inputs.
            drafts: Of its layers.
            forms: Chooses how chains are written.
            nonlinear: Whether activations are taken into account (Zhang 2015, Eq. 5, 6).
            asymmetric: Whether features come from the rewritten prefix (Eq. 12); otherwise from the original network.
        """
        self._calibration, self._drafts, self._forms = calibration, drafts, forms
        self._nonlinear, self._asymmetric = nonlinear, asymmetric
        self._fitted: dict[Candidate, Chain] = {}

    def fit(self, plan: Plan, progress: Progress) -> dict[str, Chain]:
        """Return the chains of a plan, fitted from the input of the network to its output."""
        chosen = [plan[layer.name] for layer in self._calibration.layers if plan[layer.name].method != KEEP]
        reused = self._reusable(chosen)
        self._drafts.keep_only(chosen)
        self._fitted = {candidate: self._fitted[candidate] for candidate in reused}
        known = {layer.name: layer for layer in self._calibration.layers}
        new = [candidate for candidate in chosen if candidate not in self._fitted]
        advance = progress.stage("fit", len(new) * (len(self._calibration.inputs) + 2))
        for _ in in_parallel(lambda candidate: self._drafts.of(known[candidate.layer], candidate), new):
            advance(1)
        chains: dict[str, Chain] = {}
        frontier = Frontier(self._calibration.inputs, self._calibration.seed)
        for candidate in chosen:
            if candidate not in self._fitted:
                self._fitted[candidate] = self._fit(known[candidate.layer], candidate, chains, frontier, advance)
                advance(1)
            chains[candidate.layer] = self._fitted[candidate]
        return chains

    def _reusable(self, chosen: Sequence[Candidate]) -> list[Candidate]:
        """Return which of a plan's candidates are fitted as they would be again."""
        if not self._asymmetric:
            return [candidate for candidate in chosen if candidate in self._fitted]
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, self._fitted, strict=False))
        return [candidate for candidate, _ in pairs]

    def _fit(
        self, layer: Layer, candidate: Candidate, before: Mapping[str, Chain], frontier: Frontier, advance: Advance
    ) -> Chain:
        """Return the chain of a candidate, fitted on what the network gives with chains in place of layers before."""
        about, method = self._calibration, self._calibration.suited[layer.name][candidate.method]
        draft = self._drafts.of(layer, candidate)
        probes = [_probe(_FEATURES, draft.features, layer)]
        if layer.shortcut is not None:
            probes.append(Probe(_SHORTCUT, layer.shortcut, not layer.is_conv))
        prefix = rewrite(about.model, about.layers, before) if self._asymmetric else about.model
        rows = frontier.sample(prefix, probes, layer.input, advance)
        samples = Samples(
            features=np.concatenate([row[_FEATURES] for row in rows]),
            target=about.spool.read(layer.name),
            shortcut=None if layer.shortcut is None else np.concatenate([row[_SHORTCUT] for row in rows]),
            activation=layer.activation,
        )
        del rows
        fitted = method.fit(layer, candidate.setting, draft, samples, self._nonlinear)
        return fitted.lowered(self._forms(layer, method.outline(layer, candidate.setting)))


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

"""How much the outputs of the network change when one layer alone is approximated: measured, without labels.

Zhang 2015, Eq. 13, takes ``-log E`` for the loss of a layer whatever the layer, as if a share of the variance lost near
the input did to the outputs what the same share does near the end. Here one layer at a time is approximated, the
network run, and its outputs compared with those it had. The loss of a plan is then predicted as the sum over its
layers: where each is fitted to the true responses, single-layer losses do add up.

What stands for the approximation matters more than how often it is measured. The same energy may be lost along the
principal axes of the responses (Zhang 2015, Eq. 2-3), by shrinkage or to noise, and does more harm or less than what a
pass loses. A pass's own :meth:`~onnxlowrank.passes.base.Pass.draft` is near to what the fitted chain costs, once the
mean of the response is restored, as the fit would do.

Where it is measured matters as well. A layer that is nearly low-rank loses nothing up to some energy, and a lot soon
after: what a per cent of the energy does to the network depends on which per cent it is. So two settings of every layer
are measured to begin with, one that loses little and one that loses more, and then, like prices, whatever the selection
chooses far from everything that was measured (:meth:`Sensitivities.refine`). Drafts also tell what settings lose in
truth, where passes promise too much.

Few inputs, and drafts in place of fits, are sources of error, and selection prefers what was underestimated. So harm is
drawn towards that of the usual layer, as estimates with errors are in empirical Bayes methods (Efron & Morris 1973).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.optimize import brentq, isotonic_regression

from onnxlowrank.calibrate.capture import sample
from onnxlowrank.calibrate.feeds import Inputs
from onnxlowrank.calibrate.frontier import Frontier
from onnxlowrank.chain import Chain
from onnxlowrank.decompose.moments import Moments
from onnxlowrank.decompose.spectrum import Float64Array, as_checked
from onnxlowrank.drafts import Drafts
from onnxlowrank.evaluate import class_scores, confidence, divergence
from onnxlowrank.fit import Calibration
from onnxlowrank.graph.probe import Probe
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.layer import Layer
from onnxlowrank.parallel import in_parallel
from onnxlowrank.passes.base import KEEP, Candidate
from onnxlowrank.progress import Advance, Progress
from onnxlowrank.runtime import all_threads, open_session, running
from onnxlowrank.select.offer import Plan

_LOG = logging.getLogger(__name__)

Outputs = list[NDArray[np.generic]]

ENERGIES = (0.98, 0.9)
"""Shares of the response's variance at which, or a little above, losses are measured first."""

_MOST_MACS = 2e12
_FEWEST_INPUTS, _MOST_INPUTS, _INPUTS_FOR_MEANS = 32, 256, 32
_SMALLEST, _LARGEST = 1e-9, 1e6
_NOTHING_LOST = 1e-4
_NEAR = 2.0
"""Ratio of two shares up to which one measurement stands for both."""
_STEEPEST = 0.5
"""How fast harm may grow beyond the outermost measurements: they are few, on a few inputs, and of several passes."""
_TRUST = 0.75
"""Weight of a layer's own measurements, in logarithms; the rest is that of the usual layer."""
_CONFIDENCE = 0.8
"""Mean probability of the most probable class above which the temperature is raised."""
_HOTTEST = 1e3
_PROBE = "::onnxlowrank::mean"


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What a layer's lost energy does to the outputs of the network: power laws from measurement to measurement.

    Attributes:
        lost: Logarithms of shares of the response's variance, ascending.
        harm: Logarithms of the network's loss over these shares, not descending.
        slopes: How fast harm grows up to the first share, and from the last one on.
    """

    lost: Float64Array
    harm: Float64Array
    slopes: tuple[float, float]

    def loss(self, lost: float) -> float:
        """Return what the network loses when the layer loses this share of its response's variance."""
        if lost <= 0:
            return 0.0
        x = np.log(lost)
        nearest = np.clip(x, self.lost[0], self.lost[-1])
        beyond = self.slopes[int(x > nearest)] * (x - nearest)
        return float(np.exp(x + np.interp(nearest, self.lost, self.harm) + beyond))


def fit_sensitivity(lost: Sequence[float], losses: Sequence[float]) -> Sensitivity:
    """Return the laws through measured losses.

    A share of the energy does as much harm or more where more is lost. What was measured otherwise is levelled: the
    loss over the share is regressed isotonically, in logarithms.

    Args:
        lost: Shares of the response's variance, in (0, 1].
        losses: Of the network.
    """
    order = np.argsort(lost, kind="stable")
    x = np.log(np.asarray(lost, float)[order])
    y = np.log(np.clip(np.nan_to_num(np.asarray(losses, float)[order], nan=_LARGEST), _SMALLEST, _LARGEST))
    harm: Float64Array = isotonic_regression(y - x).x
    slopes = np.minimum(np.diff(harm) / np.maximum(np.diff(x), np.log(_NEAR)), _STEEPEST)
    return Sensitivity(x, harm, (float(slopes[0]), float(slopes[-1])) if len(slopes) else (0.0, 0.0))


def hold_out(layers: Sequence[Layer], inputs: Inputs) -> list[int]:
    """Return the indices of the inputs to judge settings on, which their drafts shall not have seen.

    A layer of many outputs fits few inputs closely: on others it loses more. There are fewer for larger networks, which
    bounds the work, and at most a third of all; none of fewer than three. Energies of responses are those of these
    inputs, and losses are measured on them.

    Args:
        layers: Of the network.
        inputs: All there are.
    """
    return _spread(inputs, min(_affordable(layers), len(inputs) * inputs.batch // 3)) if len(inputs) >= 3 else []


class Sensitivities:
    """The losses of candidates: what approximating their layers alone does to the outputs of the network.

    That is the mean Kullback-Leibler divergence where the first output is ``[N, classes]``, and otherwise the squared
    relative error of all outputs. On images a network was trained with it is so sure of its classes that only a few
    would count: the divergence is taken at a temperature at which it is less sure.

    Attributes:
        laws: The layers' laws, by their names; a layer without a choice has none.
    """

    def __init__(
        self, about: Calibration, drafts: Drafts, candidates: Mapping[str, Sequence[Candidate]], progress: Progress
    ) -> None:
        """Measure two settings of every layer.

        Args:
            about: The network, and inputs of which some were held out by :func:`hold_out`, if there are enough.
            drafts: Of its layers.
            candidates: What the layers offer.
            progress: Told how far it is.
        """
        self.laws: dict[str, Sensitivity] = {}
        self._usual = 0.0
        self._drafts, self._progress = drafts, progress
        self._layers = [layer for layer in about.layers if len(candidates[layer.name]) > 1]
        self._measured: dict[str, dict[Candidate, tuple[float, float]]] = {layer.name: {} for layer in self._layers}
        if self._layers:
            first = {layer.name: _first(candidates[layer.name]) for layer in self._layers}
            advance = progress.stage("sensitivity", 1 + 2 * len(first))
            used = about.held_out or _spread(about.inputs, _affordable(about.layers))
            self._network = _Network(about.model, about.layers, self._layers, about.inputs.subset(sorted(used)))
            advance(1)
            self._measure(first, advance)
            self._usual = float(np.exp(np.mean([law.harm.mean() for law in self.laws.values()])))

    def of(self, candidate: Candidate) -> float:
        """Return how much a candidate is predicted to change the outputs, 0 where its layer has no choice.

        That is between what its layer's law says, and what the usual layer would lose at the first measurements.
        """
        law = self.laws.get(candidate.layer)
        if candidate.method == KEEP or law is None:
            return 0.0
        lost = as_checked(np.array(1 - candidate.energy), self._checked(candidate))
        return float(law.loss(float(lost)) ** _TRUST * (self._usual * lost) ** (1 - _TRUST))

    def refine(self, plan: Plan) -> Collection[str]:
        """Measure what a plan chose far from everything measured of the same pass; return the layers it was in."""
        new = {name: [candidate] for name, candidate in plan.items() if self._is_new(candidate)}
        if new:
            self._measure(new, self._progress.stage("sensitivity", 2 * len(new)))
        return new

    def _checked(self, candidate: Candidate) -> dict[float, float]:
        """Return for the settings measured of its pass what drafts lose in truth, by what they promise to lose."""
        measured = self._measured[candidate.layer].items()
        return {1 - one.energy: lost for one, (lost, _) in measured if one.method == candidate.method}

    def _is_new(self, candidate: Candidate) -> bool:
        promised = 1 - candidate.energy
        if candidate.layer not in self.laws or promised <= _NOTHING_LOST:
            return False
        return not any(one / _NEAR <= promised <= one * _NEAR for one in self._checked(candidate))

    def _measure(self, candidates: Mapping[str, Sequence[Candidate]], advance: Advance) -> None:
        """Measure candidates, by layer, shallow to deep."""
        layers = [layer for layer in self._layers if layer.name in candidates]
        for _ in in_parallel(lambda layer: [self._drafts.of(layer, one) for one in candidates[layer.name]], layers):
            advance(1)
        self._network.start()
        for layer in layers:
            self._network.go_to(layer)
            measured = self._measured[layer.name]
            for one in candidates[layer.name]:
                lost, loss = self._lost(layer, one), self._network.loss(layer, self._drafts.of(layer, one).chain)
                measured[one] = lost, loss
                _LOG.info("%s: %s %s loses %.5f, the network %.6f", layer.name, one.method, one.setting, lost, loss)
            self.laws[layer.name] = fit_sensitivity(*zip(*measured.values(), strict=True))
            advance(1)

    def _lost(self, layer: Layer, candidate: Candidate) -> float:
        """Return the share that a draft loses in truth, where that is known: promises may be far off."""
        lost = self._drafts.lost(layer, candidate)
        return min(max(1 - candidate.energy if lost is None else lost, _NOTHING_LOST), 1.0)


def _first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the settings of a layer to begin with: the cheapest ones that keep the energies, or nearly do."""
    others = [one for one in candidates if one.method != KEEP]
    lossy = [one for one in others if 1 - one.energy > _NOTHING_LOST] or others
    return list(
        dict.fromkeys(min(lossy, key=lambda one: (max(energy - one.energy, 0), one.macs)) for energy in ENERGIES)
    )


class _Network:
    """The original network, with which approximations of single layers are compared."""

    def __init__(
        self, model: onnx.ModelProto, layers: Sequence[Layer], measured: Sequence[Layer], inputs: Inputs
    ) -> None:
        self._model = model
        self._layers = layers
        self._outputs = _run(model, inputs)
        self._temperature = _temperature(self._outputs)
        self._means = _means(model, measured, _some(inputs))
        self._inputs = inputs
        self.start()

    def start(self) -> None:
        """Go back to the inputs."""
        self._frontier = Frontier(self._inputs, seed=0)

    def go_to(self, layer: Layer) -> None:
        """Run the network as far as a layer, deeper than those since the start: :meth:`loss` begins there."""
        probe = Probe(layer.input + _PROBE, layer.input, not layer.is_conv)
        self._frontier.sample(self._model, [probe], layer.input, lambda amount: None)

    def loss(self, layer: Layer, chain: Chain) -> float:
        """Return how far the outputs move when the chain computes the layer, with the mean of its response restored."""
        changed, inputs = self._with(layer, chain)
        shift = _means(changed, [layer], _some(inputs))[layer.name]
        bias = self._means[layer.name] - shift + (0 if chain.bias is None else chain.bias)
        fitted = replace(chain, bias=bias.astype(np.float32))
        return _change(self._outputs, _run(*self._with(layer, fitted)), self._temperature)

    def _with(self, layer: Layer, chain: Chain) -> tuple[onnx.ModelProto, Inputs]:
        return self._frontier.rest(rewrite(self._model, self._layers, {layer.name: chain}))


def _some(inputs: Inputs) -> Inputs:
    """Return as many inputs as means are taken over."""
    return inputs.subset(_spread(inputs, _INPUTS_FOR_MEANS))


def _means(model: onnx.ModelProto, layers: Sequence[Layer], inputs: Inputs) -> dict[str, Float64Array]:
    """Return the mean responses ``[F]`` of the layers, at the same positions in every network."""
    probes = [Probe(layer.output + _PROBE, layer.output, not layer.is_conv) for layer in layers]
    moments = {layer.name: Moments(layer.outputs) for layer in layers}
    for rows in sample(model, probes, inputs, 0, lambda amount: None):
        for layer, probe in zip(layers, probes, strict=True):
            moments[layer.name].add(rows[probe.name])
    return {name: one.mean for name, one in moments.items()}


def _affordable(layers: Sequence[Layer]) -> int:
    """Return how many inputs can be run through the network for every layer, within reason."""
    macs = len(layers) * sum(layer.macs for layer in layers)
    return int(min(max(_MOST_MACS / max(macs, 1), _FEWEST_INPUTS), _MOST_INPUTS))


def _spread(inputs: Inputs, samples: int) -> list[int]:
    """Return the indices of so many samples, evenly spread, in whole feeds."""
    count = min(max(samples // inputs.batch, 1), len(inputs))
    return [int(index) for index in np.linspace(0, len(inputs) - 1, count)]


def _run(model: onnx.ModelProto, inputs: Inputs) -> list[Outputs]:
    """Return all outputs of the network, one feed after the other."""
    session = open_session(model, all_threads())
    wanted = {value.name for value in session.get_inputs()}
    outputs = []
    for feeds in inputs:
        with running(feeds):
            outputs.append(session.run(None, {name: value for name, value in feeds.items() if name in wanted}))
    return outputs


def _temperature(outputs: Sequence[Outputs]) -> float:
    """Return the temperature at which a network is no surer of its classes than ``_CONFIDENCE``; 1 where it is not."""
    scores = class_scores([one[0] for one in outputs])
    if scores is None or confidence(scores) <= _CONFIDENCE or confidence(scores, _HOTTEST) > _CONFIDENCE:
        return 1.0
    return float(brentq(lambda one: confidence(scores, one) - _CONFIDENCE, 1.0, _HOTTEST, rtol=1e-3))


def _change(before: Sequence[Outputs], after: Sequence[Outputs], temperature: float) -> float:
    """Return the divergence of the classes, or the squared relative error of all outputs that are real numbers."""
    one, other = (class_scores([output[0] for output in outputs]) for outputs in (before, after))
    if one is not None and other is not None:
        return temperature**2 * divergence(one, other, temperature)
    difference = norm = 0.0
    for pair in zip(before, after, strict=True):
        for output, changed in zip(*pair, strict=True):
            if isinstance(output, np.ndarray) and output.dtype.kind == "f":
                known = np.isfinite(output)
                values = output[known].astype(np.float64)
                difference += float(((changed[known].astype(np.float64) - values) ** 2).sum())
                norm += float((values**2).sum())
    return difference / norm if norm else 0.0

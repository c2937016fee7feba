"""How much the outputs of the network change when one layer alone is approximated: measured, without labels.

Zhang 2015, Eq. 13, takes ``-log E`` for the loss of a layer whatever the layer, as if a share of the variance lost near
the input did to the outputs what the same share does near the end. Here one layer at a time is approximated, the
network run, and its outputs compared with those it had. The loss of a plan is then predicted as the sum over its
layers: where each is fitted to the true responses, single-layer losses do add up.

What stands for the approximation matters more than how often it is measured. The same energy may be lost along the
principal axes of the responses (Zhang 2015, Eq. 2-3), by shrinkage or to noise, and does more harm or less than what a
pass loses. A pass's own :meth:`~onnxlowrank.passes.base.Pass.draft` is near to what the fitted chain costs, once its
response and those of the next layers are mapped to the true ones, as the fit would do
(:mod:`onnxlowrank.plan.layer_sensitivity`).

Where it is measured matters as well. A layer that is nearly low-rank loses nothing up to some energy, and a lot soon
after: what a per cent of the energy does to the network depends on which per cent it is. So one setting of every layer
is measured to begin with, and then, like latencies, whatever the selection chooses far from everything that was
measured (:meth:`SensitivityLosses.refine`). Drafts also tell what settings lose in truth, where passes promise too
much.

Few inputs, and drafts in place of fits, are sources of error, and selection prefers what was underestimated. So harm is
drawn towards that of the usual layer, as estimates with errors are in empirical Bayes methods (Efron & Morris 1973).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxlowrank.calibrate.hold_out import affordable, spread
from onnxlowrank.calibrate.statistics import Calibration
from onnxlowrank.decompose.spectrum import as_checked
from onnxlowrank.errors import NotFiniteError
from onnxlowrank.evaluate.measures import Measure
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.graph.layer import Layer
from onnxlowrank.parallel import in_parallel
from onnxlowrank.passes.base import KEEP, Candidate, Plan
from onnxlowrank.plan.layer_sensitivity import LayerSensitivity
from onnxlowrank.plan.sensitivity_curve import SensitivityCurve, fit_sensitivity_curve
from onnxlowrank.progress import Advance, Progress

_LOG = logging.getLogger(__name__)

ENERGY = 0.95
"""Share of the response's variance at which, or a little above, losses are measured first."""

_NOTHING_LOST = 1e-4
_FAR = 3.0
"""Ratio of two shares from which on one measurement does not stand for both."""
_TRUST = 0.75
"""Weight of a layer's own measurements, in logarithms; the rest is that of the usual layer."""


@dataclass(frozen=True)
class _Measured:
    """What a draft loses.

    Attributes:
        lost: Share of the response's variance, on the inputs the network was run on.
        loss: Of the network, on these.
        unseen: Share of the response's variance on inputs the draft has not seen.
    """

    lost: float
    loss: float
    unseen: float


class SensitivityLosses:
    """The losses of candidates: what approximating their layers alone does to the outputs of the network.

    :class:`~onnxlowrank.plan.layer_sensitivity.LayerSensitivity` says how they are measured.

    Attributes:
        curves: Those of the layers, by their names; a layer without a choice has none.
    """

    def __init__(
        self,
        calibration: Calibration,
        drafts: Drafts,
        candidates: Mapping[str, Sequence[Candidate]],
        measures: Sequence[Measure],
        progress: Progress,
    ) -> None:
        """Measure a setting of every layer.

        Args:
            calibration: The network, and inputs of which some were held out by :func:`hold_out`, if there are enough.
            drafts: Of its layers.
            candidates: Of every layer.
            measures: How the outputs of the network are measured.
            progress: Told how far it is.
        """
        self.curves: dict[str, SensitivityCurve] = {}
        self._usual = 0.0
        self._drafts, self._progress = drafts, progress
        self._layers = [layer for layer in calibration.layers if len(candidates[layer.name]) > 1]
        self._measured: dict[str, dict[Candidate, _Measured]] = {layer.name: {} for layer in self._layers}
        if self._layers:
            first = {layer.name: [_first(candidates[layer.name])] for layer in self._layers}
            advance = progress.stage("sensitivity", 1 + 2 * len(first))
            used = calibration.inputs.subset(spread(calibration.inputs, affordable(calibration.layers)))
            self._layer_sensitivity = LayerSensitivity(
                calibration.model, calibration.layers, self._layers, used, measures
            )
            advance(1)
            self._measure(first, advance)
            self._usual = float(np.exp(np.mean([curve.harm.mean() for curve in self.curves.values()])))

    def of(self, candidate: Candidate) -> float:
        """Return how much a candidate is predicted to change the outputs, 0 where its layer has no choice.

        That is between what its layer's curve says, and what the usual layer would lose at the first measurements.
        """
        curve = self.curves.get(candidate.layer)
        if candidate.method == KEEP or curve is None:
            return 0.0
        lost = as_checked(np.array(1 - candidate.energy), self._checked(candidate))
        return float(curve.loss(float(lost)) ** _TRUST * (self._usual * lost) ** (1 - _TRUST))

    def refine(self, plan: Plan) -> Collection[str]:
        """Measure what a plan chose far from everything measured of the same pass; return the layers it was in."""
        new = {name: [candidate] for name, candidate in plan.items() if self._is_new(candidate)}
        if new:
            self._measure(new, self._progress.stage("sensitivity", 2 * len(new)))
        return new

    def _checked(self, candidate: Candidate) -> dict[float, float]:
        """Return for the settings measured of its pass what drafts lose in truth, by what they promise to lose."""
        measured = self._measured[candidate.layer].items()
        return {1 - one.energy: known.unseen for one, known in measured if one.method == candidate.method}

    def _is_new(self, candidate: Candidate) -> bool:
        promised = 1 - candidate.energy
        if candidate.layer not in self.curves or promised <= _NOTHING_LOST:
            return False
        return not any(one / _FAR <= promised <= one * _FAR for one in self._checked(candidate))

    def _measure(self, candidates: Mapping[str, Sequence[Candidate]], advance: Advance) -> None:
        """Measure candidates, by layer, shallow to deep."""
        layers = [layer for layer in self._layers if layer.name in candidates]
        for _ in in_parallel(lambda layer: [self._drafts.of(layer, one) for one in candidates[layer.name]], layers):
            advance(1)
        for layer in layers:
            measured = self._measured[layer.name]
            chains = [self._drafts.of(layer, one).chain for one in candidates[layer.name]]
            try:
                losses = self._layer_sensitivity.losses(layer, chains)
            except NotFiniteError:  # in the network with one of the chains
                losses = [(1.0, np.inf)] * len(chains)
            for one, (lost, loss) in zip(candidates[layer.name], losses, strict=True):
                measured[one] = _Measured(max(lost, _NOTHING_LOST), loss, self._unseen(layer, one))
                _LOG.info("%s: %s %s loses %.5f, the network %.6f", layer.name, one.method, one.setting, lost, loss)
            points = [(one.lost, one.loss) for one in measured.values()]
            self.curves[layer.name] = fit_sensitivity_curve(*zip(*points, strict=True))
            advance(1)

    def _unseen(self, layer: Layer, candidate: Candidate) -> float:
        """Return the share that a draft loses in truth, where that is known: promises may be far off."""
        lost = self._drafts.lost(layer, candidate)
        return min(max(1 - candidate.energy if lost is None else lost, _NOTHING_LOST), 1.0)


def _first(candidates: Sequence[Candidate]) -> Candidate:
    """Return the setting of a layer to begin with: the cheapest one that keeps the energy, or nearly does."""
    others = [one for one in candidates if one.method != KEEP]
    lossy = [one for one in others if 1 - one.energy > _NOTHING_LOST] or others
    return min(lossy, key=lambda one: (max(ENERGY - one.energy, 0), one.macs))

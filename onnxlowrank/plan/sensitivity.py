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
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from onnxlowrank.decompose.spectrum import Float64Array, as_checked
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.fit.fitter import Calibration
from onnxlowrank.graph.layer import Layer
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.parallel import in_parallel
from onnxlowrank.passes.base import KEEP, Candidate
from onnxlowrank.plan.layer_sensitivity import Alone
from onnxlowrank.plan.selection import Plan
from onnxlowrank.progress import Advance, Progress

_LOG = logging.getLogger(__name__)

ENERGIES = (0.98, 0.9)
"""Shares of the response's variance at which, or a little above, losses are measured first."""

_MOST_MACS = 2e12
_FEWEST_INPUTS, _MOST_INPUTS = 32, 256
_SMALLEST, _LARGEST = 1e-9, 1e6
_NOTHING_LOST = 1e-4
_NEAR = 2.0
"""Ratio of two shares up to which one measurement stands for both."""
_STEEPEST = 0.5
"""How fast harm may grow beyond the outermost measurements: they are few, on a few inputs, and of several passes."""
_TRUST = 0.75
"""Weight of a layer's own measurements, in logarithms; the rest is that of the usual layer."""


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
    inputs.

    Args:
        layers: Of the network.
        inputs: All there are.
    """
    return _spread(inputs, min(_affordable(layers), len(inputs) * inputs.batch // 3)) if len(inputs) >= 3 else []


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


class Sensitivities:
    """The losses of candidates: what approximating their layers alone does to the outputs of the network.

    :class:`~onnxlowrank.plan.layer_sensitivity.Alone` says how they are measured.

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
        self._measured: dict[str, dict[Candidate, _Measured]] = {layer.name: {} for layer in self._layers}
        if self._layers:
            first = {layer.name: _first(candidates[layer.name]) for layer in self._layers}
            advance = progress.stage("sensitivity", 1 + 2 * len(first))
            used = about.inputs.subset(_spread(about.inputs, _affordable(about.layers)))
            self._alone = Alone(about.model, about.layers, self._layers, used)
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
        return {1 - one.energy: known.unseen for one, known in measured if one.method == candidate.method}

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
        for layer in layers:
            measured = self._measured[layer.name]
            chains = [self._drafts.of(layer, one).chain for one in candidates[layer.name]]
            losses = self._alone.losses(layer, chains)
            for one, (lost, loss) in zip(candidates[layer.name], losses, strict=True):
                measured[one] = _Measured(max(lost, _NOTHING_LOST), loss, self._unseen(layer, one))
                _LOG.info("%s: %s %s loses %.5f, the network %.6f", layer.name, one.method, one.setting, lost, loss)
            points = [(one.lost, one.loss) for one in measured.values()]
            self.laws[layer.name] = fit_sensitivity(*zip(*points, strict=True))
            advance(1)

    def _unseen(self, layer: Layer, candidate: Candidate) -> float:
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


def _affordable(layers: Sequence[Layer]) -> int:
    """Return how many inputs can be run through the network for every layer, within reason."""
    macs = len(layers) * sum(layer.macs for layer in layers)
    return int(min(max(_MOST_MACS / max(macs, 1), _FEWEST_INPUTS), _MOST_INPUTS))


def _spread(inputs: Inputs, samples: int) -> list[int]:
    """Return the indices of so many samples, evenly spread, in whole feeds."""
    count = min(max(samples // inputs.batch, 1), len(inputs))
    return [int(index) for index in np.linspace(0, len(inputs) - 1, count)]

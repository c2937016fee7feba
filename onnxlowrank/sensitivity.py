"""How much the outputs of the network change when one layer alone is approximated: measured, without labels.

Zhang 2015, Eq. 13, takes ``-log E`` for the loss of a layer whatever the layer, as if a share of the variance lost near
the input did to the outputs what the same share does near the end. Here one layer at a time is approximated, the
network run, and its outputs compared with those it had. The loss of a plan is then predicted as the sum over its
layers: where each is fitted to the true responses, single-layer losses do add up.

What stands for the approximation matters more than how often it is measured. The same energy may be lost

* along the principal axes of the responses (Zhang 2015, Eq. 2-3): more harmful than what ``cp`` or
  ``outer_product`` lose, and not alike in all layers;
* by shrinkage or to noise: further off, because neither lies where the approximations err;
* to a pass's own :meth:`~onnxlowrank.passes.base.Pass.draft`: near to what the fitted chain costs,
  once the mean of the response is restored, as the fit would do.

So the drafts of two settings are measured that selection might choose, one that loses little and one that loses more,
and a power law in the lost energy goes through the losses. Both have to be near what is chosen in the end: a layer that
is nearly low-rank loses nothing up to some energy, and a lot soon after. Where there are no such settings the responses
are projected onto their principal axes, which needs no candidate (:func:`projected`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxlowrank.calibrate.capture import sample
from onnxlowrank.calibrate.feeds import Inputs
from onnxlowrank.calibrate.frontier import Frontier
from onnxlowrank.chain import Chain, Step
from onnxlowrank.decompose.moments import Moments
from onnxlowrank.decompose.spectrum import Float64Array, principal_axes
from onnxlowrank.drafts import Drafts
from onnxlowrank.evaluate import divergence, is_classifier
from onnxlowrank.fit import Calibration
from onnxlowrank.graph.probe import Probe
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.layer import Geometry, Layer
from onnxlowrank.parallel import in_parallel
from onnxlowrank.passes.base import KEEP, RESPONSE, Candidate, pointwise
from onnxlowrank.progress import Progress
from onnxlowrank.runtime import all_threads, open_session, running

Outputs = list[NDArray[np.generic]]

ENERGIES = (0.98, 0.9)
"""Shares of the response's variance at which, or a little above, the loss is measured: about what selection chooses."""

_MOST_MACS = 4e12
_FEWEST_INPUTS, _MOST_INPUTS, _INPUTS_FOR_MEANS = 16, 256, 32
_SMALLEST, _LARGEST = 1e-9, 1e6
_NOTHING_LOST = 1e-4
_EXPONENTS = 1.0, 1.5
_USUAL_EXPONENT, _LEAST_SPREAD = 1.0, math.log(1.5)
_PROBE = "::onnxlowrank::mean"


@dataclass(frozen=True)
class Sensitivity:
    """What a layer's lost energy does to the outputs of the network: ``scale * (1 - E) ** exponent``.

    Attributes:
        scale: The loss were all the energy lost, > 0.
        exponent: How fast it grows.
    """

    scale: float
    exponent: float

    def loss(self, energy: float) -> float:
        """Return what the network loses when the layer keeps this share of its response's variance; 0 at 1."""
        return float(self.scale * max(1.0 - energy, 0.0) ** self.exponent)


def measure_sensitivities(
    about: Calibration,
    drafts: Drafts,
    candidates: Mapping[str, Sequence[Candidate]],
    progress: Progress,
) -> dict[str, Sensitivity]:
    """Approximate the layers one at a time and measure how far the outputs of the network move.

    That is their mean Kullback-Leibler divergence where the first output is ``[N, classes]``, and otherwise the squared
    relative error of all outputs. The work is bounded by running fewer inputs through larger networks.

    Args:
        about: The network and its inputs, of which an evenly spread part is used.
        drafts: Of its layers.
        candidates: What the layers offer.
        progress: Told how far it is.

    Returns:
        The sensitivities of the layers that offer more than "keep".
    """
    model, layers = about.model, about.layers
    measured = [layer for layer in layers if any(one.method != KEEP for one in candidates[layer.name])]
    if not measured:
        return {}
    advance = progress.stage("sensitivity", 1 + 2 * len(measured))
    examples = {}
    for layer, made in zip(measured, in_parallel(partial(_examples, drafts, candidates), measured), strict=True):
        examples[layer.name] = made
        advance(1)
    used = _spread(about.inputs, _affordable(layers, 1 + len(measured) * len(ENERGIES)))
    network = _Network(model, layers, measured, used)
    advance(1)
    found = {}
    for layer in measured:
        network.go_to(layer)
        losses = [network.loss(layer, chain) for _, chain in examples[layer.name]]
        found[layer.name] = fit_sensitivity([energy for energy, _ in examples[layer.name]], losses)
        advance(1)
    return found


def projected(layer: Layer, moments: Moments, energy: float) -> Chain:
    """Return the layer with this share of its response's variance kept, along as few principal axes as that takes.

        y' = mean + P (y - mean),    P = sum over i <= d' of u_i u_i'  +  a u_j u_j',    j = d' + 1

    The last axis is shrunk, not cut, so that exactly the energy is kept, in layers of one output map too.

    Args:
        layer: The layer.
        moments: Of its response.
        energy: In [0, 1].
    """
    values, axes = principal_axes(moments.covariance)
    projection = (axes * _kept(values, energy)) @ axes.T
    bias = moments.mean - projection @ moments.mean
    if layer.bias is not None:
        bias += projection @ layer.bias
    if layer.group == 1:
        weight = np.tensordot(projection, layer.weight, axes=1).astype(np.float32)
        return Chain((Step("projected", weight, layer.geometry),), bias.astype(np.float32))
    itself = Step("itself", layer.weight, layer.geometry, layer.group)
    project = Step("projected", pointwise(projection, layer), Geometry.pointwise(layer.geometry.axes))
    return Chain((itself, project), bias.astype(np.float32))


def fit_sensitivity(energies: Sequence[float], losses: Sequence[float]) -> Sensitivity:
    """Return the power law through measured losses: least squares in logarithms, with a sensible exponent.

    Small errors do harm in proportion to their energy, and larger ones at most a little more: of two measurements on a
    few inputs no steeper or flatter law is believed. Energies too close to each other, or a single one, do not tell the
    exponent: then it is the usual one.
    """
    x = np.log(1 - np.asarray(energies))
    y = np.log(np.clip(np.nan_to_num(losses, nan=_LARGEST), _SMALLEST, _LARGEST))
    slope = float(np.polyfit(x, y, 1)[0]) if np.ptp(x) > _LEAST_SPREAD else _USUAL_EXPONENT
    exponent = min(max(slope, _EXPONENTS[0]), _EXPONENTS[1])
    return Sensitivity(math.exp(float((y - exponent * x).mean())), exponent)


def _examples(drafts: Drafts, candidates: Mapping[str, Sequence[Candidate]], layer: Layer) -> list[tuple[float, Chain]]:
    """Return approximations of the layer near the energies, and what they keep: drafts, or projections.

    What a draft keeps in truth counts, where that is known, since promises may be far off.
    """
    lossy = [one for one in candidates[layer.name] if one.method != KEEP and 1 - one.energy > _NOTHING_LOST]
    enough = [[one for one in lossy if one.energy >= energy] for energy in ENERGIES]
    cheapest = dict.fromkeys(min(some, key=lambda one: one.macs) for some in enough if some)
    if not cheapest:
        moments = drafts.statistics[layer.name].moments[RESPONSE]
        return [(energy, projected(layer, moments, energy)) for energy in ENERGIES]
    found = []
    for one in cheapest:
        lost = drafts.lost(layer, one)
        energy = one.energy if lost is None else 1 - min(max(lost, _NOTHING_LOST), 1.0)
        found.append((energy, drafts.of(layer, one).chain))
    return found


class _Network:
    """The original network, with which approximations of single layers are compared."""

    def __init__(
        self, model: onnx.ModelProto, layers: Sequence[Layer], measured: Sequence[Layer], inputs: Inputs
    ) -> None:
        self._model = model
        self._layers = layers
        self._outputs = _run(model, inputs)
        self._means = _means(model, measured, _spread(inputs, _INPUTS_FOR_MEANS))
        self._frontier = Frontier(inputs, seed=0)

    def go_to(self, layer: Layer) -> None:
        """Run the network as far as a layer, shallow to deep: :meth:`loss` begins there."""
        probe = Probe(layer.input + _PROBE, layer.input, not layer.is_conv)
        self._frontier.sample(self._model, [probe], layer.input, lambda amount: None)

    def loss(self, layer: Layer, chain: Chain) -> float:
        """Return how far the outputs move when the chain computes the layer, with the mean of its response restored."""
        changed, inputs = self._with(layer, chain)
        shift = _means(changed, [layer], _spread(inputs, _INPUTS_FOR_MEANS))[layer.name]
        bias = self._means[layer.name] - shift + (0 if chain.bias is None else chain.bias)
        return _change(self._outputs, _run(*self._with(layer, replace(chain, bias=bias.astype(np.float32)))))

    def _with(self, layer: Layer, chain: Chain) -> tuple[onnx.ModelProto, Inputs]:
        return self._frontier.rest(rewrite(self._model, self._layers, {layer.name: chain}))


def _means(model: onnx.ModelProto, layers: Sequence[Layer], inputs: Inputs) -> dict[str, Float64Array]:
    """Return the mean responses ``[F]`` of the layers, at the same positions in every network."""
    probes = [Probe(layer.output + _PROBE, layer.output, not layer.is_conv) for layer in layers]
    moments = {layer.name: Moments(layer.outputs) for layer in layers}
    for rows in sample(model, probes, inputs, 0, lambda amount: None):
        for layer, probe in zip(layers, probes, strict=True):
            moments[layer.name].add(rows[probe.name])
    return {name: one.mean for name, one in moments.items()}


def _kept(values: Float64Array, energy: float) -> Float64Array:
    """Return by how much to scale each principal component, the largest first, for the energy to be kept."""
    lost = (1 - energy) * values.sum()
    tails = np.cumsum(values[::-1])[::-1]  # what is lost when the components from this one on are cut
    kept: Float64Array = (tails > lost).astype(np.float64)
    last = int(kept.sum()) - 1
    if last >= 0:
        kept[last] = 1 - math.sqrt(max(lost - (tails[last] - values[last]), 0) / values[last])
    return kept


def _affordable(layers: Sequence[Layer], runs: int) -> int:
    """Return how many inputs can be run so often through the network, within reason."""
    macs = sum(layer.macs for layer in layers)
    return int(min(max(_MOST_MACS / max(runs * macs, 1), _FEWEST_INPUTS), _MOST_INPUTS))


def _spread(inputs: Inputs, samples: int) -> Inputs:
    """Return so many samples, evenly spread, in whole feeds."""
    count = min(max(samples // inputs.batch, 1), len(inputs))
    return inputs.subset(np.linspace(0, len(inputs) - 1, count).astype(int).tolist())


def _run(model: onnx.ModelProto, inputs: Inputs) -> list[Outputs]:
    """Return all outputs of the network, one feed after the other."""
    session = open_session(model, all_threads(), spinning=True)
    wanted = {value.name for value in session.get_inputs()}
    outputs = []
    for feeds in inputs:
        with running(feeds):
            outputs.append(session.run(None, {name: value for name, value in feeds.items() if name in wanted}))
    return outputs


def _change(before: Sequence[Outputs], after: Sequence[Outputs]) -> float:
    """Return the divergence of the classes, or the squared relative error of all outputs that are real numbers."""
    if all(is_classifier(one[0]) for one in before) and len({one[0].shape[1] for one in before}) == 1:
        return divergence(*(np.concatenate([one[0] for one in outputs]) for outputs in (before, after)))
    difference = norm = 0.0
    for pair in zip(before, after, strict=True):
        for one, other in zip(*pair, strict=True):
            if isinstance(one, np.ndarray) and one.dtype.kind == "f":
                known = np.isfinite(one)
                values = one[known].astype(np.float64)
                difference += float(((other[known].astype(np.float64) - values) ** 2).sum())
                norm += float((values**2).sum())
    return difference / norm if norm else 0.0

"""What candidates take from a network that becomes int8: what their approximation loses, and what rounding adds.

Algebra. A chain gives ``y + e`` for the response ``y``, and ``y + e + r`` in int8. Rounding knows nothing of what the
chain leaves out, so ``e`` and ``r`` do not vary together, and near to the outputs of the original the loss is
quadratic:

    loss(e + r) = loss(e) + loss(r),    loss(r) = h n,    n = E |r - E r|^2 / E |y - E y|^2

``loss(e)`` is that of float32 (:mod:`onnxlowrank.plan.sensitivity`). ``n`` is the noise of the chain, a share of the
variance of the response. ``h`` belongs to the layer: it says what a share of noise does to the outputs. The mean
``E r`` counts for nothing, as biases take it back. What the response is rounded to belongs to the layer that reads it.

Measured is, for every layer that has a choice, the layer itself: its noise ``n0`` and, with its rounded weights and
what it reads rounded in place, the network's loss ``l0``. That is what "keep" loses, and ``h = l0 / n0``. Of a chain
that a plan chooses the noise is measured, on the draft, on samples of what the layer reads, which are kept: that takes
no run of the network (:mod:`onnxlowrank.quantize.simulated`). So far from any setting of the same pass in this layer
that was measured, it is measured again; all others have the noise of those, interpolated in logarithms over the energy
they lose. Of a pass that was not yet chosen in a layer the chains are taken to be as noisy as the layer itself: an
optimistic prior, as that of :mod:`onnxlowrank.plan.latency_model`, so that they are looked at before they are given up.
No chain is taken to be less noisy than that. Layers that stay in float32 have no noise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.hold_out import affordable, spread
from onnxlowrank.calibrate.statistics import Calibration
from onnxlowrank.errors import NotFiniteError
from onnxlowrank.evaluate.measures import Measure
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.graph.chain import Chain, as_chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.passes.base import KEEP, Candidate, Plan
from onnxlowrank.plan.layer_sensitivity import LayerSensitivity
from onnxlowrank.plan.selection import Losses
from onnxlowrank.progress import Progress
from onnxlowrank.quantize.int8 import Int8
from onnxlowrank.quantize.qdq import chain_owner
from onnxlowrank.quantize.simulated import Rounding, rounding_of, with_rounded_reads, with_weights_on_grid

_LOG = logging.getLogger(__name__)

_FEWER = 2
"""Of the inputs that approximations are judged on, one in so many: rounding is much the same on all of them."""
_MOST_NUMBERS = 2**22
"""Of what a layer reads, or gives, that noise is measured on."""
_LEAST_LOST = 1e-4
_FAR = math.log(3.0)
"""Distance of two settings, in the logarithm of the energy they lose, from which on one does not stand for both."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer in int8.

    Attributes:
        loss: Of the network whose other layers are in float32.
        rounding: What it does to the response.
        excess: How much noisier chains were found to be, as ratios, by the pass and the logarithm of the energy lost.
    """

    loss: float
    rounding: Rounding
    excess: dict[str, dict[float, float]] = field(default_factory=dict)


class Int8Losses:
    """The losses of candidates where the network becomes int8.

    Attributes:
        float32: Those of their approximations alone.
    """

    def __init__(
        self,
        float32: Losses,
        int8: Int8,
        calibration: Calibration,
        drafts: Drafts,
        candidates: Mapping[str, Sequence[Candidate]],
        measures: Sequence[Measure],
        progress: Progress,
    ) -> None:
        """Measure every layer that has a choice and is to be int8.

        Args:
            float32: What approximations lose.
            int8: What makes the network int8.
            calibration: The network and its inputs.
            drafts: Of its layers.
            candidates: Of every layer.
            measures: How the outputs of the network are measured.
            progress: Told how far it is.
        """
        self.float32 = float32
        self._int8, self._drafts, self._progress = int8, drafts, progress
        self._store = RowStore()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._known: dict[str, _Layer] = {}
        self._layers = [
            one for one in calibration.layers if len(candidates[one.name]) > 1 and one.name not in int8.reasons
        ]
        if not self._layers:
            return
        advance = progress.stage("sensitivity", 1 + len(self._layers))
        count = max(affordable(calibration.layers) // _FEWER, 1)
        inputs = calibration.inputs.subset(spread(calibration.inputs, count))
        sensitivity = LayerSensitivity(calibration.model, calibration.layers, [], inputs, measures)
        advance(1)
        for layer in self._layers:
            self._keep(layer, sensitivity.read_by(layer), len(inputs))
            self._known[layer.name] = self._kept(layer, sensitivity)
            advance(1)

    def of(self, candidate: Candidate) -> float:
        """Return how much a candidate is predicted to change the outputs in int8."""
        known = self._known.get(candidate.layer)
        lost = self.float32.of(candidate)
        return lost if known is None else lost + known.loss * _excess(known, candidate)

    def refine(self, plan: Plan) -> Collection[str]:
        """Measure what a plan chose far from everything measured of the same pass; return the layers it was in."""
        refined = set(self.float32.refine(plan))
        new = [layer for layer in self._layers if self._is_new(plan[layer.name])]
        advance = self._progress.stage("sensitivity", len(new)) if new else None
        for layer in new:
            self._measure(layer, plan[layer.name])
            if advance is not None:
                advance(1)
        return refined.union(layer.name for layer in new)

    def _kept(self, layer: Layer, sensitivity: LayerSensitivity) -> _Layer:
        """Return what a layer is in int8."""
        rounding = self._rounding(layer, as_chain(layer))
        chain = with_weights_on_grid(as_chain(layer), self._int8.weight_bits)
        bias = np.zeros(layer.outputs) if layer.bias is None else layer.bias
        chain = replace(chain, bias=(bias - rounding.moved).astype(np.float32))
        share = rounding.noise / rounding.variance if rounding.variance > 0 else 0.0
        try:
            loss = sensitivity.moved_by(layer, chain, lambda model: self._reading_rounded(layer, model))
        except NotFiniteError:
            loss = None
        loss = max(share if loss is None else loss, 0.0)
        _LOG.info("%s in int8 has noise of %.6f, the network loses %.6f", layer.name, share, loss)
        return _Layer(loss, rounding)

    def _reading_rounded(self, layer: Layer, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return a network in which a chain in place of a layer reads rounded tensors."""
        places = {place.name: place.input for place in layer.places}
        nodes = [node.name for node in model.graph.node if chain_owner(node.name) in places]
        ranges = {name: self._int8.ranges[name] for name in places.values()}
        return with_rounded_reads(model, nodes, ranges)

    def _is_new(self, candidate: Candidate) -> bool:
        if candidate.method == KEEP:
            return False
        known = self._known[candidate.layer].excess.get(candidate.method, {})
        return not any(abs(one - _lost(candidate)) <= _FAR for one in known)

    def _measure(self, layer: Layer, candidate: Candidate) -> None:
        """Measure the noise of a draft."""
        known, chain = self._known[layer.name], self._drafts.of(layer, candidate).chain
        ratio = 1.0
        if chain.is_finite and known.rounding.noise > 0:
            ratio = self._rounding(layer, chain).noise / known.rounding.noise
        known.excess.setdefault(candidate.method, {})[_lost(candidate)] = ratio
        _LOG.info("%s: %s %s is %.2f times as noisy", layer.name, candidate.method, candidate.setting, ratio)

    def _rounding(self, layer: Layer, chain: Chain) -> Rounding:
        read = self._store.read(layer.name).reshape(-1, *self._shapes[layer.name])
        int8 = self._int8
        return rounding_of(layer, chain, read, int8.ranges[layer.input], int8.ranging, int8.weight_bits)

    def _keep(self, layer: Layer, read: Iterator[NDArray[np.float32]], feeds: int) -> None:
        """Keep some of what a layer reads, evenly spread and of equal shape, on disk."""
        share = seen = 0.0
        for values in read:
            if layer.name not in self._shapes:
                self._shapes[layer.name] = values.shape[1:]
                each = max(math.prod(shape) / max(shape[0], 1) for shape in (layer.input_shape, layer.output_shape))
                rows = feeds * len(values)
                share = min(max(_MOST_NUMBERS / max(each, 1.0), 1.0) / rows, 1.0)
            counted = np.floor(np.arange(seen, seen + len(values) + 1) * share + 1e-9)
            chosen = values[counted[1:] > counted[:-1]]
            seen += len(values)
            if len(chosen) and values.shape[1:] == self._shapes[layer.name]:
                self._store.append(layer.name, chosen.reshape(len(chosen), -1))


def _excess(known: _Layer, candidate: Candidate) -> float:
    """Return how much noisier a candidate is predicted to be than the layer itself: at least as noisy."""
    measured = known.excess.get(candidate.method)
    if not measured:
        return 1.0
    lost = sorted(measured)
    logs = [math.log(max(measured[one], 1.0)) for one in lost]
    return math.exp(float(np.interp(_lost(candidate), lost, logs)))


def _lost(candidate: Candidate) -> float:
    """Return the logarithm of the share of the response's variance that a candidate is predicted to lose."""
    return math.log(max(1 - candidate.energy, _LEAST_LOST))

"""Sweeps over a fitted network: last links, and layers that were kept, fitted again with everything else in place.

A fit goes through a network once, from its input to its output. What it leaves behind can be had without gradients:
layers that are kept behind rewritten ones still expect what these gave before, and may take back a part of the error;
and with that, what a chain is fitted on is no longer what it was. So every layer behind the first chain is fitted once
more, shallow to deep, on what the network before it gives now, to the original network's true preactivations
(Zhang 2015, Eq. 12): its last link and bias, by the same regressions, drawn to the weights that are there.

Weights that are fitted again to the same few inputs may get worse on others. So how strongly they are drawn to what is
there, and how far they go, is chosen a layer by the error on inputs held out from these fits, and staying as they are
is one of the choices. Likewise a sweep as a whole, or half of the way it went, is only taken if the outputs on these
inputs come nearer to those of the original network. Work is linear in the number of layers: a sweep costs what a few
fits do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.calibrate.prefix_cache import PrefixCache
from onnxlowrank.calibrate.statistics import Calibration
from onnxlowrank.decompose.patches import LARGEST_COVARIANCE
from onnxlowrank.decompose.regression import Samples
from onnxlowrank.errors import NotFiniteError
from onnxlowrank.fit.sampling import layer_samples
from onnxlowrank.graph.chain import Chain, as_chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.passes.base import draft_of, refit_last
from onnxlowrank.progress import Advance, Progress

_LOG = logging.getLogger(__name__)

Judge = Callable[[Mapping[str, Chain]], float]
"""Tells how far the outputs of the network with some chains are from those of the original, on inputs held out."""

SWEEPS = 2
_RIDGES = (1e-3, 1e-1)
"""How strongly weights are drawn to what they were, see :func:`onnxlowrank.decompose.regression.fit_low_rank`."""
_WAYS = (0.5, 1.0)
"""How far they go."""
_ROWS = 4096
_MOST_COLUMNS = 4 * LARGEST_COVARIANCE
"""Of what is sampled for one fit, over all groups of a layer: two gigabytes."""


class Sweeps:
    """Fits the layers of fitted networks again."""

    def __init__(self, calibration: Calibration, judge: Judge, nonlinear: bool = True) -> None:
        """Take in what all networks share.

        Args:
            calibration: The network and its inputs; what is chosen is chosen on those that are held out.
            judge: Compares outputs on these.
            nonlinear: Whether activations are taken into account.
        """
        self._about, self._judge, self._nonlinear = calibration, judge, nonlinear

    def run(self, chains: Mapping[str, Chain], progress: Progress) -> dict[str, Chain]:
        """Return the chains of a network fitted again, those of kept layers among them: one link, the layer's own.

        Where no inputs are held out, or nothing comes nearer to the original network on these, they are as they were.
        """
        best = dict(chains)
        if not chains or not self._about.held_out:
            return best
        loss = self._judge(best)
        for _ in range(SWEEPS):
            swept = self._sweep(best, progress)
            found = [(self._judge(one), one) for way in _WAYS[::-1] for one in [self._between(best, swept, way)]]
            lowest, chosen = min(found, key=lambda pair: pair[0])
            _LOG.info("tuned: loss on inputs held out %.6g, before %.6g", lowest, loss)
            if not lowest < loss:
                break
            best, loss = chosen, lowest
        return best

    def _sweep(self, chains: Mapping[str, Chain], progress: Progress) -> dict[str, Chain]:
        """Return all chains fitted again, one layer after the other."""
        about = self._about
        tuned, started = dict(chains), False
        advance = progress.stage("tune", len(about.layers) * len(about.inputs))
        prefix_cache = PrefixCache(about.model, about.layers, about.inputs, about.seed)
        for layer in about.layers:
            started = started or layer.name in chains
            if started and layer.name in about.applicable:
                chain = chains.get(layer.name, as_chain(layer))
                fitted = self._again(layer, chain, tuned, prefix_cache, advance)
                if fitted is not chain:
                    tuned[layer.name] = fitted
            else:
                advance(len(about.inputs))
        return tuned

    def _again(
        self,
        layer: Layer,
        chain: Chain,
        chains: Mapping[str, Chain],
        prefix_cache: PrefixCache,
        advance: Advance,
    ) -> Chain:
        """Return the chain with the last link that suits inputs held out best: it itself, or one that is fitted."""
        last = chain.steps[-1]
        columns = math.prod(last.weight.shape[1:])
        if columns > LARGEST_COVARIANCE or columns * last.group > _MOST_COLUMNS:
            advance(len(self._about.inputs))
            return chain
        try:
            samples, counts = layer_samples(
                self._about, layer, draft_of(layer, chain).features, chains, prefix_cache, advance
            )
        except NotFiniteError:
            return chain
        held_out = np.repeat([index in self._about.held_out for index in range(len(counts))], counts)
        seen, unseen = _part(samples, ~held_out), _part(samples, held_out)
        del samples
        best, least = chain, _error(chain, unseen)
        for ridge in _RIDGES:
            with np.errstate(over="ignore"):
                fitted = refit_last(chain, seen, self._nonlinear, ridge)
            for way in _WAYS:
                one = _moved(chain, fitted, way)
                error = _error(one, unseen) if one.is_finite else math.inf
                if error < least:
                    best, least = one, error
        return best

    def _between(self, before: Mapping[str, Chain], after: Mapping[str, Chain], way: float) -> dict[str, Chain]:
        """Return chains a part of the way from some to others."""
        known = {layer.name: layer for layer in self._about.layers}
        return {
            name: chain if way == 1 else _moved(before.get(name, as_chain(known[name])), chain, way)
            for name, chain in after.items()
        }


def _part(samples: Samples, rows: NDArray[np.bool_]) -> Samples:
    """Return the samples of some rows."""
    shortcut = None if samples.shortcut is None else samples.shortcut[rows]
    return Samples(samples.features[rows], samples.target[rows], shortcut, samples.activation)


def _moved(before: Chain, after: Chain, way: float) -> Chain:
    """Return a chain whose last link is a part of the way from one to another."""
    if way == 1 or before is after:
        return after
    old, new = before.steps[-1], after.steps[-1]
    weight = (old.weight + way * (new.weight - old.weight)).astype(np.float32)
    was = 0.0 if before.bias is None else before.bias
    assert after.bias is not None
    bias = (was + way * (after.bias - was)).astype(np.float32)
    return Chain((*after.steps[:-1], replace(new, weight=weight)), bias)


def _error(chain: Chain, samples: Samples) -> float:
    """Return the squared error of a chain's responses, behind the activation, to true ones."""
    last = chain.steps[-1]
    chosen = last if last.among is None else replace(last, take=None, among=None)
    matrix = chosen.dense_weight().reshape(len(last.given), -1).T
    total = 0.0
    for start in range(0, len(samples.features), _ROWS):
        rows = slice(start, start + _ROWS)
        response = samples.features[rows] @ matrix
        if chain.bias is not None:
            response = response + chain.bias
        if samples.shortcut is not None:
            response = response + samples.shortcut[rows]
        difference = samples.activation(samples.target[rows]) - samples.activation(response)
        total += float(np.vdot(difference, difference))
    return total

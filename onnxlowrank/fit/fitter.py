"""The fit of a plan: its layers one by one, shallow to deep, each on what the rewritten prefix gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

import numpy as np

from onnxlowrank.calibrate.prefix_cache import PrefixCache
from onnxlowrank.calibrate.statistics import Calibration
from onnxlowrank.errors import NotFiniteError
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.fit.sampling import layer_samples
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.parallel import in_parallel
from onnxlowrank.passes.base import KEEP, Candidate, Plan
from onnxlowrank.progress import Advance, Progress

ChooseLowering = Callable[[Layer, Chain], Sequence[str]]
"""Chooses how the links of a chain are lowered."""


def default_lowering(layer: Layer, chain: Chain) -> Sequence[str]:
    """Choose lowerings without a measurement."""
    return chain.lowerings


class Fitter:
    """Fits plans, and reuses what does not change from one plan to the next.

    A chain is fitted on what the rewritten layers before it give, so it stays as long as these stay.
    """

    def __init__(
        self,
        calibration: Calibration,
        drafts: Drafts,
        lowering: ChooseLowering = default_lowering,
        nonlinear: bool = True,
        asymmetric: bool = True,
    ) -> None:
        """Take in what all plans share.

        Args:
            calibration: The network and its inputs.
            drafts: Of its layers.
            lowering: Chooses how chains are written.
            nonlinear: Whether activations are taken into account (Zhang 2015, Eq. 5, 6).
            asymmetric: Whether features come from the rewritten prefix (Eq. 12); otherwise from the original network.
        """
        self._calibration, self._drafts, self._lowering = calibration, drafts, lowering
        self._nonlinear, self._asymmetric = nonlinear, asymmetric
        self._fitted: dict[Candidate, Chain | None] = {}

    def fit(self, plan: Plan, progress: Progress) -> dict[str, Chain]:
        """Return the chains of a plan, fitted from the input of the network to its output.

        A layer has none if its chain, or what that is fitted on, would not be finite in float32.
        """
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
        about = self._calibration
        prefix_cache = PrefixCache(about.model, about.layers, about.inputs, about.seed)
        for candidate in chosen:
            if candidate not in self._fitted:
                self._fitted[candidate] = self._fit(known[candidate.layer], candidate, chains, prefix_cache, advance)
                advance(1)
            chain = self._fitted[candidate]
            if chain is not None:
                chains[candidate.layer] = chain
        return chains

    def _reusable(self, chosen: Sequence[Candidate]) -> list[Candidate]:
        """Return which of a plan's candidates are fitted as they would be again."""
        if not self._asymmetric:
            return [candidate for candidate in chosen if candidate in self._fitted]
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, self._fitted, strict=False))
        return [candidate for candidate, _ in pairs]

    def _fit(
        self,
        layer: Layer,
        candidate: Candidate,
        before: Mapping[str, Chain],
        prefix_cache: PrefixCache,
        advance: Advance,
    ) -> Chain | None:
        """Return the chain of a candidate, fitted on what the network gives with chains in place of layers before.

        There is none if that is not finite.
        """
        about, method = self._calibration, self._calibration.applicable[layer.name][candidate.method]
        draft = self._drafts.of(layer, candidate)
        if not draft.chain.is_finite:
            return None
        try:
            samples, _ = layer_samples(
                about, layer, draft.features, before if self._asymmetric else {}, prefix_cache, advance
            )
        except NotFiniteError:
            return None
        with np.errstate(over="ignore"):
            fitted = method.fit(layer, candidate.setting, draft, samples, self._nonlinear)
        if not fitted.is_finite:
            return None
        return fitted.lowered(self._lowering(layer, method.outline(layer, candidate.setting)))

"""From a plan to a network: fitted, rewritten and timed side by side with the original."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.fit.sweeps import Sweeps
from onnxlowrank.graph.chain import Chain
from onnxlowrank.measure.interleaved import measure_in_sessions
from onnxlowrank.measure.latency import Latency, median_speedup
from onnxlowrank.passes.base import KEEP, Candidate, Plan, keep
from onnxlowrank.plan.network import Network
from onnxlowrank.plan.selection import Losses, Select
from onnxlowrank.plan.tradeoff import Tradeoff
from onnxlowrank.progress import Progress

_LOG = logging.getLogger(__name__)
_FITTED_S = 4.0
_CLEARLY = 1.03
"""How much faster is more than what times scatter by."""

INT8_IS_ENOUGH = "int8 alone reaches the goal"
INT8_IS_FASTEST = "nothing was found that is faster than int8 alone"
FOLDED_IS_ENOUGH = "constants folded into convolutions reach the goal"
FOLDED_IS_FASTEST = "nothing was found that is faster than constants folded into convolutions"
NO_FINITE_CHAIN = "a chain in its place would compute what is not finite"


@dataclass(frozen=True, eq=False)
class NetworkBuilder:
    """All that it takes to make a network.

    Attributes:
        network: What is rewritten, and where it is timed.
        candidates: Of its layers.
        losses: What candidates take from the network.
        select: Makes plans.
        fitter: Fits them.
        progress: Told how far the work is.
        sweeps: Fits them again; None where they are fitted once.
    """

    network: Network
    candidates: Mapping[str, Sequence[Candidate]]
    losses: Losses
    select: Select
    fitter: Fitter
    progress: Progress
    sweeps: Sweeps | None = None

    def build(self, plan: Plan, predicted: float | None = None, reason: str = "") -> FittedNetwork:
        """Return the network of a plan, fitted and timed side by side with the original.

        Args:
            plan: One candidate a layer.
            predicted: The speed-up that is promised.
            reason: Why the layers that have a choice are kept, where there was no selection.
        """
        chains = self.fitter.fit(plan, self.progress)
        failed = [
            layer for layer in self.network.layers if plan[layer.name].method != KEEP and layer.name not in chains
        ]
        plan = plan | {layer.name: keep(layer) for layer in failed}
        if self.sweeps is not None:
            chains = self.sweeps.run(chains, self.progress)
        model = self.network.finished(chains, self.progress)
        before, after = self._timed(model)
        return FittedNetwork(plan, chains, model, before, after, predicted, reason, {layer.name for layer in failed})

    def alone(self) -> FittedNetwork | None:
        """Return the network with all its layers kept, to compare with; None where that is the original.

        It is int8 where that is planned in; otherwise constants are folded.
        """
        if self.network.int8 is None and (self.network.half is not None or not self.network.folded_away):
            return None
        reason = FOLDED_IS_FASTEST if self.network.int8 is None else INT8_IS_FASTEST
        return self._with_all_kept(self.network.finished({}, self.progress), reason)

    def timed_again(self, fitted: FittedNetwork) -> tuple[FittedNetwork, float]:
        """Time a network as often again, in turns with the outline of its plan.

        Returns:
            The network with all its times, and in what proportion to that of the outline its time is.
        """
        before, outline, after = self._timed(self.network.outline(fitted.plan), fitted.model)
        times = fitted.before.with_those(before), fitted.after.with_those(after)
        return replace(fitted, before=times[0], after=times[1]), median_speedup(after, outline)

    def faster(self, fitted: FittedNetwork, alone: FittedNetwork) -> FittedNetwork:
        """Return a network if it is clearly faster than the one with all layers kept, which loses less; or that one.

        They are timed once more, in turns: the machine may have had another speed when the other one was.
        """
        before, *after = self._timed(fitted.model, alone.model)
        one, other = (replace(it, before=before, after=times) for it, times in zip((fitted, alone), after, strict=True))
        return one if one.speedup > _CLEARLY * other.speedup else other

    def mixed(self, fitted: FittedNetwork, float32: Collection[str]) -> FittedNetwork:
        """Return an int8 network once more, layers of these names in float32."""
        model = self.network.finished(fitted.chains, self.progress, float32)
        before, after = self._timed(model)
        return replace(fitted, model=model, before=before, after=after, predicted=None, float32=frozenset(float32))

    def original(self, reason: str) -> FittedNetwork:
        """Return the network as it was given, for want of a better one."""
        return self._with_all_kept(self.network.original, reason)

    @property
    def is_free(self) -> bool:
        """Whether all layers may be kept: none has ranks that were set by hand."""
        return all(any(one.method == KEEP for one in items) for items in self.candidates.values())

    def _with_all_kept(self, model: onnx.ModelProto, reason: str) -> FittedNetwork:
        plan = {layer.name: keep(layer) for layer in self.network.layers}
        before, after = self._timed(model)
        return FittedNetwork(plan, {}, model, before, after, None, reason)

    def _timed(self, *models: onnx.ModelProto) -> list[Latency]:
        """Return the times of the original network, and of others in turns with it."""
        network, advance = self.network, self.progress.stage("measure", 1.0)
        every = network.original, *models
        times = measure_in_sessions(
            every, network.feeds, network.target, _FITTED_S, fewest=2, enough=0.005, calm=network.calm
        )
        advance(1.0)
        _LOG.info("speed-up of the fitted network %.3f", median_speedup(times[0], times[-1]))
        return times


@dataclass(frozen=True, eq=False)
class FittedNetwork:
    """A network that was made.

    Attributes:
        plan: Its plan.
        chains: What its layers became.
        model: The network.
        before: Times of the original network.
        after: Its times, taken in turns with these.
        predicted: The speed-up that the latency model promises, if there is one.
        failed: Names of the layers that were to be rewritten, but whose chains were not finite.
        reason: Why layers that had a choice were kept, where that is the same for all.
        tradeoff: What there was to choose from, once the network is chosen.
        float32: Names of the layers that were chosen to stay in float32 in an int8 network.
    """

    plan: Plan
    chains: Mapping[str, Chain]
    model: onnx.ModelProto
    before: Latency
    after: Latency
    predicted: float | None
    reason: str = ""
    failed: Collection[str] = ()
    tradeoff: Tradeoff | None = None
    float32: Collection[str] = ()

    @property
    def speedup(self) -> float:
        """Time before / time after."""
        return median_speedup(self.before, self.after)

    def kept_because(self, layer: str) -> str:
        """Return why a layer was kept that had a choice."""
        if layer in self.failed:
            return NO_FINITE_CHAIN
        return self.reason or ("" if self.tradeoff is None else self.tradeoff.kept_because(layer))

"""Int8 networks some of whose layers stay in float32: those whose rounding does most harm for the time they save.

What rounding one layer does to the outputs is measured (:mod:`onnxlowrank.plan.rounding_loss`). By that, for what a
layer takes longer in float32, layers are ranked, in stretches that onnxruntime really leaves in float32
(:mod:`onnxlowrank.quantize.stretches`); the stopwatch says how many of them a speed-up has room for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import onnx

from onnxlowrank.calibrate.hold_out import affordable, spread
from onnxlowrank.evaluate.objective import Objective
from onnxlowrank.graph.successors import next_layers
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.interleaved import measure_in_sessions
from onnxlowrank.measure.latency import median_speedup
from onnxlowrank.plan.builder import FittedNetwork, NetworkBuilder
from onnxlowrank.plan.rounding_loss import judged_outputs, rounding_losses
from onnxlowrank.quantize.int8 import Draft, Int8
from onnxlowrank.quantize.stretches import stretch

_SECONDS = 1.0
_FITS = 3
"""How often a network is made, should it turn out slower than its draft."""
_SHARES = 0.6, 0.9
"""Of the harm that rounding does, taken away from a network that loses too much."""
_LEAST_TIME = 1e-3
"""What a layer takes longer in float32 at least, as a share of the network's time: some take no longer."""


@dataclass(frozen=True)
class _Step:
    """One more stretch in float32.

    Attributes:
        float32: Names of all layers in float32 by then.
        share: Of the harm of rounding that is taken away by then.
    """

    float32: frozenset[str]
    share: float


class Mixing:
    """Makes int8 networks more accurate and slower."""

    def __init__(self, builder: NetworkBuilder, int8: Int8) -> None:
        """Run the original network.

        Args:
            builder: Makes int8 networks.
            int8: How it makes them int8.
        """
        self._builder, self._network, self._int8 = builder, builder.network, int8
        count = affordable(self._network.layers)
        self._inputs: Inputs = int8.inputs.subset(spread(int8.inputs, count))
        measures = self._network.measures
        self._original = Objective(measures, judged_outputs(self._network.model, measures, self._inputs))
        self._behind = next_layers(self._network.model, self._network.layers)
        self._known: tuple[FittedNetwork | None, Draft | None, list[_Step]] = None, None, []

    def loss(self, fitted: FittedNetwork) -> float:
        """Return how far the outputs of a network are from those of the original."""
        return self._original.loss(judged_outputs(fitted.model, self._network.measures, self._inputs))

    def quieter(self, fitted: FittedNetwork) -> Iterator[FittedNetwork]:
        """Yield an int8 network with ever more layers in float32."""
        _, steps = self._steps(fitted)
        for share in _SHARES:
            enough = next((step for step in steps if step.share >= share), None)
            if enough is not None:
                yield self._builder.mixed(fitted, enough.float32)

    def relaxed(self, fitted: FittedNetwork, speedup: float) -> FittedNetwork | None:
        """Return an int8 network with as many layers in float32 as a speed-up has room for; None if for none."""
        draft, steps = self._steps(fitted)
        low, high = 0, len(steps)  # so many steps are fast enough
        while low < high:
            middle = (low + high + 1) // 2
            if self._speedup(draft.quantised(steps[middle - 1].float32)) >= speedup:
                low = middle
            else:
                high = middle - 1
        for _ in range(_FITS):
            if not low:
                return None
            mixed = self._builder.mixed(fitted, steps[low - 1].float32)
            if mixed.speedup >= speedup:
                return mixed
            low -= 1
        return None

    def _steps(self, fitted: FittedNetwork) -> tuple[Draft, list[_Step]]:
        """Return what makes a network int8, and what to take out of that, one stretch after the other."""
        known, draft, steps = self._known
        if known is not fitted or draft is None:
            draft = self._int8.draft(fitted.chains, self._network.written, lambda amount: None)
            steps = self._ranked(draft)
            self._known = fitted, draft, steps
        return draft, steps

    def _ranked(self, draft: Draft) -> list[_Step]:
        names = [layer.name for layer in self._network.layers if layer.name not in self._int8.reasons]
        advance = self._builder.progress.stage("sensitivity", len(names))
        harm = rounding_losses(draft, names, self._network.measures, self._inputs, advance)
        longer = self._longer(draft, names)
        everything = sum(harm.values())
        stretches = dict.fromkeys(stretch(name, self._network.layers, self._behind, draft.quantised) for name in names)
        steps: list[_Step] = []
        chosen: frozenset[str] = frozenset()

        def worth(one: Collection[str]) -> float:
            new = [name for name in one if name not in chosen]
            return sum(harm.get(name, 0.0) for name in new) / sum(longer.get(name, 0.0) for name in new)

        while left := [one for one in stretches if not chosen.issuperset(one)]:
            best = max(left, key=worth)
            if not worth(best) > 0:
                break
            chosen |= set(best)
            steps.append(_Step(chosen, sum(harm[name] for name in chosen if name in harm) / everything))
        return steps

    def _longer(self, draft: Draft, names: Sequence[str]) -> dict[str, float]:
        """Return what each layer takes longer in float32, in shares of the int8 network's time."""
        float32, int8 = self._network.layer_times(draft.model, draft.quantised())
        whole = sum(int8.values())
        layers = {layer.name: layer.macs for layer in self._network.layers}
        if not whole:
            return {name: layers[name] / sum(layers.values()) for name in names}
        return {name: max((float32.get(name, 0.0) - int8.get(name, 0.0)) / whole, _LEAST_TIME) for name in names}

    def _speedup(self, model: onnx.ModelProto) -> float:
        network = self._network
        both = network.original, model
        return median_speedup(*measure_in_sessions(both, network.feeds, network.target, _SECONDS))

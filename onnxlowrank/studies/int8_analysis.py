"""What int8 alone has to give a network, and which layers it costs most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from onnxlowrank.calibrate.hold_out import affordable, hold_out, spread
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.calibrate.stacking import stacked_inputs
from onnxlowrank.evaluate.agreement import compare_outputs
from onnxlowrank.evaluate.measures import measures_of
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.outside import byte_count
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.hardware import adds_int8_exactly
from onnxlowrank.measure.interleaved import measure_in_sessions
from onnxlowrank.measure.latency import median_speedup
from onnxlowrank.measure.sessions import Target
from onnxlowrank.plan.int8_alone import Int8Alone
from onnxlowrank.plan.rounding_loss import rounding_losses
from onnxlowrank.progress import Progress
from onnxlowrank.quantize.int8 import int8_of, ready_for_int8

_SECONDS = 4.0


@dataclass(frozen=True, eq=False)
class Int8Analysis:
    """What int8 has to give.

    Attributes:
        alone: The network that is int8 and nothing else, on one CPU thread.
        losses: By layer, what it does to the outputs where it alone is int8, as a share of the sum over all.
        float32_because: By layer, why it cannot be int8.
    """

    alone: Int8Alone
    losses: Mapping[str, float]
    float32_because: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**self.alone.to_dict(), "losses": dict(self.losses), "float32_because": dict(self.float32_because)}


def analyse_int8(
    original: onnx.ModelProto, normalised: onnx.ModelProto, inputs: Inputs, progress: Progress
) -> Int8Analysis:
    """Make the network int8, time it, and round its layers one by one.

    Args:
        original: As it was given.
        normalised: Likewise, normalised.
        inputs: Some are left out of the calibration, to compare on.
        progress: Told how far it is.

    Raises:
        UnsupportedModelError: If no layer can be int8.
    """
    model = ready_for_int8(normalised)
    layers = with_shapes(model, find_layers(model), inputs)
    unseen = hold_out(layers, inputs)
    seen = stacked_inputs(original, inputs.subset([one for one in range(len(inputs)) if one not in unseen]))
    measures = measures_of(model, inputs.labels is not None)
    int8 = int8_of(model, layers, seen, [one.tensor for one in measures], 8 if adds_int8_exactly() else 7, progress)
    made = int8.network({}, lambda chains: model, progress)
    times = measure_in_sessions((original, made), inputs[0], Target(), _SECONDS, fewest=2)
    compared = inputs.subset(unseen) if unseen else inputs
    agreement = compare_outputs(original, made, compared, progress.stage("compare", len(compared)))
    names = [layer.name for layer in layers if layer.name not in int8.reasons]
    draft = int8.draft({}, lambda chains: model, lambda amount: None)
    few = seen.subset(spread(seen, affordable(layers)))
    losses = rounding_losses(draft, names, measures, few, progress.stage("sensitivity", len(names)))
    total = sum(losses.values())
    alone = Int8Alone(median_speedup(*times), byte_count(made), agreement)
    return Int8Analysis(alone, {name: one / total if total else 0.0 for name, one in losses.items()}, int8.reasons)

"""What rounding single layers of a network to int8 does to its outputs, measured like any other approximation."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxlowrank.evaluate.measures import Measure
from onnxlowrank.evaluate.objective import Objective
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.progress import Advance
from onnxlowrank.quantize.int8 import Draft
from onnxlowrank.quantize.observe import activations

_LOG = logging.getLogger(__name__)


def rounding_losses(
    draft: Draft, names: Sequence[str], measures: Sequence[Measure], inputs: Inputs, advance: Advance
) -> dict[str, float]:
    """Return, by layer, what is lost where it alone is int8: its weights, and what it reads and gives.

    Args:
        draft: A float32 network, and what makes it int8.
        names: Of the layers.
        measures: How outputs are measured.
        inputs: Sample inputs.
        advance: Told of every layer.
    """
    objective, losses = Objective(measures, judged_outputs(draft.model, measures, inputs)), {}
    for name in names:
        alone = draft.quantised([one for one in names if one != name])
        losses[name] = max(objective.loss(judged_outputs(alone, measures, inputs)), 0.0)
        _LOG.info("%s in int8 loses %.6f", name, losses[name])
        advance(1)
    return losses


def judged_outputs(
    model: onnx.ModelProto, measures: Sequence[Measure], inputs: Inputs
) -> list[list[NDArray[np.generic]]]:
    """Return what a network is judged by, one feed after the other."""
    tensors = [one.tensor for one in measures]
    if not tensors:
        return []
    run = activations(model, tensors, inputs, lambda amount: None)
    return [[values[name] for name in tensors] for values in run]

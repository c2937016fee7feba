"""How many inputs are enough, how many affordable for what is done once a layer, and which are held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxlowrank.graph.layer import Layer
from onnxlowrank.inputs.feeds import Inputs

_MOST_MACS, _FEWEST_INPUTS, _MOST_INPUTS = 1e12, 16, 64
_MOST_MACS_A_PASS, _ENOUGH_INPUTS = 2e12, 64


def enough(layers: Sequence[Layer], inputs: Inputs) -> Inputs:
    """Return the inputs to calibrate with: all, or as many of them, evenly spread, as a large network needs.

    Every input gives many positions of every layer, which are alike: what one more of them tells gets less and less,
    while the time it takes does not. So the work of one pass is bounded.

    Args:
        layers: Of the network.
        inputs: All there are.
    """
    macs = max(sum(layer.macs for layer in layers), 1)
    samples = max(int(_MOST_MACS_A_PASS / macs), _ENOUGH_INPUTS)
    return inputs if samples >= len(inputs) * inputs.batch else inputs.subset(spread(inputs, samples))


def fewer_note(used: Inputs, given: Inputs) -> list[str]:
    """Return what to tell the user where not all inputs are used."""
    if len(used) == len(given):
        return []
    return [
        f"{len(used) * used.batch} of {len(given) * given.batch} calibration inputs were used, evenly spread: all of "
        "them would take long with a network of this size"
    ]


def hold_out(layers: Sequence[Layer], inputs: Inputs) -> list[int]:
    """Return the indices of the inputs to judge settings on, which their drafts shall not have seen.

    A layer of many outputs fits few inputs closely: on others it loses more. There are fewer for larger networks, which
    bounds the work, and at most a third of all; none of fewer than three. Energies of responses are those of these
    inputs.

    Args:
        layers: Of the network.
        inputs: All there are.
    """
    return spread(inputs, min(affordable(layers), len(inputs) * inputs.batch // 3)) if len(inputs) >= 3 else []


def affordable(layers: Sequence[Layer]) -> int:
    """Return how many inputs can be run through the network for every layer, within reason."""
    macs = len(layers) * sum(layer.macs for layer in layers)
    return int(min(max(_MOST_MACS / max(macs, 1), _FEWEST_INPUTS), _MOST_INPUTS))


def spread(inputs: Inputs, samples: int) -> list[int]:
    """Return the indices of so many samples, evenly spread, in whole feeds."""
    count = min(max(samples // inputs.batch, 1), len(inputs))
    return [int(index) for index in np.linspace(0, len(inputs) - 1, count)]

"""How many inputs are affordable for what is done once a layer, and which are held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxlowrank.graph.layer import Layer
from onnxlowrank.inputs.feeds import Inputs


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


_MOST_MACS = 2e12


_FEWEST_INPUTS, _MOST_INPUTS = 32, 256

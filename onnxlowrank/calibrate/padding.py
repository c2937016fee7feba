"""Which sampled positions are padding: what an attention mask hides belongs in no statistic and no fit.

The mask is an input ``[N, T]`` of zeros and ones with "mask" in its name, as encoders of text have it. Where a layer
computes ``[N, T, F]``, its rows at positions where the mask is 0 are left out. Which position a row is from is known
outside of the network, as positions are drawn from numbers that are fed (:mod:`onnxlowrank.graph.probe`).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.calibrate.capture import Rows, fed_positions
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.probe import sampled_positions
from onnxlowrank.inputs.feeds import Inputs


class Padding:
    """Leaves out the rows of padding.

    Attributes:
        mask: Name of the input that tells; None where there is none.
    """

    def __init__(self, inputs: Inputs, seed: int) -> None:
        """Look for a mask.

        Args:
            inputs: As they are run.
            seed: Of the sampled positions.
        """
        self._inputs, self._seed = inputs, seed
        self.mask = next((name for name, values in inputs[0].items() if _may_be_mask(name, values)), None)

    def is_in(self, layer: Layer) -> bool:
        """Return whether a layer computes something at every position of the mask."""
        if self.mask is None or not layer.channels_last:
            return False
        shapes = [place.output_shape for place in layer.places]
        return all(len(shape) == 3 and shape[1] == self._length for shape in shapes)

    def without(self, rows: Rows, index: int, share: int) -> Rows:
        """Return the rows ``[N * k, channels]`` of a layer that are none of padding; all where there is nothing else.

        Args:
            rows: Of a probe, see :func:`onnxlowrank.calibrate.capture.sample`.
            index: Of the input.
            share: Of the probe.
        """
        if self.mask is None:
            return rows
        mask = self._inputs[index][self.mask]
        positions = sampled_positions(fed_positions(self._inputs, self._seed, index), mask.shape[1], share)
        kept: NDArray[np.bool_] = mask[:, positions].ravel() != 0
        return rows[kept] if len(kept) == len(rows) and kept.any() else rows

    @cached_property
    def _length(self) -> int:
        """The positions of the mask of the first input."""
        assert self.mask is not None
        return int(self._inputs[0][self.mask].shape[1])


def _may_be_mask(name: str, values: Rows) -> bool:
    return "mask" in name.lower() and values.ndim == 2 and bool(np.isin(values, (0, 1)).all())

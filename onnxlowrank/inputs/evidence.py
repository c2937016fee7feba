"""Whether sample inputs can tell anything: samples that are all the same cannot."""

from __future__ import annotations

import numpy as np

from onnxlowrank.errors import UnfitInputsError
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.specs import Feeds


def are_identical(inputs: Inputs) -> bool:
    """Return whether there are several samples, all of them the same; no more are read than it takes to tell."""
    if len(inputs) * inputs.batch < 2:
        return False
    first = inputs[0]
    return _has_equal_rows(first, inputs.batch) and all(_equal(first, inputs[at]) for at in range(1, len(inputs)))


def check_varied(inputs: Inputs) -> None:
    """Check that the samples differ.

    Raises:
        UnfitInputsError: If they do not.
    """
    if are_identical(inputs):
        raise UnfitInputsError(
            f"all samples of {inputs.description} are the same, which tells nothing of what the network computes: give "
            "inputs that differ with --calibration."
        )


def _equal(one: Feeds, other: Feeds) -> bool:
    return all(one[name].shape == other[name].shape and np.array_equal(one[name], other[name]) for name in one)


def _has_equal_rows(feeds: Feeds, batch: int) -> bool:
    """Return whether the samples of one feed are all the same."""
    batched = [array for array in feeds.values() if array.ndim and len(array) == batch]
    return batch == 1 or all((array == array[:1]).all() for array in batched)

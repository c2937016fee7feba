"""How many inputs are used of those that are given."""

from types import SimpleNamespace

import numpy as np
import pytest

from onnxlowrank.calibrate.hold_out import enough, fewer_note
from onnxlowrank.inputs.feeds import Inputs


def inputs(count, batch=1):
    return Inputs(lambda index: {"x": np.full((batch, 1), index)}, count, batch, "rows")


@pytest.mark.parametrize(
    ("macs", "given", "used"),
    [
        (1e6, 3000, 3000),  # a small network takes all
        (15.3e9, 600, 130),  # VGG-16
        (15.3e9, 100, 100),
        (1e12, 600, 64),  # however large it is, some are needed
        (0, 5, 5),
    ],
)
def test_large_networks_take_fewer(macs, given, used):
    given_inputs = inputs(given)
    found = enough([SimpleNamespace(macs=macs)], given_inputs)
    assert len(found) == used
    chosen = [int(found[index]["x"][0, 0]) for index in range(len(found))]
    assert chosen == sorted(set(chosen))
    assert (chosen[0], chosen[-1]) == (0, given - 1), "evenly spread"
    assert len(fewer_note(found, given_inputs)) == (used < given)


def test_batches_count_as_their_samples():
    found = enough([SimpleNamespace(macs=15.3e9)], inputs(100, batch=8))
    assert (len(found), found.batch) == (16, 8)
    (note,) = fewer_note(found, inputs(100, batch=8))
    assert note.startswith("128 of 800 calibration inputs were used")

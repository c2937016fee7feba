"""Helpers for the tests of inputs."""

import numpy as np
import pytest

from onnxlowrank.errors import InputDataError
from onnxlowrank.inputs.preprocess import preprocess_from_options
from onnxlowrank.inputs.sources import open_inputs
from onnxlowrank.inputs.specs import InputSpec

RAW = preprocess_from_options("raw")


def spec(*shape, name="data", dtype="float32"):
    return InputSpec(name, shape, np.dtype(dtype))


def says(source, specs, *words, preprocess=RAW, read=False):
    """The source is refused in one sentence that has all the words."""
    opened = open_inputs(source, specs, preprocess) if read else None
    with pytest.raises(InputDataError) as caught:
        list(opened) if read else open_inputs(source, specs, preprocess)
    message = str(caught.value)
    assert all(str(word) in message for word in words), message
    assert message.endswith(".")
    assert "\n" not in message


def same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])

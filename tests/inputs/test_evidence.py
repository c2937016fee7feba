"""Samples that are all the same tell nothing, and whole numbers cannot be made up."""

import numpy as np
import pytest
from helpers.inputs import RAW, spec

from onnxlowrank.errors import InputDataError
from onnxlowrank.inputs.evidence import are_identical, check_varied
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.specs import InputSpec
from onnxlowrank.inputs.synthetic import check_imaginable, synthetic_inputs


def inputs(*arrays):
    return Inputs(lambda index: {"x": arrays[index]}, len(arrays), len(arrays[0]), "test rows")


def test_samples_that_are_all_the_same():
    assert are_identical(inputs(np.zeros((1, 3)), np.zeros((1, 3))))
    assert are_identical(inputs(np.ones((4, 3))))
    assert not are_identical(inputs(np.arange(12.0).reshape(4, 3)))
    assert not are_identical(inputs(np.zeros((1, 3)), np.ones((1, 3))))
    many = [np.zeros((1, 3))] * 100
    assert are_identical(inputs(*many))
    for one in (1, 50, 98, 99):
        assert not are_identical(inputs(*many[:one], np.ones((1, 3)), *many[one:])), "one that differs is enough"
    assert not are_identical(inputs(np.zeros((1, 3)))), "one sample has nothing to differ from"
    with pytest.raises(InputDataError, match=r"all samples of test rows are the same.*--calibration"):
        check_varied(inputs(np.zeros((1, 3)), np.zeros((1, 3))))


def test_whole_numbers_are_refused_but_beside_an_image():
    image, ids = spec(None, 3, 8, 8, name="image"), spec(None, 5, name="ids", dtype="int64")
    with pytest.raises(InputDataError, match=r"'ids'.*cannot be made up: give sample inputs with --calibration"):
        check_imaginable([ids], RAW)
    with pytest.raises(InputDataError, match="'ids'"):
        check_imaginable([ids, spec(None, 4, name="x")], RAW)
    assert check_imaginable([image], RAW) == ()
    (note,) = check_imaginable([image, ids], RAW)
    assert "'ids'" in note
    assert "ones" in note
    feeds = synthetic_inputs([image, ids], RAW, 1, 0)[0]
    assert (feeds["ids"] == 1).all()


def test_dimensions_of_one_name_have_one_size():
    def named(name, shape, symbols):
        return InputSpec(name, shape, np.dtype("float32"), symbols)

    first = named("a", (None, None, 4), ("N", "T", None))
    second = named("b", (None, None), ("N", "T"))
    third = named("c", (None, 6), (None, "T"))
    shapes = {name: array.shape for name, array in synthetic_inputs([first, second], RAW, 2, 0)[0].items()}
    assert shapes == {"a": (1, 224, 4), "b": (1, 224)}
    shapes = {name: array.shape for name, array in synthetic_inputs([first, second, third], RAW, 2, 0)[0].items()}
    assert shapes == {"a": (1, 6, 4), "b": (1, 6), "c": (1, 6)}

"""How outputs are measured: class scores only where something says so."""

import numpy as np
import pytest
from helpers.models import normal, parse

from onnxlowrank.errors import OptionError
from onnxlowrank.evaluate.measures import measures_of

RNG = np.random.default_rng(5)


def model(tail="y = MatMul (x, w)", outputs="float[N, 3] y"):
    return parse(f"g (float[N, 4] x) => ({outputs}) {{ {tail} }}", w=normal(RNG, 4, 3))


TWO = model("y = MatMul (x, w) z = Relu (y)", "float[N, 3] y, float[N, 3] z")


def kinds(network, *given, **asked):
    return {one.tensor: one.kind for one in measures_of(network, *given, asked or None)}


def test_a_softmax_says_so():
    assert kinds(model("m = MatMul (x, w) y = Softmax <axis = 1> (m)"), False) == {"y": "classes"}


def test_labels_say_so_of_an_only_matrix():
    assert kinds(model(), False) == {"y": "values"}
    assert kinds(model(), True) == {"y": "classes"}
    assert kinds(TWO, True) == {"y": "values", "z": "values"}
    cube = model("m = MatMul (x, w) one = Constant <value_ints = [1]> () y = Unsqueeze (m, one)", "float[N, 1, 3] y")
    assert kinds(cube, True) == {"y": "values"}


def test_the_user_says_so():
    assert kinds(TWO, False, y="classes") == {"y": "classes", "z": "values"}
    assert kinds(TWO, False, z="ignore") == {"y": "values"}
    assert kinds(TWO, False, z="auto") == {"z": "values"}
    assert kinds(TWO, False, z="auto", y="values") == {"y": "values", "z": "values"}
    assert kinds(model(), True, y="values") == {"y": "values"}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"q": "classes"}, "no such output; outputs are y, z"),
        ({"y": "scores"}, "choose from classes, values, ignore"),
        ({"y": "ignore", "z": "ignore"}, "keep one"),
    ],
)
def test_what_makes_no_sense_is_refused(asked, words):
    with pytest.raises(OptionError, match=words):
        measures_of(TWO, False, asked)


def test_a_vector_has_no_classes():
    with pytest.raises(OptionError, match=r"it is no \[N, classes\]"):
        measures_of(model("m = MatMul (x, w) y = ReduceSum <keepdims = 0> (m)", "float y"), False, {"y": "classes"})

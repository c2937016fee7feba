"""Whole networks, timed over and over: also those whose outputs are not what they were, or what they are said to be."""

import numpy as np
import pytest
from helpers.models import parse

from onnxlowrank.errors import FailedRunError
from onnxlowrank.measure.latency import measure
from onnxlowrank.measure.sessions import Target

ODD = {
    "another rank than is declared": "g (float[N, 4] x, int64[D] sizes) => (float[A, B] y) { y = Reshape (x, sizes) }",
    "sizes of chance": """g (float[N, 4] x) => (int64[2, K] y) {
        half = Sigmoid (x)
        some = Bernoulli (half)
        y = NonZero (some)
    }""",
    "sizes of data": "g (float[N, 4] x) => (int64[2, K] y) { y = NonZero (x) }",
}


@pytest.mark.parametrize("what", ODD)
def test_odd_outputs_are_timed(what):
    model = parse(ODD[what])
    feeds = {"x": np.zeros((50, 4), np.float32), "sizes": np.array([1, 50, 4])}
    feeds = {value.name: feeds[value.name] for value in model.graph.input}
    (found,) = measure([model], feeds, Target(), seconds=0.01)
    assert found.median > 0


def test_an_input_that_does_not_fit_is_still_refused():
    model = parse("g (float[N, 4] x) => (float[N, 4] y) { y = Add (x, w) }", w=np.zeros((3, 4), np.float32))
    with pytest.raises(FailedRunError):
        measure([model], {"x": np.zeros((2, 4), np.float32)}, Target(), seconds=0.01)

"""Whole networks, timed over and over: also those whose outputs are not what they were, or what they are said to be."""

import numpy as np
import pytest
from helpers.models import parse

from onnxlowrank.errors import FailedRunError
from onnxlowrank.measure.latency import Latency, measure, speedup_noise
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


def test_the_noise_of_a_speedup_is_what_differs_between_sessions():
    """Within a session rounds scatter more, but what scatters is a median; what slows both down does not count."""
    rng = np.random.default_rng(1)
    shares = np.array([0.0, 0.1, -0.1, 0.05])
    load = np.repeat(np.exp(rng.normal(0, 0.5, 4)), 5)
    after = 2.0 * load
    before = 3 * after * np.exp(np.repeat(shares, 5)) * np.tile(np.exp([-0.3, -0.1, 0.0, 0.2, 0.3]), 4)
    sessions = (5,) * 4
    found = speedup_noise(Latency(tuple(before), sessions), Latency(tuple(after), sessions))
    assert found == pytest.approx(np.std(shares, ddof=1) / 2)
    twice = Latency(tuple(before[:10]), (5, 5)), Latency(tuple(after[:10]), (5, 5))
    assert speedup_noise(*twice) == 0, "two sessions do not tell"
    joined = [one.with_those(one) for one in twice]
    assert speedup_noise(*joined) == pytest.approx(np.std([0, 0.1, 0, 0.1], ddof=1) / 2)

"""Names in the user's network that look like ours."""

import numpy as np
import pytest
from helpers.models import normal, parse

from onnxlowrank.calibrate.capture import run_probes, sample
from onnxlowrank.calibrate.prefix_cache import PrefixCache
from onnxlowrank.errors import NotFiniteError
from onnxlowrank.graph.probe import POSITIONS, Probe, add_probes, unused_ending
from onnxlowrank.inputs.feeds import Inputs

RNG = np.random.default_rng(0)
WEIGHT = normal(RNG, 4, 4, 3, 3)


def network(given: str, middle: str, out: str):
    """Return given -> Conv -> middle -> Conv -> out."""
    model = parse(
        """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            y = Conv <pads = [1, 1, 1, 1]> (a, w)
        }""",
        w=WEIGHT,
    )
    new = {"x": given, "a": middle, "y": out}
    for node in model.graph.node:
        node.input[0], node.output[0] = new[node.input[0]], new[node.output[0]]
    model.graph.input[0].name, model.graph.output[0].name = given, out
    return model


@pytest.mark.parametrize(
    "names",
    [
        (POSITIONS, "a", "y"),
        ("x", POSITIONS, "y"),
        ("x", "a", POSITIONS),
        (POSITIONS, f"{POSITIONS}_1", "0::onnxlowrank"),
        ("onnxlowrank_probe/Reshape", "onnxlowrank_probe/Reshape:0", "onnxlowrank_probe/constant"),
    ],
)
def test_the_same_is_sampled_whatever_tensors_are_called(names):
    values = normal(RNG, 3, 1, 4, 6, 6)
    found = []
    for given, middle, out in (("x", "a", "y"), names):
        inputs = Inputs(lambda index, given=given: {given: values[index]}, 3, 1, "rows")
        model = network(given, middle, out)
        ending = unused_ending(model, "::onnxlowrank")
        cache = PrefixCache(model, [], inputs, 5)
        probes = [Probe(f"0{ending}", middle, False), Probe(f"1{ending}", out, False)]
        cache.sample({}, probes[:1], middle, lambda amount: None)
        again = cache.sample({}, probes[1:], out, lambda amount: None)
        rows = list(sample(model, probes, inputs, 5, lambda amount: None))
        for one, other in zip(rows, again, strict=True):
            np.testing.assert_allclose(one[f"1{ending}"], other[f"1{ending}"], rtol=1e-5, atol=1e-6)
        found.append([list(row.values()) for row in rows])
    np.testing.assert_array_equal(found[0], found[1])


def test_unused_endings():
    model = network("x", "a::end", "y::end_")
    assert unused_ending(model, "::end") == "::end__"
    assert unused_ending(model, "::other") == "::other"


def test_what_is_not_finite_is_told_in_names_of_the_network():
    model = network("x", "a", "y")
    bad = [normal(RNG, 1, 4, 6, 6) for _ in range(3)]
    bad[2] = np.full_like(bad[2], 3e38)
    inputs = Inputs(lambda index: {"x": bad[index]}, 3, 1, "some rows")
    says = r"^tensor 'y' \(of the Conv node 'n_y'\) of the network is not finite on input 2 of some rows; give inputs"
    with pytest.raises(NotFiniteError, match=says):
        list(run_probes(add_probes(model, [Probe("p::response", "y", False)]), inputs, 0, lambda amount: None))
    assert add_probes(model, [Probe("p", "x", False)]).graph.output[0].doc_string == "tensor 'x'"

"""Networks that draw random numbers: they are fitted at equal numbers, and what is reported tells noise from change."""

import json

import numpy as np
import onnxruntime
import pytest
from helpers.models import normal, parse

from onnxlowrank import optimize
from onnxlowrank.graph.chance import random_nodes, with_seeds

RANKS = {"n_a": (8,), "n_c": (8,)}


def low_rank(rng, maps, of, rank):
    weight = (normal(rng, maps, rank) @ normal(rng, rank, of * 9)) / (rank * of * 9) ** 0.5
    return weight.reshape(maps, of, 3, 3)


def noisy():
    """Return Conv, + noise larger than its response, Conv: both kernels of rank 8, so that nothing needs to be lost."""
    rng = np.random.default_rng(3)
    weights = {"w1": low_rank(rng, 24, 3, 8), "w2": low_rank(rng, 24, 24, 8)}
    return parse(
        """g (float[N, 3, 12, 12] x) => (float[N, 24, 12, 12] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1)
            r = RandomNormalLike <scale = 3.0> (a)
            b = Add (a, r)
            c = Conv <pads = [1, 1, 1, 1]> (b, w2)
            y = Relu (c)
        }""",
        **weights,
    )


def outputs(model, feeds):
    """Return the outputs of a network for feed after feed, at random numbers that are the same in each session."""
    seeded = with_seeds(model, 7).SerializeToString()
    session = onnxruntime.InferenceSession(seeded, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


@pytest.fixture(scope="module")
def optimised():
    model = noisy()
    feeds = [{"x": normal(np.random.default_rng(i), 2, 3, 12, 12)} for i in range(24)]
    how = {"target": "macs", "speedup": 1.5, "passes": ["channel"], "ranks": RANKS, "calibration": feeds}
    return model, feeds, [optimize(model, **how) for _ in range(2)]


def test_layers_are_fitted_at_the_random_numbers_that_gave_the_responses(optimised):
    model, feeds, (result, _) = optimised
    assert [layer.method for layer in result.layers] == ["channel", "channel"]
    before, after = outputs(model, feeds), outputs(result.model, feeds)
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)


def test_what_is_written_draws_as_the_original_did_and_repeats(optimised):
    model, _, (one, other) = optimised
    had, has = ([(node.name, *node.attribute) for node in random_nodes(of)] for of in (model, one.model))
    assert had == has
    assert one.model.SerializeToString(deterministic=True) == other.model.SerializeToString(deterministic=True)
    assert one.agreement == other.agreement


def test_the_report_holds_the_noise(optimised):
    *_, (result, _) = optimised
    agreement = result.agreement
    assert agreement.noise.relative_error > 0.5
    assert agreement.relative_error == pytest.approx(agreement.noise.relative_error, rel=0.05)
    assert not [note for note in result.notes if "changed a lot" in note]
    assert json.loads(json.dumps(result.to_dict()))["agreement"]["noise"]["relative_error"] > 0.5

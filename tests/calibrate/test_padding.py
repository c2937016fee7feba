"""What an attention mask hides is in no statistic and no fit."""

import numpy as np
import pytest
from helpers.models import normal, parse

from onnxlowrank.calibrate.capture import RowStore, positions_per_input, sample
from onnxlowrank.calibrate.padding import Padding
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics, place_probe
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.passes import load_passes
from onnxlowrank.passes.base import RESPONSE, Candidate
from onnxlowrank.progress import Silent

RNG = np.random.default_rng(2)
WIDTH, OUT = 6, 8
MODEL = parse(
    """g (float[N, T, 6] x, int64[N, T] attention_mask) => (float[N, T, 8] y, float[N, 8] z, int64[N, T] m) {
        y = MatMul (x, w)
        p = ReduceMax <axes = [1], keepdims = 0> (x)
        z = MatMul (p, v)
        m = Identity (attention_mask)
    }""",
    w=normal(RNG, WIDTH, OUT),
    v=normal(RNG, WIDTH, OUT),
)


def inputs_of(lengths, hidden=100.0, name="attention_mask", count=5, batch=3):
    """Return inputs whose padding has values unlike all others."""
    rng = np.random.default_rng(1)
    feeds = []
    for index in range(count):
        size = lengths[index % len(lengths)]
        mask = (np.arange(size) < rng.integers(1, size + 1, (batch, 1))).astype(np.int64)
        x = np.where(mask[..., None] == 1, normal(rng, batch, size, WIDTH), np.float32(hidden))
        feeds.append({"x": x.astype(np.float32), name: mask})
    return Inputs(lambda index: feeds[index], count, batch, "padded rows")


def calibration(inputs, store):
    layers = with_shapes(MODEL, find_layers(MODEL), inputs)
    (method,) = load_passes(["fully_connected"])
    return Calibration(MODEL, layers, {layer.name: {method.name: method} for layer in layers}, inputs, store)


def seen_rows(inputs):
    return np.concatenate([feeds["x"][feeds["attention_mask"] == 1] for feeds in inputs])


@pytest.mark.parametrize("lengths", [(7,), (7, 4, 9), (1, 3)])
def test_statistics_are_those_of_what_is_seen(lengths):
    inputs = inputs_of(lengths)
    weight = find_layers(MODEL)[0].weight
    with RowStore() as store:
        found = collect_statistics(calibration(inputs, store), Silent())
        responses = seen_rows(inputs) @ weight.T
        moments = found["n_y"].moments[RESPONSE]
        np.testing.assert_allclose(moments.mean, responses.mean(axis=0), atol=1e-5)
        rows = store.read("n_y")
        assert sorted(map(tuple, np.round(rows, 3))) == sorted(map(tuple, np.round(responses, 3)))
        assert len(store.read("n_z")) == 15  # one row a sample: nothing of it is padding


@pytest.mark.parametrize("share", [1, 2, 3])
def test_the_rows_left_out_are_those_the_graph_samples(share, monkeypatch):
    monkeypatch.setattr("onnxlowrank.calibrate.capture.ROWS_PER_LAYER", 15 * 11)  # fewer than positions: by chance
    inputs = inputs_of((40,))
    assert positions_per_input(inputs) == 11
    layer = with_shapes(MODEL, find_layers(MODEL), inputs)[0]
    padding = Padding(inputs, 9)
    probe = place_probe("rows", "x", layer)
    probe = type(probe)(**{**vars(probe), "share": share})
    for index, rows in enumerate(sample(MODEL, [probe], inputs, 9, lambda amount: None)):
        all_rows = rows["rows"]
        kept = padding.without(all_rows, index, share)
        is_padding = (all_rows == 100).all(axis=1)
        assert is_padding.any()
        np.testing.assert_array_equal(kept, all_rows[~is_padding])


def test_fits_are_on_what_is_seen():
    chains = []
    for hidden in (100.0, -3.0):
        inputs = inputs_of((12,), hidden)
        with RowStore() as store:
            about = calibration(inputs, store)
            drafts = Drafts(about.applicable, collect_statistics(about, Silent()))
            plan = {layer.name: Candidate(layer.name, "fully_connected", (3,), 0, 0, 0.9) for layer in about.layers}
            chains.append(Fitter(about, drafts).fit(plan, Silent())["n_y"])
    for one, other in zip(*(chain.steps for chain in chains), strict=True):
        np.testing.assert_array_equal(one.weight, other.weight)


@pytest.mark.parametrize(
    ("name", "values", "is_mask"),
    [
        ("attention_mask", [[1, 1, 0]], True),
        ("input_Mask", [[1.0, 0.0]], True),
        ("token_type_ids", [[0, 1, 1]], False),
        ("mask", [[0, 5]], False),
        ("mask", [[[0, 1]]], False),
    ],
)
def test_what_is_a_mask(name, values, is_mask):
    inputs = Inputs(lambda index: {name: np.array(values)}, 1, 1, "one")
    assert Padding(inputs, 0).mask == (name if is_mask else None)


def test_an_input_that_is_all_padding_is_taken_whole():
    inputs = Inputs(lambda index: {"mask": np.zeros((1, 3), int)}, 1, 1, "one")
    rows = normal(RNG, 3, 2)
    assert Padding(inputs, 0).without(rows, 0, 1) is rows

"""Fully connected layers of encoders, with padding, other sequence lengths, and matrices on the left."""

import numpy as np
import pytest
from helpers.encoder import encoder, sentences
from helpers.models import normal, parse, run
from helpers.stopwatch import no_stopwatch

from onnxlowrank import optimize

RNG = np.random.default_rng(4)


def each(feeds):
    """Return the samples of feeds one by one."""
    first = next(iter(feeds.values()))
    return [{name: values[i : i + 1] for name, values in feeds.items()} for i in range(len(first))]


def relative_error(before, after, feeds):
    one, other = (run(model, **feeds)[0] for model in (before, after))
    return np.linalg.norm(other - one) / np.linalg.norm(one)


@pytest.fixture(scope="module", autouse=True)
def no_time():
    with pytest.MonkeyPatch.context() as patch:
        no_stopwatch(patch, block=8)
        yield


@pytest.fixture(scope="module")
def optimised(no_time):
    model = encoder(layers=1)
    macs = 24 * (12 * 64 * 64 + 2 * 24 * 64) + 64 * 64 + 64 * 5  # of weights, of attention, of the head
    calibration = each(sentences(64))
    return model, macs, optimize(model, max_macs=0.6 * macs, calibration=calibration, selection="energy")


def test_an_encoder_through_the_whole_pipeline(optimised):
    model, macs, result = optimised
    assert result.before.macs == macs
    assert result.reached, result.achieved / macs
    by_name = {layer.name: layer for layer in result.layers}
    rewritten = {name for name, layer in by_name.items() if layer.method == "fully_connected"}
    assert rewritten >= {"n_u0_m", "n_d0_m", "n_o0_m"}
    assert by_name["n_a0_p"].kept_because == "both operands are computed"
    assert relative_error(model, result.model, sentences(40, seed=9)) < 0.05


@pytest.mark.parametrize("length", [5, 40, 64])
def test_other_sequence_lengths(optimised, length):
    """Short and long sentences lose about what those of the calibration lose."""
    model, _, result = optimised
    assert relative_error(model, result.model, sentences(40, length, seed=9)) < 0.08


def test_padding_changes_nothing_of_the_fit():
    """Longer feeds with more padding give the same network: the padding is in no statistic."""
    model, short = encoder(layers=1), sentences(48, 16)
    long = {name: np.pad(values, ((0, 0), (0, 40))) for name, values in short.items()}
    feeds = sentences(40, seed=9)
    errors = []
    for given in (short, long):
        ranks = {f"n_{one}0_m": (8,) for one in "qkvoud"}
        result = optimize(model, max_macs=1, calibration=each(given), ranks=ranks)
        errors.append(relative_error(model, result.model, feeds))
    assert errors[1] == pytest.approx(errors[0], rel=0.1)


@pytest.mark.parametrize("kind", ["left", "columns", "stack of one"])
def test_matrices_of_other_layouts_through_the_whole_pipeline(kind):
    weight = (normal(RNG, 48, 4) @ normal(RNG, 4, 40) / 8).astype("f")
    lines = {
        "left": "g (float[N, 40, T] x) => (float[N, 48, T] y) { m = MatMul (w, x)  a = Add (m, b)  y = Relu (a) }",
        "columns": "g (float[40, N] x) => (float[N, 48] y) { m = Gemm <transA = 1> (x, w, b)  y = Relu (m) }",
        "stack of one": "g (float[N, T, 40] x) => (float[N, T, 48] y) "
        "{ m = MatMul (x, w)  a = Add (m, b)  y = Relu (a) }",
    }[kind]
    constants = {
        "left": {"w": weight, "b": normal(RNG, 48, 1)},
        "columns": {"w": weight.T.copy(), "b": normal(RNG, 48)},
        "stack of one": {"w": weight.T[None].copy(), "b": normal(RNG, 1, 1, 48)},
    }[kind]
    model = parse(lines, **constants)
    shape = {"left": (1, 40, 12), "columns": (40, 16), "stack of one": (1, 12, 40)}[kind]
    feeds = [{"x": normal(RNG, *shape)} for _ in range(24)]
    result = optimize(model, max_macs=1, calibration=feeds, ranks={"n_m": (8,)})
    (layer,) = result.layers
    assert (layer.method, layer.setting) == ("fully_connected", (8,))
    assert layer.macs[1] / layer.macs[0] == pytest.approx(8 * 88 / (40 * 48), rel=2e-3)
    assert relative_error(model, result.model, {"x": normal(RNG, *shape)}) < 1e-3

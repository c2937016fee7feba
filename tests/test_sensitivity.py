"""Sensitivities against closed forms: linear networks, where the error of the output is known."""

import numpy as np
import pytest
from graph_models import conv_model, normal, parse

from onnxlowrank.calibrate.capture import Spool
from onnxlowrank.calibrate.feeds import Inputs
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.choose import offer
from onnxlowrank.decompose.moments import Moments
from onnxlowrank.drafts import Drafts
from onnxlowrank.evaluate import compare_outputs
from onnxlowrank.fit import Calibration, Fitter, collect_statistics
from onnxlowrank.graph.layers import find_layers
from onnxlowrank.graph.probe import expose
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.passes import load_passes
from onnxlowrank.passes.base import KEEP, RESPONSE, Candidate, Statistics
from onnxlowrank.progress import Silent
from onnxlowrank.runtime import all_threads, open_session
from onnxlowrank.sensitivity import ENERGIES, Sensitivity, fit_sensitivity, measure_sensitivities, projected

RNG = np.random.default_rng(11)
ROWS = (normal(RNG, 40, 6) @ normal(RNG, 6, 6) + normal(RNG, 6)).astype(np.float32)
IMAGES = normal(RNG, 5, 4, 7, 6)


def inputs_of(values):
    return Inputs(lambda index: {"x": values[index : index + 1]}, len(values), 1, "test rows")


def layers_of(model, values):
    return with_shapes(model, find_layers(model), inputs_of(values))


def responses(model, layer, values):
    """Return the response ``[n, F]`` of a layer at every position."""
    (found,) = open_session(expose(model, [layer.output]), all_threads()).run([layer.output], {"x": values})
    channels_last = np.moveaxis(found, 1, -1) if layer.is_conv else found
    return channels_last.reshape(-1, layer.outputs)


def moments_of(model, layer, values):
    moments = Moments(layer.outputs)
    moments.add(responses(model, layer, values))
    return moments


def measured(model, values, progress=None):
    layers = layers_of(model, values)
    statistics = {layer.name: Statistics({RESPONSE: moments_of(model, layer, values)}) for layer in layers}
    with Spool() as spool:
        about = Calibration(model, layers, {layer.name: {} for layer in layers}, inputs_of(values), spool)
        some = {layer.name: [Candidate(layer.name, "channel", (1,), 1, 1, 0.5)] for layer in layers}
        return measure_sensitivities(about, Drafts({}, statistics), some, progress or Silent())


LAYERS = {
    "dense": (conv_model(normal(RNG, 8, 4, 3, 3), normal(RNG, 8), strides=[2, 1], pads=[1, 0, 1, 0]), IMAGES),
    "no bias": (conv_model(normal(RNG, 8, 4, 1, 1)), IMAGES),
    "grouped": (conv_model(normal(RNG, 6, 2, 3, 3), normal(RNG, 6), group=2, dilations=[2, 1]), IMAGES),
    "depthwise": (conv_model(normal(RNG, 4, 1, 3, 3), group=4), IMAGES),
    "1-D": (conv_model(normal(RNG, 5, 4, 3), normal(RNG, 5)), IMAGES[..., 0]),
    "one map": (conv_model(normal(RNG, 1, 4, 3, 3), normal(RNG, 1)), IMAGES),
    "Gemm": (
        parse(
            "g (float[N, 6] x) => (float[N, 5] y) { y = Gemm <transB = 1, alpha = 2.0> (x, w, b) }",
            w=normal(RNG, 5, 6),
            b=normal(RNG, 5),
        ),
        ROWS,
    ),
    "MatMul": (
        parse(
            "g (float[N, 6] x) => (float[N, 5] y) { m = MatMul (x, w) y = Add (m, b) }",
            w=normal(RNG, 6, 5),
            b=normal(RNG, 5),
        ),
        ROWS,
    ),
}


@pytest.mark.parametrize("energy", [0.99, 0.9, 0.3])
@pytest.mark.parametrize("name", LAYERS)
def test_exactly_the_energy_asked_for_is_kept_and_the_mean(name, energy):
    model, values = LAYERS[name]
    (layer,) = layers_of(model, values)
    before = responses(model, layer, values).astype(np.float64)
    chain = projected(layer, moments_of(model, layer, values), energy)
    after = responses(rewrite(model, [layer], {layer.name: chain}), layer, values)
    lost = ((after - before) ** 2).sum() / ((before - before.mean(axis=0)) ** 2).sum()
    assert lost == pytest.approx(1 - energy, rel=0.05)
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=1e-4)


def test_a_layer_that_varies_nowhere_stays_what_it_is():
    model = conv_model(np.zeros((3, 4, 1, 1), np.float32), normal(RNG, 3))
    (layer,) = layers_of(model, IMAGES)
    chain = projected(layer, moments_of(model, layer, IMAGES), 0.9)
    np.testing.assert_allclose(chain.bias, layer.bias, rtol=1e-6)
    assert not chain.steps[0].weight.any()


def test_a_linear_network_of_one_output():
    model = parse("g (float[N, 6] x) => (float[N, 1] y) { y = Gemm (x, w, b) }", w=normal(RNG, 6, 1), b=normal(RNG, 1))
    (sensitivity,) = measured(model, ROWS).values()
    outputs = responses(model, layers_of(model, ROWS)[0], ROWS).astype(np.float64)
    assert sensitivity.exponent == pytest.approx(1, abs=1e-3)
    assert sensitivity.scale == pytest.approx(outputs.var() / (outputs**2).mean(), rel=0.05)


def test_what_is_scaled_out_is_hardly_sensitive():
    body = """g (float[N, 6] x) => (float[N, 1, 4] z) {
        a = MatMul (x, u) b = MatMul (x, v) c = Mul (b, tiny) s = Add (a, c)
        one = Constant <value_ints = [1]> () z = Unsqueeze (s, one) }"""
    model = parse(body, u=normal(RNG, 6, 4), v=normal(RNG, 6, 4), tiny=np.float32(1e-3))
    large, small = (one.loss(0.9) for one in measured(model, ROWS).values())
    assert large > 1e-2
    assert small == pytest.approx(1e-6 * large, rel=10)


def test_classes_are_compared_by_their_divergence():
    """The power law may miss the two measured points, where its exponent is bounded, but not their geometric mean."""
    body = "g (float[N, 6] x) => (float[N, 4] y) { h = MatMul (x, u) r = Relu (h) y = MatMul (r, v) }"
    model = parse(body, u=normal(RNG, 6, 5), v=normal(RNG, 5, 4))
    layers = layers_of(model, ROWS)
    for layer in layers:
        found = measured(model, ROWS)[layer.name]
        ratios = []
        for energy in ENERGIES:
            changed = rewrite(model, layers, {layer.name: projected(layer, moments_of(model, layer, ROWS), energy)})
            agreement = compare_outputs(model, changed, inputs_of(ROWS), lambda amount: None)
            ratios.append(found.loss(energy) / agreement.divergence)
        assert np.prod(ratios) == pytest.approx(1, abs=0.1)


def test_every_output_of_real_numbers_counts():
    body = """g (float[N, 6] x) => (float[1, N, 4] y, float[N, 4] z, int64[N] k) {
        m = MatMul (x, w) zero = Constant <value_ints = [0]> () y = Unsqueeze (m, zero) z = Mul (m, m)
        k = ArgMax <axis = 1, keepdims = 0> (m) }"""
    model = parse(body, w=normal(RNG, 6, 4))
    (layer,) = layers = layers_of(model, ROWS)
    (found,) = measured(model, ROWS).values()
    changed = rewrite(model, layers, {layer.name: projected(layer, moments_of(model, layer, ROWS), 0.9)})
    agreement = compare_outputs(model, changed, inputs_of(ROWS), lambda amount: None)
    assert found.loss(0.9) == pytest.approx(agreement.relative_error**2, rel=0.05)


def test_losses_of_many_energies():
    sensitivity = Sensitivity(3.0, 1.5)
    energies = np.linspace(0.5, 1, 20)
    losses = [sensitivity.loss(float(energy)) for energy in energies]
    np.testing.assert_allclose(losses, 3 * (1 - energies) ** 1.5)
    assert (np.diff(losses) < 0).all()
    assert sensitivity.loss(1.0) == 0


@pytest.mark.parametrize(("scale", "exponent"), [(3.0, 1.1), (1e-4, 1.4)])
def test_power_laws_are_found(scale, exponent):
    found = fit_sensitivity(ENERGIES, [scale * (1 - energy) ** exponent for energy in ENERGIES])
    assert (found.scale, found.exponent) == pytest.approx((scale, exponent))


def test_exponents_are_sensible():
    assert fit_sensitivity((0.98, 0.9), (0.1, 0.1)).exponent == 1
    assert fit_sensitivity((0.98, 0.9), (0.0, 1.0)).exponent == 1.5


@pytest.mark.parametrize("energies", [(0.9,), (0.9, 0.91)])
def test_energies_that_do_not_tell_the_exponent(energies):
    found = fit_sensitivity(energies, [2e-3] * len(energies))
    assert found.exponent == 1
    assert found.loss(0.905) == pytest.approx(2e-3, rel=0.1)


@pytest.mark.parametrize("losses", [(0, 0), (-1e-9, 0), (float("nan"), 0.1), (float("inf"), float("inf"))])
def test_losses_are_positive_and_finite_whatever_was_measured(losses):
    loss = fit_sensitivity(ENERGIES, losses).loss(0.9)
    assert 0 < loss < np.inf


def test_progress_ends_at_its_total():
    class Counting:
        def stage(self, title, total):
            assert title == "sensitivity"
            self.left = total
            return self.advance

        def advance(self, amount):
            self.left -= amount

    progress = Counting()
    measured(LAYERS["Gemm"][0], ROWS, progress)
    assert progress.left == 0


def test_drafts_stand_for_what_the_fit_makes_of_them():
    """The loss that is predicted for what a draft keeps is about that of its fitted chain."""
    model = conv_model(normal(RNG, 16, 16, 3, 3), normal(RNG, 16), pads=[1, 1, 1, 1])
    values = normal(RNG, 30, 16, 12, 12)
    (layer,) = layers_of(model, values)
    passes = {one.name: one for one in load_passes(["channel", "spatial", "cp"])}
    with Spool() as spool:
        about = Calibration(model, [layer], {layer.name: passes}, inputs_of(values), spool)
        drafts = Drafts(about.suited, collect_statistics(about, Silent()))
        offered = offer(layer, drafts, {}, 2)
        found = measure_sensitivities(about, drafts, {layer.name: offered}, Silent())[layer.name]
        near = [one for one in offered if one.method != KEEP and 0.85 < one.energy < 0.97]
        assert near
        for candidate in near[:: max(len(near) // 4, 1)]:
            chains = Fitter(about, drafts).fit({layer.name: candidate}, Silent())
            changed = compare_outputs(model, rewrite(model, [layer], chains), inputs_of(values), lambda amount: None)
            kept = 1 - drafts.lost(layer, candidate)  # what it promises is another matter
            assert 0.4 < found.loss(kept) / changed.relative_error**2 < 2.5

"""Sensitivities against closed forms: linear networks, where the error of the output is known."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from helpers.models import conv_model, normal, parse

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.hold_out import hold_out
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.evaluate.agreement import compare_outputs
from onnxlowrank.evaluate.measures import measures_of
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.probe import expose
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.passes import load_passes
from onnxlowrank.passes.base import KEEP, RESPONSE, Candidate, keep
from onnxlowrank.plan.candidates import layer_candidates
from onnxlowrank.plan.sensitivity import SensitivityLosses
from onnxlowrank.plan.sensitivity_curve import fit_sensitivity_curve
from onnxlowrank.progress import Silent

RNG = np.random.default_rng(11)
FEATURES = 16
ROWS = (normal(RNG, 30, FEATURES) + normal(RNG, FEATURES)).astype(np.float32)
"""No more than the inputs that means are taken over, so that those are exact."""
IMAGES = normal(RNG, 30, 16, 12, 12)


def matrix(outputs=FEATURES):
    """Return a matrix ``[16, outputs]`` whose ranks keep ever more, on inputs of any covariance."""
    left, _, right = np.linalg.svd(normal(RNG, FEATURES, outputs), full_matrices=False)
    return ((left * 0.5 ** np.arange(len(right))) @ right).astype(np.float32)


def inputs_of(values):
    return Inputs(lambda index: {"x": values[index : index + 1]}, len(values), 1, "test rows")


class Prepared:
    """A network with drafts and offers of its layers."""

    def __init__(self, model, values, methods, store, held_out):
        self.model, self.inputs = model, inputs_of(values)
        self.measures = measures_of(model, labelled=True)
        self.layers = with_shapes(model, find_layers(model), self.inputs)
        passes = load_passes(methods)
        applicable = {layer.name: {one.name: one for one in passes if layer.op in one.ops} for layer in self.layers}
        self.about = Calibration(model, self.layers, applicable, self.inputs, store, held_out=held_out)
        self.drafts = Drafts(applicable, collect_statistics(self.about, Silent()))
        self.candidates = {layer.name: layer_candidates(layer, self.drafts, {}, 1) for layer in self.layers}

    def measured(self, progress=None):
        return SensitivityLosses(self.about, self.drafts, self.candidates, self.measures, progress or Silent())

    def change(self, candidate):
        """Return how the outputs change by a candidate's fitted chain."""
        plan = {layer.name: keep(layer) for layer in self.layers} | {candidate.layer: candidate}
        chains = Fitter(self.about, self.drafts).fit(plan, Silent())
        changed = rewrite(self.model, self.layers, chains)
        tensors = [one.tensor for one in self.measures]
        inside = expose(self.model, tensors), expose(changed, tensors)
        return compare_outputs(self.model, changed, self.inputs, lambda amount: None, self.measures, inside)

    def loss(self, candidate):
        """Return what is lost of all outputs by a candidate's fitted chain."""
        return sum(one.loss for one in self.change(candidate).judged)


@contextlib.contextmanager
def prepared(model, values=ROWS, methods=("fully_connected",), held_out=()):
    with RowStore() as store:
        yield Prepared(model, values, methods, store, held_out)


def linear():
    """Return a network of one layer, whose outputs are no classes."""
    body = """g (float[N, 16] x) => (float[N, 1, 16] z) {
        y = MatMul (x, w) one = Constant <value_ints = [1]> () z = Unsqueeze (y, one) }"""
    return parse(body, w=matrix())


def test_a_linear_network():
    """What is lost of the response's variance is lost of the output's."""
    with prepared(linear()) as network:
        (name,) = network.candidates
        sensitivities = network.measured()
        outputs = (ROWS @ network.layers[0].weight.T).astype(np.float64)
        whole = outputs.var(axis=0).sum() / (outputs**2).sum(axis=1).mean()
        for candidate in network.candidates[name][1:]:
            assert sensitivities.of(candidate) == pytest.approx((1 - candidate.energy) * whole, rel=0.05)
        assert sensitivities.of(keep(network.layers[0])) == 0


def test_what_is_scaled_out_is_hardly_sensitive():
    body = """g (float[N, 16] x) => (float[N, 1, 16] z) {
        a = MatMul (x, u) b = MatMul (x, v) c = Mul (b, tiny) s = Add (a, c)
        one = Constant <value_ints = [1]> () z = Unsqueeze (s, one) }"""
    with prepared(parse(body, u=matrix(), v=matrix(), tiny=np.float32(1e-3))) as network:
        large, small = (law.loss(0.1) for law in network.measured().curves.values())
        assert large > 1e-2
        assert small == pytest.approx(1e-6 * large, rel=10)


def test_classes_are_compared_by_their_divergence():
    body = "g (float[N, 16] x) => (float[N, 4] y) { h = MatMul (x, u) r = Relu (h) y = MatMul (r, v) }"
    with prepared(parse(body, u=4 * matrix(), v=matrix(4))) as network:
        (first, _) = network.layers
        candidate = min(network.candidates[first.name][1:], key=lambda one: abs(one.energy - 0.9))
        sensitivities = network.measured()
        sensitivities.refine({first.name: candidate})
        assert 0.4 < sensitivities.of(candidate) / network.change(candidate).divergence < 2.5


def test_a_network_that_is_sure_of_itself_is_judged_as_one_that_is_less():
    """Logits ten times as large only make divergences at a fixed confidence a hundred times as large."""
    body = "g (float[N, 16] x) => (float[N, 4] y) { h = MatMul (x, u) r = Relu (h) y = MatMul (r, v) }"
    u, v = matrix(), matrix(4)
    harms = []
    for scale in (300, 3000):
        with prepared(parse(body, u=u, v=np.float32(scale) * v)) as network:
            harms.append(np.concatenate([law.harm for law in network.measured().curves.values()]))
    np.testing.assert_allclose(harms[1] - harms[0], 2 * np.log(10), atol=0.05)


def test_every_output_of_real_numbers_counts():
    body = """g (float[N, 16] x) => (float[1, N, 16] y, float[N, 16] z, int64[N] k) {
        m = MatMul (x, w) zero = Constant <value_ints = [0]> () y = Unsqueeze (m, zero) z = Mul (m, m)
        k = ArgMax <axis = 1, keepdims = 0> (m) }"""
    with prepared(parse(body, w=matrix())) as network:
        (candidates,) = network.candidates.values()
        candidate = min(candidates[1:], key=lambda one: abs(one.energy - 0.9))
        sensitivities = network.measured()
        assert sensitivities.of(candidate) == pytest.approx(network.loss(candidate), rel=0.25)


def test_drafts_stand_for_what_the_fit_makes_of_them():
    """The loss that is predicted for a candidate is about that of its fitted chain."""
    model = conv_model(normal(RNG, 16, 16, 3, 3), normal(RNG, 16), pads=[1, 1, 1, 1])
    with prepared(model, IMAGES, ["channel", "spatial", "cp"]) as network:
        sensitivities = network.measured()
        (candidates,) = network.candidates.values()
        near = [one for one in candidates if one.method != KEEP and 0.85 < one.energy < 0.97]
        assert near
        for candidate in near[:: max(len(near) // 4, 1)]:
            assert 0.4 < sensitivities.of(candidate) / network.loss(candidate) < 2.5


def test_the_mean_of_a_response_is_restored():
    """As the fit does; so the bias of a draft does not matter."""
    with prepared(cliff()) as network:
        (name,) = network.candidates
        before, draft = network.measured().curves[name], network.drafts.of

        def shifted(layer, candidate):
            made = draft(layer, candidate)
            return replace(made, chain=replace(made.chain, bias=made.chain.bias + np.float32(3)))

        network.drafts.of = shifted
        after = network.measured().curves[name]
        np.testing.assert_allclose(after.harm, before.harm, atol=0.01)


def cliff():
    """Return a network that a small error of its only layer leaves alone: behind it values are cut at ``low``."""
    body = """g (float[N, 16] x) => (float[N, 1, 16] z) { y = MatMul (x, w) r = Relu (y) s = Sub (r, low) t = Relu (s)
        one = Constant <value_ints = [1]> () z = Unsqueeze (t, one) }"""
    return parse(body, w=matrix(), low=np.float32(0.8))


def finest(candidates):
    """Return the candidate that loses least, but not as good as nothing."""
    return max((one for one in candidates if one.energy < 0.9998), key=lambda one: one.energy)


def test_what_a_plan_chooses_is_measured_where_nothing_was():
    with prepared(cliff()) as network:
        ((name, candidates),) = network.candidates.items()
        sensitivities = network.measured()
        chosen = finest(candidates)
        known = sensitivities.curves[name].lost
        assert np.log(1 - chosen.energy) < known.min() - np.log(2)
        assert list(sensitivities.refine({name: chosen})) == [name]
        assert len(sensitivities.curves[name].lost) == len(known) + 1
        lost = 1 - chosen.energy
        assert np.exp(sensitivities.curves[name].lost[0]) == pytest.approx(lost, rel=0.05)
        assert not sensitivities.refine({name: chosen}), "it is measured once"
        assert not sensitivities.refine({name: keep(network.layers[0])})


def test_what_a_draft_loses_in_truth_counts():
    """A pass that promises to lose a tenth of what it does is found out, and its other settings with it."""
    with prepared(parse("g (float[N, 16] x) => (float[N, 16] y) { y = MatMul (x, w) }", w=matrix())) as network:
        ((name, candidates),) = network.candidates.items()
        honest = network.measured()
        boasting = [
            one
            if one.method == KEEP
            else Candidate(name, one.method, one.setting, one.macs, one.parameters, 1 - 0.1 * (1 - one.energy))
            for one in candidates
        ]
        network.drafts.lost = lambda layer, candidate: 10 * (1 - candidate.energy)
        network.candidates = {name: boasting}
        found_out = network.measured()
        for one, other in zip(candidates[1:], boasting[1:], strict=True):
            if other.energy > 0.9998:
                continue  # as good as nothing is lost
            found_out.refine({name: other})
            assert found_out.of(other) == pytest.approx(honest.of(one), rel=0.3)


@pytest.mark.parametrize(("count", "held"), [(2, 0), (3, 1), (30, 10), (3000, 64)])
def test_a_part_of_the_inputs_is_held_out(count, held):
    with prepared(cliff()) as network:
        chosen = hold_out(network.layers, inputs_of(np.zeros((count, 1), np.float32)))
        assert len(set(chosen)) == len(chosen) == held
        assert set(chosen) <= set(range(count))


def test_what_is_lost_is_judged_on_inputs_that_drafts_have_not_seen():
    """What that does to the outputs, on all."""
    held = list(range(0, 30, 3))
    with prepared(linear(), held_out=held) as network:
        ((name, candidates),) = network.candidates.items()
        (layer,) = network.layers
        outputs = (ROWS @ layer.weight.T).astype(np.float64)
        seen = np.delete(outputs, held, axis=0)
        np.testing.assert_allclose(network.drafts.statistics[name].moments[RESPONSE].mean, seen.mean(axis=0), rtol=1e-4)
        assert len(network.about.preactivations.read(name)) == len(ROWS), "fits see all"
        candidate = min(candidates[1:], key=lambda one: abs(one.energy - 0.9))
        network.candidates = {name: [keep(layer), candidate]}
        kernel = network.drafts.of(layer, candidate).chain.dense_kernel().reshape(layer.weight.shape)
        unseen = (ROWS @ kernel.T - outputs)[held].var(axis=0).sum() / outputs[held].var(axis=0).sum()
        harm = outputs.var(axis=0).sum() / (outputs**2).sum(axis=1).mean()
        assert network.measured().of(candidate) == pytest.approx(unseen * harm, rel=0.1)


def test_a_layer_without_a_choice_is_not_measured():
    model = parse("g (float[N, 16] x) => (float[N, 16] y) { y = MatMul (x, w) }", w=matrix())
    with prepared(model) as network:
        ((name, candidates),) = network.candidates.items()
        network.candidates = {name: [candidates[1]]}
        sensitivities = network.measured()
        assert sensitivities.curves == {}
        assert sensitivities.of(candidates[1]) == 0
        assert not sensitivities.refine({name: candidates[1]})


LOST = 0.02, 0.1


@pytest.mark.parametrize(("scale", "exponent"), [(3.0, 1.1), (1e-4, 1.4)])
def test_power_laws_are_found(scale, exponent):
    found = fit_sensitivity_curve(LOST, [scale * lost**exponent for lost in LOST])
    for lost in (0.5, 0.1, 0.05, 0.02, 1e-4):
        assert found.loss(lost) == pytest.approx(scale * lost**exponent)
    assert found.loss(0.0) == 0


def test_measurements_are_met_and_losses_grow():
    lost, losses = (0.1, 0.001, 0.02), (3.0, 1e-4, 0.05)
    found = fit_sensitivity_curve(lost, losses)
    assert [found.loss(one) for one in lost] == pytest.approx(losses)
    assert (np.diff([found.loss(one) for one in np.linspace(0, 0.5, 50).tolist()]) > 0).all()


def test_harm_that_seems_to_shrink_is_levelled():
    found = fit_sensitivity_curve((0.01, 0.1), (0.04, 0.1))
    assert [found.loss(0.01), found.loss(0.1)] == pytest.approx([0.02, 0.2])


def test_beyond_the_measurements_harm_grows_within_reason():
    found = fit_sensitivity_curve((0.02, 0.1), (1e-5, 1.0))
    assert found.loss(0.4) == pytest.approx(4**1.5)
    assert found.loss(0.005) == pytest.approx(1e-5 / 4**1.5)


def test_a_single_measurement_is_in_proportion():
    assert fit_sensitivity_curve((0.1,), (0.2,)).loss(0.05) == pytest.approx(0.1)


@pytest.mark.parametrize("losses", [(0, 0), (-1e-9, 0), (float("nan"), 0.1), (float("inf"), float("inf"))])
def test_losses_are_positive_and_finite_whatever_was_measured(losses):
    assert 0 < fit_sensitivity_curve(LOST, losses).loss(0.1) < np.inf


def test_progress_ends_at_its_total():
    class Counting:
        def stage(self, title, total):
            assert title == "sensitivity"
            self.left = total
            return self.advance

        def advance(self, amount):
            self.left -= amount

    progress = Counting()
    with prepared(cliff()) as network:
        sensitivities = network.measured(progress)
        assert progress.left == 0
        progress.left = None
        ((name, candidates),) = network.candidates.items()
        assert sensitivities.refine({name: finest(candidates)})
        assert progress.left == 0


def test_layers_are_drawn_towards_the_usual_one():
    """Three quarters of the logarithm of what they were found to differ by are left."""
    body = """g (float[N, 16] x) => (float[N, 1, 16] z) {
        a = MatMul (x, u) b = MatMul (x, v) c = Mul (b, tenth) s = Add (a, c)
        one = Constant <value_ints = [1]> () z = Unsqueeze (s, one) }"""
    with prepared(parse(body, u=matrix(), v=matrix(), tenth=np.float32(0.1))) as network:
        sensitivities = network.measured()
        large, small = (law.loss(0.1) for law in sensitivities.curves.values())
        of_large, of_small = (
            sensitivities.of(Candidate(name, "other", (1,), 1, 1, energy=0.9)) for name in sensitivities.curves
        )
        assert of_large / of_small == pytest.approx((large / small) ** 0.75)
        assert of_large * of_small == pytest.approx(large * small, rel=0.2)

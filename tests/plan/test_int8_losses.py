"""What rounding adds to the losses of candidates: a chain that is noisy in int8 is not chosen there."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.models import normal, parse

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.calibrate.statistics import Calibration
from onnxlowrank.evaluate.measures import measures_of
from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import Geometry
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.passes.base import Candidate, keep
from onnxlowrank.plan import layer_sensitivity
from onnxlowrank.plan.counted import plan_by
from onnxlowrank.plan.int8_losses import Int8Losses
from onnxlowrank.plan.knapsack import select_exactly
from onnxlowrank.plan.rounding_loss import rounding_losses
from onnxlowrank.progress import Silent
from onnxlowrank.quantize.int8 import int8_of

FLAT, SAME = Geometry.pointwise(2), Geometry((1, 1), (1, 1, 1, 1), (1, 1))
GAIN = 40.0
"""Of the terms of a depthwise chain that cancel."""


class Float32Losses:
    """All chains lose the same, one that is named a little less."""

    def __init__(self, least):
        self.least, self.refined = least, []

    def of(self, candidate):
        return 0.0 if candidate.method == "keep" else 1e-6 * (0.999 if candidate.method == self.least else 1.0)

    def refine(self, plan):
        self.refined.append(plan)
        return ()


def network(second=1.0):
    """Return Conv-ReLU-Conv-ReLU-Conv, the kernel of the second one a sum of four outer products."""
    rng = np.random.default_rng(2)
    colours, taps, mixing = normal(rng, 4, 8), normal(rng, 4, 3, 3), normal(rng, 8, 4)
    model = parse(
        """g (float[N, 8, 10, 10] x) => (float[N, 4, 10, 10] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba)
            ar = Relu (a)
            b = Conv <pads = [1, 1, 1, 1]> (ar, wb, bb)
            br = Relu (b)
            y = Conv (br, wy)
        }""",
        wa=normal(rng, 8, 8, 3, 3) / 8,
        ba=normal(rng, 8),
        wb=np.einsum("fk,kc,kij->fcij", mixing, colours, taps).astype(np.float32) * np.float32(second),
        bb=normal(rng, 8) * np.float32(second),
        wy=normal(rng, 4, 8, 1, 1),
    )
    return model, (colours, taps, mixing)


def chains(colours, taps, mixing, bias):
    """Return three chains that compute the second layer: a dense one, and depthwise ones whose terms cancel or not."""
    middle = np.einsum("kc,kij->kcij", colours, taps).astype(np.float32)
    dense = Chain((Step("filters", middle, SAME), Step("mix", mixing[..., None, None], FLAT)), bias)

    def depthwise(gain):
        outputs = np.concatenate([(1 + gain) * mixing, -gain * mixing], axis=1)
        return Chain(
            (
                Step("inputs", np.concatenate([colours, colours])[..., None, None], FLAT),
                Step("taps", np.concatenate([taps, taps])[:, None], SAME, 8),
                Step("outputs", outputs[..., None, None], FLAT),
            ),
            bias,
        )

    return {"dense": dense, "cancelling": depthwise(GAIN), "depthwise": depthwise(0.0)}


class Prepared:
    """A network of three layers, what makes it int8, and three candidates of its second layer that cost the same."""

    def __init__(self, store, second=1.0, names=("dense", "cancelling", "depthwise")):
        self.model, factors = network(second)
        x = normal(np.random.default_rng(7), 24, 8, 10, 10)
        self.inputs = Inputs(lambda index: {"x": x[index : index + 1]}, len(x), 1, "random numbers")
        self.layers = with_shapes(self.model, find_layers(self.model), self.inputs)
        self.layer = self.layers[1]
        self.measures = measures_of(self.model)
        self.int8 = int8_of(self.model, self.layers, self.inputs, (), 8, Silent())
        self.about = Calibration(self.model, self.layers, {}, self.inputs, store)
        self.chains = chains(*factors, self.layer.bias)
        drafted = []
        self.drafts = SimpleNamespace(of=lambda layer, one: drafted.append(one) or SimpleNamespace(
            chain=self.chains[one.method]))  # fmt: skip
        self.drafted = drafted
        self.others = {name: Candidate(self.layer.name, name, (8,), self.layer.macs // 2, 100, 0.99) for name in names}
        self.candidates = {one.name: [keep(one)] for one in self.layers}
        self.candidates[self.layer.name] += self.others.values()

    def losses(self, float32=None, progress=None):
        float32 = float32 or Float32Losses("cancelling")
        about = self.about, self.drafts, self.candidates, self.measures
        return Int8Losses(float32, self.int8, *about, progress or Silent())

    def plan(self, losses):
        """Return what is chosen for the second layer where it has to become cheaper."""
        budget = sum(layer.macs for layer in self.layers) - self.layer.macs // 2 + 1
        return plan_by(lambda one: one.macs, self.candidates, budget, select_exactly, losses)[self.layer.name]


@contextlib.contextmanager
def prepared(**how):
    with RowStore() as store:
        yield Prepared(store, **how)


def test_in_int8_the_chain_that_is_not_noisy_is_chosen():
    """All cost the same, and lose the same in float32, but for the noisy one, which loses a little less."""
    with prepared() as case:
        assert case.plan(Float32Losses("cancelling")).method == "cancelling"
        losses = case.losses()
        assert case.plan(losses).method != "cancelling"
        noisy, dense = (losses.of(case.others[name]) for name in ("cancelling", "dense"))
        assert noisy > 10 * dense


def test_what_is_not_chosen_is_not_measured():
    with prepared() as case:
        losses = case.losses()
        assert not case.drafted
        first = losses.of(case.others["dense"])
        chosen = {one.name: keep(one) for one in case.layers} | {case.layer.name: case.others["cancelling"]}
        assert losses.refine(chosen) == {case.layer.name}
        assert [one.method for one in case.drafted] == ["cancelling"]
        assert losses.of(case.others["dense"]) == first
        assert not losses.refine(chosen), "it is measured once"
        assert not losses.refine({one.name: keep(one) for one in case.layers})
        assert len(losses.float32.refined) == 3


def test_what_is_kept_loses_what_rounding_it_does():
    """By onnxruntime's quantizer, which also rounds the response: here that belongs to the layer behind."""
    with prepared() as case:
        kept = case.losses().of(keep(case.layer))
        draft = case.int8.draft({}, lambda chains: case.model, lambda amount: None)
        names = [layer.name for layer in case.layers]
        known = rounding_losses(draft, names, case.measures, case.inputs, lambda amount: None)[case.layer.name]
        assert 0.25 * known < kept < known


def test_settings_between_those_measured_are_as_noisy_as_these():
    with prepared() as case:
        losses, name = case.losses(), case.layer.name
        quiet, loud = (Candidate(name, "depthwise", (rank,), 1, 1, energy) for rank, energy in ((9, 0.999), (3, 0.9)))
        between = Candidate(name, "depthwise", (5,), 1, 1, 0.99)
        plan = {one.name: keep(one) for one in case.layers}
        assert losses.refine(plan | {name: quiet})
        assert not losses.refine(plan | {name: Candidate(name, "depthwise", (8,), 1, 1, 0.998)})
        case.chains["depthwise"] = case.chains["cancelling"]
        assert losses.refine(plan | {name: loud})
        least, middle, most = (losses.of(one) - losses.float32.of(one) for one in (quiet, between, loud))
        assert middle == pytest.approx((least * most) ** 0.5, rel=1e-3)
        assert most > 20 * least


def test_no_chain_is_less_noisy_than_the_layer():
    with prepared() as case:
        losses = case.losses()
        zero = Chain((Step("one", np.zeros((8, 8, 1, 1), np.float32), FLAT),), case.layer.bias)
        case.chains["dense"] = zero
        losses.refine({one.name: keep(one) for one in case.layers} | {case.layer.name: case.others["dense"]})
        assert losses.of(case.others["dense"]) == pytest.approx(losses.of(keep(case.layer)) + 1e-6)


def test_layers_in_float32_have_no_noise():
    with prepared(second=0.0) as case:
        assert case.layer.name in case.int8.reasons
        losses = case.losses()
        assert losses.of(keep(case.layer)) == 0
        assert losses.of(case.others["cancelling"]) == losses.float32.of(case.others["cancelling"])
        assert case.plan(losses).method == "cancelling"
        assert not case.drafted


def test_chains_that_are_not_finite_are_not_measured_again():
    with prepared(names=("dense",)) as case:
        losses = case.losses()
        case.chains["dense"] = Chain((Step("one", np.full((8, 8, 1, 1), np.nan, np.float32), FLAT),))
        assert case.plan(losses).method == "dense"
        assert losses.of(case.others["dense"]) == pytest.approx(losses.of(keep(case.layer)) + 1e-6)


def test_the_network_is_run_once_and_once_for_every_layer(monkeypatch):
    runs = []
    real = layer_sensitivity.outputs_of
    monkeypatch.setattr(layer_sensitivity, "outputs_of", lambda *about: runs.append(about) or real(*about))
    with prepared() as case:
        for layer in case.layers:
            case.candidates[layer.name] = [keep(layer), Candidate(layer.name, "dense", (1,), 1, 1, 0.9)]
        case.losses()
    assert len(runs) == 1 + len(case.layers)
    sizes = [len(model.graph.node) for model, _ in runs[1:]]
    assert sizes == sorted(sizes, reverse=True), "each from its layer on"
    assert len({len(inputs) for _, inputs in runs}) == 1


def test_progress_ends_at_its_total():
    class Counting:
        def __init__(self):
            self.left = {}

        def stage(self, title, total):
            assert title == "sensitivity"
            self.left[len(self.left)] = total
            number = len(self.left) - 1

            def advance(amount):
                self.left[number] -= amount

            return advance

    progress = Counting()
    with prepared() as case:
        losses = case.losses(progress=progress)
        assert case.plan(losses)
        assert len(progress.left) >= 2
        assert not any(progress.left.values())

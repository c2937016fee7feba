"""Sweeps over fitted networks: what they take back, what they are fitted to, and that nothing gets worse."""

from collections.abc import Iterator

import numpy as np
import pytest
from helpers.models import error, normal, parse, run
from onnx import ModelProto

from onnxlowrank.calibrate.capture import RowStore, sample
from onnxlowrank.calibrate.prefix_cache import PrefixCache
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics, place_probe
from onnxlowrank.evaluate.measures import Measure
from onnxlowrank.fit import sweeps
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.fit.sampling import layer_samples
from onnxlowrank.fit.sweeps import Sweeps
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.passes import load_passes
from onnxlowrank.passes.base import draft_of, keep
from onnxlowrank.plan.held_out_loss import HeldOutLoss
from onnxlowrank.progress import Silent

RNG = np.random.default_rng(41)
PASSES = {one.name: one for one in load_passes()}
HELD_OUT = (1, 4, 7)


def images(count: int) -> np.ndarray:
    coarse = RNG.standard_normal((count, 3, 6, 6))
    return (np.kron(coarse, np.ones((2, 2))) + 0.2 * RNG.standard_normal((count, 3, 12, 12))).astype(np.float32)


def network() -> ModelProto:
    """Return four convolutions, the third of them in a residual block."""
    text = """g (float[N, 3, 12, 12] x) => (float[N, 16, 12, 12] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba)  ar = Relu (a)
        b = Conv <pads = [1, 1, 1, 1]> (ar, wb, bb)  br = Relu (b)
        c = Conv <pads = [1, 1, 1, 1]> (br, wc)  s = Add (c, ar)  cr = Relu (s)
        y = Conv <pads = [1, 1, 1, 1]> (cr, wd, bd)
    }"""
    inputs = {"a": 3, "b": 16, "c": 16, "d": 16}
    weights = {f"w{name}": normal(RNG, 16, c, 3, 3) * np.float32((2 / 9 / c) ** 0.5) for name, c in inputs.items()}
    return parse(text, **weights, **{f"b{name}": normal(RNG, 16) * np.float32(0.3) for name in "abd"})


MODEL, FEEDS, NEW = network(), images(40).reshape(10, 4, 3, 12, 12), images(40)


@pytest.fixture(scope="module")
def about() -> Iterator[Calibration]:
    inputs = Inputs(lambda index: {"x": FEEDS[index]}, len(FEEDS), 4, "images")
    layers = with_shapes(MODEL, find_layers(MODEL), inputs)
    willing = {
        layer.name: {one.name: one for one in PASSES.values() if layer.op in one.ops and one.refusal(layer) is None}
        for layer in layers
    }
    with RowStore() as store:
        yield Calibration(MODEL, layers, willing, inputs, store, held_out=HELD_OUT)


@pytest.fixture(scope="module")
def fitter(about: Calibration) -> Fitter:
    return Fitter(about, Drafts(about.applicable, collect_statistics(about, Silent())))


def chains_of(about: Calibration, fitter: Fitter, **settings: tuple[str, tuple[int, ...]]) -> dict[str, Chain]:
    plan = {layer.name: keep(layer) for layer in about.layers}
    for layer in about.layers:
        if layer.output in settings:
            method, setting = settings[layer.output]
            plan[layer.name] = PASSES[method].candidate(layer, setting, 0.9)
    return fitter.fit(plan, Silent())


def judge_of(about: Calibration) -> HeldOutLoss:
    return HeldOutLoss(about, [Measure("y", ("y",), "values")])


def loss(about: Calibration, chains: dict[str, Chain]) -> float:
    """Return the error on inputs that nothing has seen."""
    return error_of(run(rewrite(MODEL, about.layers, chains), x=NEW)[0], run(MODEL, x=NEW)[0])


def error_of(found: np.ndarray, true: np.ndarray) -> float:
    return float(((found - true) ** 2).sum() / ((true - true.mean()) ** 2).sum())


def test_kept_layers_take_back_what_chains_before_them_lose(about, fitter):
    chains = chains_of(about, fitter, a=("spatial", (3,)), b=("channel", (6,)))
    tuned = Sweeps(about, judge_of(about)).run(chains, Silent())
    assert tuned.keys() == {"n_a", "n_b", "n_c", "n_y"}
    for name, chain in tuned.items():
        before = chains.get(name)
        assert [step.weight.shape for step in chain.steps] == (
            [(16, 16, 3, 3)] if before is None else [step.weight.shape for step in before.steps]
        )
        assert all(step.weight.dtype == np.float32 for step in chain.steps)
    assert loss(about, tuned) < 0.9 * loss(about, chains)


def test_layers_before_the_first_chain_and_excluded_ones_stay(about, fitter):
    chains = chains_of(about, fitter, c=("channel", (5,)))
    tuned = Sweeps(about, judge_of(about)).run(chains, Silent())
    assert tuned.keys() <= {"n_c", "n_y"}
    without = Calibration(
        MODEL, about.layers, {"n_c": about.applicable["n_c"]}, about.inputs, about.preactivations, held_out=HELD_OUT
    )
    assert Sweeps(without, judge_of(about)).run(chains, Silent()).keys() == {"n_c"}


def test_what_is_worse_on_inputs_held_out_is_not_taken(about, fitter):
    chains = chains_of(about, fitter, a=("spatial", (3,)))
    judged = []

    def worse(found):
        judged.append(found)
        return float(len(judged))

    tuned = Sweeps(about, worse).run(chains, Silent())
    assert tuned == chains
    assert len(judged) == 3  # what there was, all of the way and half of it
    half, whole = judged[2]["n_b"], judged[1]["n_b"]
    layer = about.layers[1]
    assert np.allclose(half.steps[0].weight, (layer.weight + whole.steps[0].weight) / 2, atol=1e-6)
    assert np.allclose(half.bias, (layer.bias + whole.bias) / 2, atol=1e-6)


def test_sweeps_go_on_as_long_as_they_help(about, fitter):
    chains = chains_of(about, fitter, a=("spatial", (3,)), b=("spatial", (6,)))
    judge, losses = judge_of(about), []

    def watched(found):
        losses.append(judge(found))
        return losses[-1]

    tuned = Sweeps(about, watched).run(chains, Silent())
    assert judge(tuned) == min(losses) < losses[0]


def test_a_layer_that_would_only_fit_noise_stays(about, fitter, monkeypatch):
    """Its error on inputs held out decides, not that on those it is fitted to."""
    chains = chains_of(about, fitter, a=("spatial", (3,)))

    def noise(chain, samples, nonlinear, ridge):
        step = chain.steps[-1]
        worse = type(step)(step.name, step.weight + normal(RNG, *step.weight.shape), step.geometry, step.group)
        return Chain((*chain.steps[:-1], worse), np.zeros(len(step.given), np.float32))

    monkeypatch.setattr(sweeps, "refit_last", noise)
    judged = []
    Sweeps(about, lambda found: judged.append(found) or 0.0).run(chains, Silent())
    assert all(found == chains for found in judged)


def test_nothing_held_out_or_rewritten_nothing_tuned(about, fitter):
    chains = chains_of(about, fitter, a=("spatial", (3,)))
    everything = Calibration(MODEL, about.layers, about.applicable, about.inputs, about.preactivations)
    assert Sweeps(everything, judge_of(about)).run(chains, Silent()) == chains
    assert Sweeps(about, judge_of(about)).run({}, Silent()) == {}


SETTINGS = {
    "channel": (5,), "channel_prune": (7,), "spatial": (5,), "asymmetric3d": (6, 5), "svd": (7, 6), "cp": (6,),
    "pruned_asymmetric3d": (9, 6, 5),
    "outer_product": (7,), "bicluster_svd": (2, 2, 3, 4), "bicluster_outer": (2, 2, 3), "monochromatic": (4,),
}  # fmt: skip


@pytest.mark.parametrize("method", sorted(SETTINGS))
@pytest.mark.parametrize("name", ["n_b", "n_c"])
def test_errors_are_those_of_what_the_network_computes(about, fitter, method, name):
    """Whatever the last link is, groups and orders of maps among them, and with a shortcut behind it."""
    layer = next(one for one in about.layers if one.name == name)
    (chain,) = chains_of(about, fitter, **{layer.output: (method, SETTINGS[method])}).values()
    cache = PrefixCache(MODEL, about.layers, about.inputs, about.seed)
    features = draft_of(layer, chain).features
    samples, counts = layer_samples(about, layer, features, {}, cache, lambda amount: None)
    rewritten = rewrite(MODEL, about.layers, {name: chain})
    probe = place_probe("seen", layer.preactivation, layer)
    seen = [rows["seen"] for rows in sample(rewritten, [probe], about.inputs, about.seed, lambda amount: None)]
    assert counts == [len(one) for one in seen]
    wanted = np.maximum(samples.target, 0) - np.maximum(np.concatenate(seen), 0)
    assert sweeps._error(chain, samples) == pytest.approx(float((wanted.astype(np.float64) ** 2).sum()), rel=1e-3)
    assert error(np.maximum(np.concatenate(seen), 0), np.maximum(samples.target, 0)) > 1e-3

"""Branches computed before their Ifs and folded again: the same answers whichever is taken."""

import numpy as np
import onnx
import pytest
from helpers.models import error, normal, parse, run
from helpers.stopwatch import no_stopwatch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlowrank import analyze, compare, optimize
from onnxlowrank.calibrate.kept_nodes import kept_nodes
from onnxlowrank.calibrate.ready import unfold_taken_branches
from onnxlowrank.errors import UnsupportedModelError
from onnxlowrank.graph.branches import ELSE, THEN, fold_branches, unfold_branches, unfolded_branches
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.plan.manual_ranks import ManualRank

SHAPE = "float[N, 16, 6, 6]"


def low(rng, *shape):
    inner = int(np.prod(shape[1:]))
    return (normal(rng, shape[0], 4) @ normal(rng, 4, inner) / np.float32(np.sqrt(2 * inner))).reshape(shape)


def network(seed=0, nested=False):
    """Return a network of two branches, which use the same names and share a weight and what is computed before."""
    rng = np.random.default_rng(seed)
    last = "p = Conv <pads = [1, 1, 1, 1]> (r, w3)"
    if nested:
        last = f"""
            deep = ReduceMax <keepdims = 0> (r)
            much = Greater (deep, zero)
            p = If (much) <
                then_branch = more () => ({SHAPE} pp) {{ t2 = Conv <pads = [1, 1, 1, 1]> (r, w3)  pp = Relu (t2) }},
                else_branch = less () => ({SHAPE} qq) {{ qq = Neg (r) }}
            >"""
    return parse(
        f"""g ({SHAPE} x, bool yes) => ({SHAPE} y, {SHAPE} z) {{
            s = Sigmoid (x)
            once = Abs (s)
            y, z = If (yes) <
                then_branch = first () => ({SHAPE} p, {SHAPE} also) {{
                    c = Conv <pads = [1, 1, 1, 1]> (once, w1)
                    r = Relu (c)
                    {last}
                    also = Identity (s)
                }},
                else_branch = second () => ({SHAPE} q, {SHAPE} too) {{
                    c = Conv <pads = [1, 1, 1, 1]> (s, w2)
                    q = Relu (c)
                    too = Conv <pads = [1, 1, 1, 1]> (c, w3)
                }}
            >
        }}""",
        w1=low(rng, 16, 16, 3, 3),
        w2=normal(rng, 16, 16, 3, 3) / 12,
        w3=low(rng, 16, 16, 3, 3),
        zero=np.float32(0),
    )


def samples(count, yes, seed=1):
    rng = np.random.default_rng(seed)
    return [{"x": normal(rng, 1, 16, 6, 6), "yes": np.array(yes)} for _ in range(count)]


def inputs_of(feeds):
    return Inputs(feeds.__getitem__, len(feeds), 1, "samples")


def chooser(model):
    return next(node for node in model.graph.node if node.op_type == "If")


def branch(model, name):
    return next(item.g for item in chooser(model).attribute if item.name == name)


def same(one, other, tolerance=1e-6):
    return all(error(a, b) <= tolerance for a, b in zip(one, other, strict=True))


@given(nested=st.booleans(), first=st.sampled_from([THEN, ELSE]), seed=st.integers(0, 99), batch=st.integers(1, 3))
@settings(deadline=None, max_examples=20)
def test_all_three_compute_the_same_whichever_branch_is_taken(nested, first, seed, batch):
    model = normalise(network(seed, nested))
    taken = {chooser(model).name: first}
    unfolded = unfold_branches(model, taken)
    assert unfolded_branches(unfolded) == taken
    assert unfold_branches(unfolded, taken) == unfolded
    folded = fold_branches(unfolded)
    assert not unfolded_branches(folded)
    assert len(folded.graph.node) < len(model.graph.node) + 1
    for made in (unfolded, folded):
        onnx.checker.check_model(made, full_check=True)
        for yes in (True, False):
            given = {"x": normal(np.random.default_rng(seed), batch, 16, 6, 6), "yes": np.array(yes)}
            assert same(run(made, **given), run(model, **given))


def test_only_what_nothing_else_reads_goes_inside():
    model = normalise(network())
    folded = fold_branches(unfold_branches(model, {chooser(model).name: THEN}))
    assert [node.op_type for node in folded.graph.node] == ["Sigmoid", "If"]
    assert [node.op_type for node in branch(folded, THEN).node] == ["Abs", "Conv", "Relu", "Conv", "Identity"]
    assert branch(folded, ELSE) == branch(model, ELSE)


@pytest.mark.parametrize("yes", [True, False])
def test_the_branch_that_all_inputs_take_is_in_the_open(yes):
    inputs = inputs_of(samples(3, yes))
    unfolded = normalise(unfold_taken_branches(network(), inputs))
    (way,) = unfolded_branches(unfolded).values()
    assert way == (THEN if yes else ELSE)
    assert len(find_layers(unfolded)) == 2
    others = kept_nodes(unfolded, find_layers(unfolded), inputs)
    assert [one.macs for one in others] == [0, 0]
    assert all(one.reason.endswith("a branch that no calibration input takes") for one in others)


def test_branches_inside_branches_too():
    inputs = inputs_of(samples(3, True))
    unfolded = normalise(unfold_taken_branches(network(nested=True), inputs))
    assert list(unfolded_branches(unfolded).values()) == [THEN, THEN]
    assert len(find_layers(unfolded)) == 2
    folded = fold_branches(unfolded)
    assert [node.op_type for node in folded.graph.node] == ["Sigmoid", "If"]
    assert "If" in [node.op_type for node in branch(folded, THEN).node]


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("nested", [False, True])
def test_layers_inside_a_branch_are_rewritten_and_the_other_branch_is_not(monkeypatch, precision, nested):
    no_stopwatch(monkeypatch, block=8)
    model = network(nested=nested)
    ranks = {name: ManualRank((8,), method="channel") for name in layers_of(model)}
    result = optimize(model, max_macs=1, calibration=samples(24, True), ranks=ranks, precision=precision)
    onnx.checker.check_model(result.model, full_check=True)
    assert [layer.method for layer in result.layers if layer.name in ranks] == ["channel", "channel"]
    assert any("then branch" in note and "the other branch stays as it is" in note for note in result.notes)
    assert branch(result.model, ELSE) == branch(model, ELSE)
    assert all("lowrank" not in node.name for node in result.model.graph.node)
    (one,) = samples(1, False, seed=5)
    assert same(run(result.model, **one), run(model, **one), 0)
    (one,) = samples(1, True, seed=5)
    assert same(run(result.model, **one), run(model, **one), 1e-3 if precision == "float32" else 0.05)


def layers_of(model):
    inputs = inputs_of(samples(1, True))
    return [layer.name for layer in find_layers(normalise(unfold_taken_branches(model, inputs)))]


def test_their_times_are_told():
    model, name = network(), layers_of(network())[0]
    result = optimize(
        model, speedup=1.01, calibration=samples(24, True), ranks={name: ManualRank((8,), method="channel")}
    )
    (told,) = (layer for layer in result.layers if layer.name == name)
    assert min(told.milliseconds) > 0


def test_where_inputs_take_both_branches_their_layers_stay(caplog):
    calibration = [*samples(8, True), *samples(8, False)]
    with pytest.raises(UnsupportedModelError, match="inside If"):
        optimize(network(), calibration=calibration)
    assert "the calibration inputs take both of its branches" in caplog.text


def test_analyze_and_compare_look_inside():
    model = network()
    found = analyze(model, calibration=samples(8, True))
    assert [layer.kept_because.partition(" ")[0] for layer in found.layers] == ["", "", "inside", "inside"]
    compared = compare([model, model], inputs=samples(2, True), seconds=0.1)
    assert compared.facts[0].macs == sum(layer.macs for layer in found.layers)

"""Nodes that share a weight: one layer with several places, from the file to the rewritten file."""

import numpy as np
import onnx
import pytest
from helpers.models import error, normal, parse, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import Geometry, Layer
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.permute import fold_gathers
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.graph.successors import next_layers

RNG = np.random.default_rng(11)
CONV = "Conv <pads = [1, 1, 1, 1]>"


def random_chain(layer: Layer, rng: np.random.Generator, kind: str) -> Chain:
    """Return a random chain: two links, a grouped link whose output is in another order, or one Conv a group.

    Its responses are as large as its input: of large ones behind each other a Tanh would show the rounding.
    """
    f, bias = layer.outputs, normal(rng, layer.outputs)
    if kind == "thin":
        first = Step("thin", normal(rng, 2, layer.inputs, 3, 3) / 6, layer.geometry)
        return Chain((first, Step("wide", normal(rng, f, 2, 1, 1) / 1.5, Geometry.pointwise(2))), bias)
    weight = normal(rng, f, layer.inputs // 2, 3, 3) / 4
    take, give = rng.permutation(layer.inputs), rng.permutation(f)
    return Chain((Step("groups", weight, layer.geometry, 2, take, give, split=kind == "split"),), bias)


def with_dense(model: ModelProto, chain: Chain) -> ModelProto:
    """Return ``model`` with the chain's kernel and bias in the initializers ``w`` and ``b``."""
    changed = ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in ("w", "b"):
            values = chain.dense_kernel() if tensor.name == "w" else chain.bias
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), tensor.name))
    return changed


@st.composite
def tied_networks(draw: st.DrawFn) -> tuple[ModelProto, dict[str, np.ndarray], np.random.Generator, str]:
    """Return a network that computes one Conv of 4 maps at several places, one after or beside the other."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lines, inputs, outputs, feeds, tensor = [], [], [], {}, ""
    for i in range(draw(st.integers(2, 4))):
        if not tensor or draw(st.booleans()):  # another input, of another size
            size, tensor = draw(st.integers(1, 6)), f"x{i}"
            inputs.append(f"float[N, 4, {size}, {size}] {tensor}")
            feeds[tensor] = normal(rng, 2, 4, size, size)
        ends = draw(st.sampled_from(["{0} = Relu (c{1})", "{0} = Identity (c{1})", "{0} = Tanh (c{1})", "s{1}"]))
        lines.append(f"c{i} = {CONV} ({tensor}, w, b)")
        lines.append(f"r{i} = Add (c{i}, {tensor})" if ends == "s{1}" else ends.format(f"r{i}", i))
        tensor = f"r{i}"
        if draw(st.booleans()):  # another layer in between, into which orders may be folded
            lines.append(f"m{i} = Conv (r{i}, p)")
            tensor = f"m{i}"
        outputs.append(f"float[N, 4, {size}, {size}] {tensor}")
    body = f"g ({', '.join(inputs)}) => ({', '.join(dict.fromkeys(outputs))}) {{ {' '.join(lines)} }}"
    model = parse(body, w=normal(rng, 4, 4, 3, 3), b=normal(rng, 4), p=normal(rng, 4, 4, 1, 1))
    return model, feeds, rng, draw(st.sampled_from(["thin", "groups", "split"]))


@given(tied_networks())
@settings(max_examples=100, deadline=None)
def test_every_place_computes_the_dense_kernel(case) -> None:
    model, feeds, rng, kind = case
    layers = find_layers(model)
    layer = next(layer for layer in layers if layer.name == "n_c0")
    assert not layer.shares_weight
    chain = random_chain(layer, rng, kind)
    rewritten = rewrite(model, layers, {layer.name: chain})
    onnx.checker.check_model(rewritten, full_check=True)
    assert len({node.name for node in rewritten.graph.node}) == len(rewritten.graph.node)
    weights = [tensor.name for tensor in rewritten.graph.initializer if "/lowrank/" in tensor.name]
    assert all(name.startswith("n_c0/lowrank/") for name in weights)
    assert sum(name.endswith(".weight") for name in weights) == (1 if kind == "groups" else 2)
    expected = run(with_dense(model, chain), **feeds)
    shaped = onnx.shape_inference.infer_shapes(rewritten)
    for one in (rewritten, fold_gathers(shaped)):
        for actual, wanted in zip(run(one, **feeds), expected, strict=True):
            assert error(actual, wanted) <= 1e-4
    again = find_layers(rewritten)
    assert [len(one.places) for one in again if "/lowrank/" in one.name] == [len(layer.places)] * (
        {"thin": 2, "groups": 1, "split": 2}[kind]
    )


TWINS = f"""g (float[N, 4, 6, 6] x, float[N, 4, 6, 6] u) => (float[N, 4, 6, 6] y) {{
    a = {CONV} (x, w, b) ar = Relu (a) a2 = {CONV} (ar, v) as = Relu (a2)
    c = {CONV} (u, w, b) cr = Relu (c) c2 = {CONV} (cr, v) cs = Relu (c2)
    y = Sub (as, cs)
}}"""


@pytest.mark.parametrize("kinds", [("thin", "thin"), ("groups", "thin"), ("groups", "groups"), ("split", "thin")])
def test_twins_stay_twins_when_orders_are_folded(kinds: tuple[str, str]) -> None:
    """What is folded into weights that both sides share is folded into them once."""
    model = parse(TWINS, w=normal(RNG, 4, 4, 3, 3), v=normal(RNG, 4, 4, 3, 3), b=normal(RNG, 4))
    layers = find_layers(model)
    assert [(layer.name, len(layer.places)) for layer in layers] == [("n_a", 2), ("n_a2", 2)]
    chains = {layer.name: random_chain(layer, RNG, kind) for layer, kind in zip(layers, kinds, strict=True)}
    folded = fold_gathers(rewrite(model, layers, chains))
    x = normal(RNG, 2, 4, 6, 6)
    assert not run(folded, x=x, u=x)[0].any()
    assert [len(one.places) for one in find_layers(folded)] == [2] * (4 - kinds.count("groups"))
    weights = [tensor for tensor in folded.graph.initializer if len(tensor.dims) == 4]
    assert len(weights) == 4 - kinds.count("groups")


def test_an_order_that_folds_at_one_place_only_leaves_the_other_its_weight() -> None:
    body = f"""g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y, float[N, 4, 6, 6] z) {{
        y = {CONV} (x, w, b)  c = {CONV} (y, w, b)  r = Relu (c)  z = Conv (r, p) }}"""
    model = parse(body, w=normal(RNG, 4, 4, 3, 3), b=normal(RNG, 4), p=normal(RNG, 4, 4, 1, 1))
    layer, _ = find_layers(model)
    rewritten = rewrite(model, [layer], {layer.name: random_chain(layer, RNG, "groups")})
    x = normal(RNG, 2, 4, 6, 6)
    for actual, wanted in zip(run(fold_gathers(rewritten), x=x), run(rewritten, x=x), strict=True):
        assert error(actual, wanted) <= 1e-5


def batch_norm(name: str) -> dict[str, np.ndarray]:
    parts = {f"{part}{name}": RNG.uniform(0.5, 1.5, 8).astype(np.float32) for part in ("scale", "shift", "mean", "var")}
    return parts


BRANCHES = f"""g (float[N, 8, 6, 6] x, float[N, 8, 3, 3] u) => (float[N, 8, 6, 6] y, float[N, 8, 3, 3] z) {{
    a = {CONV} (x, w)  an = BatchNormalization (a, scale0, shift0, mean0, var0)  y = Relu (an)
    c = {CONV} (u, w)  cn = BatchNormalization (c, scaleI, shiftI, meanI, varI)  z = Relu (cn)
}}"""


@pytest.mark.parametrize("one_norm", [True, False])
def test_a_shared_weight_stays_one_when_batch_norms_are_folded(one_norm: bool) -> None:
    """Behind every place the same BatchNorm folds into one weight; others stay, as they would make several of it."""
    model = parse(BRANCHES.replace("I", "0" if one_norm else "1"), w=normal(RNG, 8, 8, 3, 3),
                  **batch_norm("0"), **batch_norm("1"))  # fmt: skip
    folded = normalise(model)
    assert len([tensor for tensor in folded.graph.initializer if len(tensor.dims) == 4]) == 1
    assert [n.op_type for n in folded.graph.node].count("BatchNormalization") == (0 if one_norm else 2)
    (layer,) = find_layers(folded)
    assert len(layer.places) == 2
    assert not layer.shares_weight
    feeds = {"x": normal(RNG, 2, 8, 6, 6), "u": normal(RNG, 2, 8, 3, 3)}
    for actual, wanted in zip(run(folded, **feeds), run(model, **feeds), strict=True):
        assert error(actual, wanted) <= 1e-5


def test_equal_weights_become_one_but_not_where_a_subgraph_or_the_outside_knows_them() -> None:
    body = """g (float[N, 16] x, bool t) => (float[N, 16] y, float[16, 16] seen) {
        a = MatMul (x, w0)  b = MatMul (a, w1)  c = MatMul (b, seen)  d = MatMul (c, inner)
        y = If (t) <then_branch = yes () => (float[N, 16] p) { p = MatMul (d, inner) },
                    else_branch = no () => (float[N, 16] q) { q = Neg (d) }>
    }"""
    weight = normal(RNG, 16, 16)
    model = parse(body, w0=weight, w1=weight, seen=weight, inner=weight)
    folded = normalise(model)
    assert {tensor.name for tensor in folded.graph.initializer} == {"w0", "seen", "inner"}
    assert [len(layer.places) for layer in find_layers(folded)] == [2, 1, 1]
    x = normal(RNG, 2, 16)
    for actual, wanted in zip(run(folded, x=x, t=np.array(True)), run(model, x=x, t=np.array(True)), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_small_equal_weights_stay_two() -> None:
    weight = normal(RNG, 4, 4)
    model = parse("g (float[N, 4] x) => (float[N, 4] y) { a = MatMul (x, v) y = MatMul (a, w) }", v=weight, w=weight)
    assert len(find_layers(normalise(model))) == 2


def test_a_layer_that_was_there_before_is_no_next_one() -> None:
    """To refit it changes what the layer in between reads."""
    weights = {name: normal(RNG, 4, 4) for name in "uvw"}
    lines = "a = MatMul (x, u) b = MatMul (a, v) c = MatMul (b, u) z = MatMul (c, w)"
    model = parse(f"g (float[N, 4] x) => (float[N, 4] z) {{ {lines} }}", **weights)
    found = {name: [one.name for one in after] for name, after in next_layers(model, find_layers(model)).items()}
    assert found == {"n_a": ["n_b", "n_z"], "n_b": [], "n_z": []}

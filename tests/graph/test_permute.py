"""Gathers of chains: networks with them folded compute the same, and only those are left that have to be."""

import numpy as np
import onnx
import pytest
from helpers.models import describe, error, node, normal, parse, residual_block, run, without_body
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import Geometry, Layer
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.permute import fold_gathers
from onnxlowrank.graph.rewrite import rewrite

RNG = np.random.default_rng(5)
POINT = Geometry.pointwise(2)
SIZE = 6


def shuffled(rng: np.random.Generator, maps: np.ndarray | int) -> np.ndarray:
    """Return ``maps`` in a random order that is not theirs."""
    order = rng.permutation(maps)
    return order[::-1] if np.array_equal(order, np.arange(len(order))) else order


def grouped(layer: Layer, rng: np.random.Generator, spare: int = 0) -> Chain:
    """Return a random chain of one link in two groups, its output in any order; ``spare`` maps more are left out."""
    f = layer.outputs + spare + (layer.outputs + spare) % 2
    weight = normal(rng, f, layer.inputs // 2, *layer.kernel)
    step = Step("groups", weight, layer.geometry, 2, give=shuffled(rng, f)[: layer.outputs])
    return Chain((step,), normal(rng, layer.outputs))


def rewritten(model: ModelProto, rng: np.random.Generator = RNG, **layers: dict[str, object]) -> ModelProto:
    """Return ``model`` with the Convs that write the tensors ``layers`` in groups, as the arguments there say."""
    found = {layer.output: layer for layer in find_layers(model)}
    chains = {found[name].name: grouped(found[name], rng, **arguments) for name, arguments in layers.items()}
    return rewrite(model, list(found.values()), chains)


def gathers(model: ModelProto) -> list[str]:
    return [n.name for n in model.graph.node if n.op_type == "Gather"]


def assert_folds(model: ModelProto, left: int = 0, **feeds: np.ndarray) -> ModelProto:
    """Check what must be true of any model; return it folded."""
    before = model.SerializeToString(deterministic=True)
    folded = fold_gathers(model)
    assert model.SerializeToString(deterministic=True) == before
    assert fold_gathers(model).SerializeToString() == folded.SerializeToString()
    onnx.checker.check_model(folded, full_check=True)
    assert without_body(folded) == without_body(model)
    assert len(gathers(folded)) == left
    used = {name for n in folded.graph.node for name in n.input} | {output.name for output in folded.graph.output}
    assert {tensor.name for tensor in folded.graph.initializer} <= used
    for actual, expected in zip(run(folded, **feeds), run(model, **feeds), strict=True):
        assert error(actual, expected) <= 1e-5
    return folded


def assert_kept(model: ModelProto, left: int = 1) -> None:
    """Check that nothing at all happens to ``model``."""
    assert len(gathers(model)) == left
    assert fold_gathers(model) == model


def with_output_shape(model: ModelProto) -> ModelProto:
    """Return ``model`` with the shape of its output, and all others, inferred."""
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def image(channels: int = 4, batch: int = 2) -> np.ndarray:
    return normal(RNG, batch, channels, SIZE, SIZE)


BATCH_NORM = "BatchNormalization (T, v0, v1, v2, positive)"
CHANNELWISE = {
    "Relu (T)": 1, "LeakyRelu <alpha = 0.2> (T)": 1, "Sigmoid (T)": 1, "Tanh (T)": 1, "HardSigmoid (T)": 1,
    "Elu (T)": 1, "Softplus (T)": 1, "Identity (T)": 1, "Neg (T)": 1, "Abs (T)": 1, "Dropout (T)": 1,
    "Clip <min = 0.0, max = 6.0> (T)": -11, "Clip (T, low, high)": 11, "HardSwish (T)": 14,
    "MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (T)": 1,
    "AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (T)": 1,
    "Pad <pads = [0, 0, 1, 0, 0, 0, 0, 0], mode = \"reflect\"> (T)": -11, "Pad (T, pads)": 11,
    BATCH_NORM: 1, "InstanceNormalization (T, v0, v1)": 1, "PRelu (T, c1)": 1,
    "Add (T, c0)": 1, "Mul (c0, T)": 1, "Sub (n0, T)": 1, "Div (T, c2)": 1, "Add (T, low)": 1, "Mul (T, row)": 1,
    "Add (T, one)": 1, "Mul (T, T)": 1, "Conv <group = 6> (T, d1, v0)": 1,
    "Conv <group = 6, pads = [1, 1, 1, 1]> (T, d3)": 1, "Sigmoid (T) -> Mul (T, U)": 1, "Abs (T) -> Sqrt (U)": 1,
    "Tanh (T) -> Exp (U)": 1, "Relu (T) -> Add (T, U)": 1,
    "GlobalAveragePool (T) -> Mul (U, T)": 1,
}  # fmt: skip
"""Operators that must be passed, on the tensor T of 6 maps, with the opset they need (negative: older ones)."""
ENDS = {
    "y = Conv (T, w)": 4,
    "y = Conv <pads = [1, 1, 1, 1]> (T, k, b)": 4,
    "p = Conv (T, w) q = Conv (T, w2, b) y = Concat <axis = 1> (q, p)": 4,
    "p = Conv (T, w) q = Conv (T, w) y = Add (p, q)": 4,
    "p = GlobalAveragePool (T) f = Flatten (p) y = Gemm <transB = 1> (f, m, b)": 2,
    "p = GlobalMaxPool (T) f = Flatten (p) r = Relu (f) d = Dropout (r) s = Add (d, v0) y = MatMul (s, mt)": 2,
    "p = GlobalAveragePool (T) f = Reshape (p, flat) y = Gemm (f, mt, b)": 2,
    "e = Conv <group = 6> (T, e2) y = Conv (e, w12)": 4,
}
"""Where orders end, with the axes of y."""


def constants(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "v0": normal(rng, 6), "v1": normal(rng, 6), "v2": normal(rng, 6), "positive": rng.uniform(0.5, 2, 6),
        "low": np.array(0), "high": np.array([6]), "c0": normal(rng, 6, 1, 1), "n0": normal(rng, 1, 6, 1, 1),
        "c1": rng.uniform(0, 1, (6, 1, 1)), "c2": rng.uniform(0.5, 2, (6, 1, 1)), "row": normal(rng, 1),
        "one": normal(rng, 1, 1, 1),
        "d1": normal(rng, 6, 1, 1, 1), "d3": normal(rng, 6, 1, 3, 3), "e2": normal(rng, 12, 1, 1, 1),
        "w": normal(rng, 3, 6, 1, 1), "w2": normal(rng, 3, 6, 1, 1), "k": normal(rng, 3, 6, 3, 3),
        "w12": normal(rng, 3, 12, 1, 1), "b": normal(rng, 3), "m": normal(rng, 3, 6), "mt": normal(rng, 6, 3),
    }  # fmt: skip


@st.composite
def sequences(draw: st.DrawFn) -> tuple[ModelProto, np.random.Generator]:
    """Return ``x -> Conv a -> operators -> y`` with a Gather somewhere behind a."""
    opset, rng = draw(st.sampled_from([9, 13, 17])), np.random.default_rng(draw(st.integers(0, 2**32)))
    possible = [text for text, first in CHANNELWISE.items() if (opset >= first if first > 0 else opset < -first)]
    lines, tensor = [], "a"
    for i, text in enumerate(draw(st.lists(st.sampled_from(possible), max_size=4))):
        *inner, last = text.split(" -> ")
        lines += [f"u{i} = {part}".replace("(T", f"({tensor}") for part in inner]
        for old, new in (("(T", f"({tensor}"), (" T)", f" {tensor})"), ("(U", f"(u{i}"), (" U)", f" u{i})")):
            last = last.replace(old, new)
        tensor = f"t{i}"
        lines.append(f"{tensor} = {last}")
    end = draw(st.sampled_from(sorted(ENDS)))
    lines.append(end.replace("(T", f"({tensor}"))
    shape = "N, n, h, w" if ENDS[end] == 4 else "N, n"
    body = f"g (float[N, 4, {SIZE}, {SIZE}] x) => (float[{shape}] y) {{ a = Conv (x, wa) {' '.join(lines)} }}"
    values = {name: value.astype(np.float32) for name, value in constants(rng).items()}
    whole = {"flat": np.array([0, -1]), "pads": np.array([0, 0, 1, 0, 0, 0, 0, 2])}
    model = parse(body, opset=opset, wa=normal(rng, 6, 4, 1, 1), **values, **whole)
    model = rewritten(model, rng, a={"spare": draw(st.integers(0, 3))})
    used = {name for n in model.graph.node for name in n.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return onnx.shape_inference.infer_shapes(model) if draw(st.booleans()) else model, rng


@given(sequences())
@settings(max_examples=150, deadline=None)
def test_orders_pass_operators_and_end_in_weights(case: tuple[ModelProto, np.random.Generator]) -> None:
    model, rng = case
    assert len(gathers(model)) == 1
    assert_folds(model, x=normal(rng, 2, 4, SIZE, SIZE))


KEPT = {
    "output": "b = Relu (a)  y = Identity (b)",
    "sum with another tensor": "s = Add (a, x)  y = Conv (s, w)",
    "sum in two orders": "c = Concat <axis = 1> (a, x)  d = Concat <axis = 1> (x, a)  s = Add (c, d)  y = Conv (s, w8)",
    "sum along other axes": "p = GlobalAveragePool (a)  f = Flatten (p)  q = MaxPool <kernel_shape = [3, 3]> (a)"
    "  s = Add (q, f)  y = Conv (s, w)",
    "product with a computed gate": "p = GlobalAveragePool (a)  s = Conv (p, w)  q = Mul (a, s)  y = Conv (q, w)",
    "operator that mixes maps": "b = LRN <size = 3> (a)  y = Conv (b, w)",
    "softmax over maps": "b = Softmax <axis = 1> (a)  y = Conv (b, w)",
    "unknown layout": "b = Transpose <perm = [0, 2, 3, 1]> (a)  y = Relu (b)",
    "groups of several maps": "y = Conv <group = 2> (a, half)",
    "as a weight": "y = Conv (x, a)",
    "as a bias": "p = GlobalAveragePool (a)  f = Flatten (p)  y = Gemm (f, m, f)",
    "as a bound": "b = MaxPool <kernel_shape = [6, 6]> (a)  l = ReduceMin <keepdims = 0> (b)  y = Clip (x, l)",
    "transposed": "p = GlobalAveragePool (a)  f = Flatten (p)  y = Gemm <transA = 1> (f, m)",
    "product on the last axis": "p = MaxPool <kernel_shape = [3, 3]> (a)  y = MatMul (p, m)",
    "number of positions": "s = Shape (a)  y = Cast <to = 1> (s)",
    "pads of maps": "b = Pad (a, shift)  y = Conv (b, w)",
    "pads of certain axes": "b = Pad (a, shift1, , maps)  y = Conv (b, w)",
    "constant of higher rank": "b = Mul (a, tall)  y = Conv (b, w3)",
    "concatenation of positions": "c = Concat <axis = 3> (a, x)  y = Conv (c, w)",
    "flattened by positions": "f = Flatten <axis = 2> (a)  y = Gemm (f, long)",
    "batch in one row": "r = Reshape (a, row)  y = Conv (r, w1)",
    "indices of a pool": """b, i = MaxPool <kernel_shape = [1, 1]> (a)  c = Conv (b, w)  j = Cast <to = 1> (i)
                            y = Add (c, j)""",
    "dropout at random": "b = Dropout (a, , on)  y = Conv (b, w)",
    "subgraph": """y = If (on) < then_branch = yes () => (float[N, 4, 6, 6] p) { p = Relu (a) },
                   else_branch = no () => (float[N, 4, 6, 6] q) { q = Neg (x) } >""",
}


@pytest.mark.parametrize("reason", KEPT)
def test_gathers_that_have_to_stay(reason: str) -> None:
    model = parse(
        f"g (float[4, 4, 6, 6] x) => (float y) {{ a = Conv (x, wa) {KEPT[reason]} }}",
        opset=18,
        wa=normal(RNG, 4, 4, 1, 1),
        w=normal(RNG, 4, 4, 1, 1),
        w8=normal(RNG, 4, 8, 1, 1),
        w3=normal(RNG, 4, 4, 1, 1, 1),
        w1=normal(RNG, 4, 144, 1),
        half=normal(RNG, 4, 2, 1, 1),
        m=normal(RNG, 4, 4),
        shift=np.array([0, 1, 0, 0, 0, -1, 0, 0]),
        shift1=np.array([0, 0, 1, 0, 0, -1]),
        maps=np.array([2, 3, 1]),
        tall=normal(RNG, 1, 1, 4, 1, 1),
        long=normal(RNG, 36, 3),
        row=np.array([1, 144, 4]),
        on=np.array(True),
    )
    model = with_output_shape(rewritten(model, a={}))
    onnx.checker.check_model(model, full_check=True)
    assert_kept(model)


def test_model_without_gathers_stays() -> None:
    model = residual_block()
    model.graph.initializer.append(onnx.numpy_helper.from_array(normal(RNG, 3), "unread"))
    folded = fold_gathers(model)
    assert folded == model
    assert folded is not model


def test_several_outputs() -> None:
    model = parse(
        "g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] b, float[N, 4, 6, 6] y) "
        "{ a = Conv (x, wa)  b = Relu (a)  y = Conv (b, w) }",
        wa=normal(RNG, 4, 4, 1, 1),
        w=normal(RNG, 4, 4, 1, 1),
    )
    assert_kept(rewritten(model, a={}))


def test_one_map_that_becomes_many() -> None:
    model = parse(
        "g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) { a = Conv (x, wa)  b = Mul (a, c)  y = Conv (b, w) }",
        wa=normal(RNG, 1, 4, 1, 1),
        c=normal(RNG, 4, 1, 1),
        w=normal(RNG, 4, 4, 1, 1),
    )
    assert_kept(rewritten(model, a={"spare": 1}))


def gathered(order: list[int], body: str, **constants: np.ndarray) -> ModelProto:
    """Return a model whose input of 4 maps is put in order first."""
    model = parse(
        f"g (float[2, 4, 6, 6] x) => (float y) {{ a = Gather <axis = 1> (x, order) {body} }}",
        order=np.array(order),
        **constants,
    )
    node(model, "n_a").name = "n_a/lowrank/groups/take"
    return with_output_shape(model)


def test_maps_that_are_found_twice() -> None:
    order, w, v = [2, 0, 0, 3, 1, 2], normal(RNG, 3, 6, 1, 1), normal(RNG, 6, 1, 1)
    assert_folds(gathered(order, "b = Relu (a)  y = Conv (b, w)", w=w), x=image())
    assert_kept(gathered(order, "b = Mul (a, v)  y = Conv (b, w)", v=v, w=w))
    assert_kept(gathered(order, "b = Conv <group = 6> (a, d)  y = Conv (b, w)", d=normal(RNG, 6, 1, 3, 3), w=w))


def test_gather_that_changes_nothing() -> None:
    lines = """y = If (on) < then_branch = yes () => (float[N, 4, 6, 6] p) { p = Relu (a) },
               else_branch = no () => (float[N, 4, 6, 6] q) { q = Neg (x) } >"""
    assert_kept(gathered([0, 1, 2, 3], lines, on=np.array(True)))
    assert_kept(gathered([0, 1, 2], "y = LRN <size = 3> (a)"))
    model = gathered([0, 1, 2, 3], "b = LRN <size = 3> (a)  c = Add (a, b)  y = Add (c, a)")
    folded = assert_folds(model, x=image())
    assert [list(n.input) for n in folded.graph.node] == [["x"], ["x", "b"], ["c", "x"]]


def test_gather_of_unknown_number_of_maps_stays() -> None:
    model = parse(
        "g (float[N, 4, H, W] x) => (float[N, 4, H, W] y) { a = Conv (x, wa)  y = Conv (a, w) }",
        wa=normal(RNG, 4, 4, 1, 1),
        w=normal(RNG, 4, 4, 1, 1),
    )
    model = rewritten(model, a={})
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert_kept(model)


def test_weight_that_callers_may_override_stays() -> None:
    model = rewritten(
        parse(
            "g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) { a = Conv (x, wa)  y = Conv (a, w) }",
            wa=normal(RNG, 4, 4, 1, 1),
            w=normal(RNG, 4, 4, 1, 1),
        ),
        a={},
    )
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 4, 1, 1]))
    assert_kept(model)


@pytest.mark.parametrize("name", ["n_a/lowrank/groups/other", "give", "n_a/groups/give"])
def test_only_gathers_of_chains_are_looked_at(name: str) -> None:
    model = parse(
        "g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) { a = Conv (x, wa)  y = Conv (a, w) }",
        wa=normal(RNG, 4, 4, 1, 1),
        w=normal(RNG, 4, 4, 1, 1),
    )
    model = rewritten(model, a={})
    (gather,) = gathers(model)
    node(model, gather).name = name
    assert_kept(model)
    node(model, name).name = "n_a/lowrank/groups/give_12"
    node(model, "n_a/lowrank/groups/give_12").attribute[0].i = 2
    assert_kept(model)
    node(model, "n_a/lowrank/groups/give_12").attribute[0].i = 1
    assert_folds(model, x=image())


def test_flatten_of_several_positions() -> None:
    for lines in ("f = Flatten (b)", "f = Reshape (b, target)"):
        model = parse(
            f"g (float[N, 4, 6, 6] x) => (float[N, 3] y) {{ a = Conv (x, wa) b = Relu (a) {lines} y = Gemm (f, m) }}",
            wa=normal(RNG, 5, 4, 3, 3),
            m=normal(RNG, 5 * 16, 3),
            target=np.array([0, -1]),
        )
        assert_folds(rewritten(model, a={"spare": 2}), x=image())


def test_reshape_to_a_fixed_number_of_entries_keeps_maps_that_were_left_out_away() -> None:
    model = parse(
        "g (float[N, 4, 6, 6] x) => (float[N, 3] y) { a = Conv (x, wa)  f = Reshape (a, target)  y = Gemm (f, m) }",
        wa=normal(RNG, 4, 4, 3, 3),
        m=normal(RNG, 4 * 16, 3),
        target=np.array([-1, 64]),
    )
    assert_folds(rewritten(model, a={}), x=image())
    assert_kept(rewritten(model, a={"spare": 2}))


def test_flatten_of_unknown_size_stays() -> None:
    model = parse(
        "g (float[N, 4, H, 6] x) => (float[N, 3] y) { a = Conv (x, wa)  f = Flatten (a)  y = Gemm (f, m) }",
        wa=normal(RNG, 4, 4, 1, 1),
        m=normal(RNG, 4 * 36, 3),
    )
    assert_kept(rewritten(model, a={}))


def test_shared_constants_are_copied() -> None:
    model = parse(
        """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
            a = Conv (x, wa)  s = Mul (a, c)  p = Conv (s, w)  q = Conv (x, w)  r = Mul (q, c)  y = Add (p, r)
        }""",
        wa=normal(RNG, 4, 4, 1, 1),
        w=normal(RNG, 4, 4, 1, 1),
        c=normal(RNG, 4, 1, 1),
    )
    model = rewritten(model, a={})
    folded = assert_folds(model, x=image())
    assert node(folded, "n_q") == node(model, "n_q")
    assert node(folded, "n_p").input[1] == "w/permuted"
    assert node(folded, "n_s").input[1] == "c/permuted"
    before = {tensor.name: tensor for tensor in model.graph.initializer}
    assert all(tensor == before[tensor.name] for tensor in folded.graph.initializer if tensor.name in ("w", "c"))


def test_weight_that_is_an_output_as_well() -> None:
    model = parse(
        "g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) { a = Conv (x, wa)  y = Conv (a, w) }",
        wa=normal(RNG, 4, 4, 1, 1),
        w=normal(RNG, 4, 4, 1, 1),
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 4, 1, 1]))
    assert_folds(rewritten(model, a={}), x=image())


def test_constants_of_nodes_are_replaced_by_initializers() -> None:
    model = parse(
        """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
            k = Constant <value = float[4, 1, 1] {1.0, 2.0, 3.0, 4.0}> ()  i = Identity (w)
            a = Conv (x, wa)  s = Mul (a, k)  y = Conv (s, i)
        }""",
        wa=normal(RNG, 4, 4, 1, 1),
        w=normal(RNG, 4, 4, 1, 1),
    )
    model = rewritten(model, a={})
    model.graph.node.add().CopyFrom(node(model, "n_k"))
    model.graph.node[-1].name, model.graph.node[-1].output[0] = "unread", "u"
    folded = assert_folds(model, x=image())
    assert [n.name for n in folded.graph.node] == ["n_a/lowrank/groups", "n_s", "n_y", "unread"]


def test_residual_block() -> None:
    """Inside the block an order folds; what is added to the shortcut has to be in order."""
    model = normalise(residual_block())
    assert_folds(rewritten(model, b={"spare": 1}), x=normal(RNG, 2, 4, 8, 8))
    assert_kept(rewritten(model, e={}))


def test_squeezenet_fire() -> None:
    model = parse(
        """g (float[N, 4, 6, 6] x) => (float[N, 3, 6, 6] y) {
            a = Conv (x, ws)  s = Relu (a)
            b = Conv (s, w1)  c = Relu (b)  d = Conv <pads = [1, 1, 1, 1]> (s, w3)  e = Relu (d)
            f = Concat <axis = 1> (c, e)  y = Conv (f, w)
        }""",
        ws=normal(RNG, 6, 4, 1, 1),
        w1=normal(RNG, 8, 6, 1, 1),
        w3=normal(RNG, 7, 6, 3, 3),
        w=normal(RNG, 3, 15, 1, 1),
    )
    for spare in (0, 2):
        fire = rewritten(model, a={"spare": spare}, b={"spare": spare}, d={"spare": spare})
        assert len(gathers(fire)) == 3
        # The grouped expand layers cannot take their input maps in another order.
        assert gathers(assert_folds(fire, left=1, x=image())) == ["n_a/lowrank/groups/give"]
        assert_folds(rewritten(model, b={"spare": spare}), x=image())
        assert_folds(rewritten(model, a={"spare": spare}), x=image())


UP = {
    "c = Relu (a)": 0,
    "b = Sigmoid (a)  c = Mul (a, b)": 0,
    "b = BatchNormalization (a, v0, v1, v2, positive)  p = PRelu (b, s)  c = MaxPool <kernel_shape = [2, 2]> (p)": 0,
    "d = Conv <group = 6, pads = [1, 1, 1, 1]> (a, deep, v0)  c = Relu (d)": 0,
    "d = Conv (x, w2)  e = Add (a, d)  c = Relu (e)": 0,
    "c = Conv <group = 2> (a, half)": 1,
    "c = Conv <group = 2> (a, few)": 1,
    "d = Conv <group = 6> (a, twice)  c = MaxPool <kernel_shape = [1, 1]> (d)": 1,
    "d = Conv (x, narrow)  c = Mul (a, d)": 1,
    "b = Relu (a)  c = Relu (b)  o = Neg (b)": 1,
    "b = Relu (a)  o = Relu (b)  c = Neg (o)": 1,
    "c = LRN <size = 3> (a)": 1,
    "c = Neg (x)": 1,
    "c = Relu (a) o = Neg (c)": 1,
}


@pytest.mark.parametrize("lines", UP)
@pytest.mark.parametrize("odd", [False, True])
def test_orders_that_are_taken_go_to_the_filters_before(lines: str, odd: bool) -> None:
    outputs = "float[N, 4, h, w] y" + (", float[N, c, h, w] o" if " o =" in lines else "")
    maps = next((maps for text, maps in {"(x)": 4, "few": 2, "twice": 12}.items() if text in lines), 6)
    model = parse(
        f"g (float[N, 4, 6, 6] x) => ({outputs}) {{ a = Conv (x, wa, v0) {lines} y = Conv (c, w) }}",
        wa=normal(RNG, 6, 4, 3, 3) if "(x, w" not in lines else normal(RNG, 6, 4, 1, 1),
        w2=normal(RNG, 6, 4, 1, 1),
        w=normal(RNG, 4, maps, 1, 1),
        half=normal(RNG, 6, 3, 1, 1),
        few=normal(RNG, 2, 3, 1, 1),
        deep=normal(RNG, 6, 1, 3, 3),
        twice=normal(RNG, 12, 1, 1, 1),
        narrow=normal(RNG, 1, 4, 3, 3),
        s=normal(RNG, 6, 1, 1),
        v0=normal(RNG, 6),
        v1=normal(RNG, 6),
        v2=normal(RNG, 6),
        positive=RNG.uniform(0.5, 2, 6).astype(np.float32),
    )
    used = {name for n in model.graph.node for name in n.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    layer = find_layers(model)[-1]
    take = shuffled(RNG, np.resize(np.arange(maps), maps + 2 * odd))
    step = Step("groups", normal(RNG, 4, maps // 2 + odd, 1, 1), POINT, group=2, take=take)
    for form in ("grouped", "split"):
        grouping = rewrite(model, [layer], {layer.name: Chain((step.lowered(form),))})
        grouping = onnx.shape_inference.infer_shapes(grouping)
        assert len(gathers(grouping)) == 1
        if UP[lines]:
            assert_kept(grouping)
        else:
            folded = assert_folds(grouping, x=image())
            assert {"c", "y"} & {name for n in folded.graph.node for name in n.output} == {"y"}


def test_orders_inside_a_chain() -> None:
    model = parse(
        "g (float[N, 4, 6, 6] x) => (float[N, 5, 6, 6] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w, b) }",
        w=normal(RNG, 5, 4, 3, 3),
        b=normal(RNG, 5),
    )
    (layer,) = find_layers(model)
    into = Step("into", normal(RNG, 6, 2, 1, 1), POINT, 2, give=shuffled(RNG, 6)[:5])
    between = Step("between", normal(RNG, 6, 5, 3, 3), layer.geometry)
    out = Step(
        "out", normal(RNG, 6, 4, 1, 1), POINT, 2, take=np.array([3, 1, 0, 5, 2, 4, 4, 0]), give=shuffled(RNG, 6)[:5]
    )
    model = rewrite(model, [layer], {layer.name: Chain((into, between, out), layer.bias)})
    assert len(gathers(model)) == 3
    folded = assert_folds(model, left=1, x=image())
    assert gathers(folded) == ["n_y/lowrank/out/give"]
    assert folded.graph.node[-1] == model.graph.node[-1]


def test_order_that_runs_into_the_next_is_merged() -> None:
    model = parse(
        "g (float[N, 4, 6, 6] x) => (float[N, 6, 6, 6] y) { a = Conv (x, wa)  b = Relu (a)  y = Conv (b, w) }",
        wa=normal(RNG, 6, 4, 1, 1),
        w=normal(RNG, 6, 6, 1, 1),
    )
    first, second = find_layers(model)
    give = shuffled(RNG, 6)
    back = np.argsort(give)
    for take, left in ((back[[0, 3, 1, 4, 2, 5]], 1), (back, 0)):  # across the groups, and none
        chains = {
            first.name: Chain((Step("g", normal(RNG, 6, 2, 1, 1), POINT, 2, give=give),)),
            second.name: Chain((Step("g", normal(RNG, 6, 3, 1, 1), POINT, 2, take=take),)),
        }
        assert_folds(rewrite(model, [first, second], chains), left=left, x=image())


def test_texts_and_other_nodes_stay() -> None:
    model = parse(
        "g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) { z = Neg (x) a = Conv (z, wa) b = Relu(a) y = Conv (b, w) }",
        wa=normal(RNG, 4, 4, 1, 1),
        w=normal(RNG, 4, 4, 1, 1),
    )
    model.graph.initializer[1].doc_string = "a weight"
    model.graph.initializer[1].metadata_props.add(key="source", value="w")
    describe(model)
    model = onnx.shape_inference.infer_shapes(rewritten(model, a={"spare": 2}))
    folded = assert_folds(model, x=image())
    for kept in folded.graph.node:
        was = node(model, kept.name)
        assert (kept.op_type, kept.doc_string, kept.metadata_props, kept.output) == (
            was.op_type, was.doc_string, was.metadata_props, was.output
        )  # fmt: skip
    assert node(folded, "n_z") == node(model, "n_z")
    weight = next(tensor for tensor in folded.graph.initializer if tensor.name == "w")
    assert (weight.doc_string, weight.metadata_props[0].value) == ("a weight", "w")
    assert {info.name for info in folded.graph.value_info} == {"n_a/lowrank/groups/output", "z"}

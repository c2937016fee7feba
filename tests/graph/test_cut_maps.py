"""Chains that choose among maps: the layers that make the others are cut, and the network computes the same."""

import numpy as np
import onnx
import pytest
from helpers.models import error, normal, parse, run, without_body
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.cut_maps import cut_maps, filters_left
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import Geometry, Layer
from onnxlowrank.graph.permute import fold_gathers
from onnxlowrank.graph.rewrite import rewrite

RNG = np.random.default_rng(11)
SIZE = 6


def pruned(layer: Layer, maps: list[int], rng: np.random.Generator = RNG) -> Chain:
    """Return a random chain of one link on some input maps."""
    weight = normal(rng, layer.outputs, len(maps), *layer.kernel)
    step = Step("pruned", weight, layer.geometry, take=np.array(maps), among=layer.inputs)
    return Chain((step,), normal(rng, layer.outputs))


def two_links(layer: Layer, rank: int, rng: np.random.Generator = RNG) -> Chain:
    """Return a random chain of two links."""
    first = Step("first", normal(rng, rank, *layer.weight.shape[1:]), layer.geometry)
    last = Step("last", normal(rng, layer.outputs, rank, 1, 1), Geometry.pointwise(2))
    return Chain((first, last), normal(rng, layer.outputs))


def in_groups(layer: Layer, rng: np.random.Generator = RNG) -> Chain:
    """Return a random chain of one link in two groups, its outputs in any order and two maps left out."""
    f = layer.outputs + 2 + layer.outputs % 2
    weight = normal(rng, f, layer.inputs // 2, *layer.kernel)
    step = Step("groups", weight, layer.geometry, 2, give=rng.permutation(f)[: layer.outputs])
    return Chain((step,), normal(rng, layer.outputs))


def written(model: ModelProto, chosen: dict[str, object]) -> ModelProto:
    """Return the model with chains in place of the layers that write the tensors ``chosen``, lists being maps."""
    found = {layer.output: layer for layer in find_layers(model)}
    chains = {
        found[name].name: pruned(found[name], one) if isinstance(one, list) else one(found[name])
        for name, one in chosen.items()
    }
    return fold_gathers(rewrite(model, list(found.values()), chains))


def filters(model: ModelProto) -> dict[str, int]:
    """Return the number of filters of every Conv by its name."""
    sizes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return {
        node.name: sizes[node.input[1]][node.op_type == "ConvTranspose"]
        for node in model.graph.node
        if node.op_type.startswith("Conv")
    }


def gathers(model: ModelProto) -> list[list[int]]:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [constants[node.input[1]].tolist() for node in model.graph.node if node.op_type == "Gather"]


def assert_cuts(model: ModelProto) -> ModelProto:
    """Check what must be true of any model; return it cut."""
    before = model.SerializeToString(deterministic=True)
    cut = cut_maps(model)
    assert model.SerializeToString(deterministic=True) == before
    assert cut_maps(model).SerializeToString() == cut.SerializeToString()
    onnx.checker.check_model(cut, full_check=True)
    assert without_body(cut) == without_body(model)
    was, left = filters(model), filters_left(model)
    assert {name: left.get(name, count) for name, count in was.items()} == filters(cut)
    assert all(0 < count < was[name] for name, count in left.items())
    feeds = {"x": normal(RNG, 2, 4, SIZE, SIZE)}
    for actual, expected in zip(run(cut, **feeds), run(model, **feeds), strict=True):
        assert error(actual, expected) <= 1e-5
    return cut


def network(text: str, outputs: str = "y") -> ModelProto:
    """Return the network ``x -> text -> outputs``, on an image of four maps."""
    constants = {
        "wa": normal(RNG, 6, 4, 3, 3), "ba": normal(RNG, 6), "wd": normal(RNG, 6, 4, 1, 1),
        "w": normal(RNG, 4, 6, 1, 1), "k": normal(RNG, 4, 6, 3, 3),
        "w10": normal(RNG, 4, 10, 1, 1), "w12": normal(RNG, 4, 12, 1, 1),
        "v": normal(RNG, 6), "c": normal(RNG, 6, 1, 1), "positive": RNG.uniform(0.5, 2, 6).astype(np.float32),
        "dw": normal(RNG, 6, 1, 3, 3), "half": normal(RNG, 6, 3, 1, 1), "t": normal(RNG, 4, 6, 2, 2),
        "m": normal(RNG, 3, 6), "w4": normal(RNG, 6, 4, 1, 1),
    }  # fmt: skip
    text = text.replace("pads", "pads = [1, 1, 1, 1]").replace("pool", "kernel_shape = [3, 3], pads = [1, 1, 1, 1]")
    declared = ", ".join(f"float[n{name}, c{name}, h{name}, w{name}] {name}" for name in outputs.split())
    body = f"g (float[N, 4, {SIZE}, {SIZE}] x) => ({declared}) {{ {text} }}"
    used = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return parse(body, **{name: value for name, value in constants.items() if name in used})


THROUGH = [
    "Relu (a)", "MaxPool <pool> (a)", "AveragePool <pool> (a)", "BatchNormalization (a, v, v, v, positive)",
    "PRelu (a, c)", "Add (c, a)", "Mul (a, a)", "Conv <group = 6, pads> (a, dw, v)", "Sigmoid (a)",
]  # fmt: skip


@pytest.mark.parametrize("text", THROUGH)
def test_the_producer_is_cut_through_what_treats_maps_alike(text: str) -> None:
    model = network(f"a = Conv <pads> (x, wa, ba)  b = {text}  y = Conv <pads> (b, k)")
    cut = assert_cuts(written(model, {"y": [1, 3, 4]}))
    assert filters(cut)["n_a"] == 3
    assert gathers(cut) == []


def test_of_a_chain_the_last_link_is_cut() -> None:
    model = network("a = Conv <pads> (x, wa, ba)  b = Relu (a)  y = Conv <pads> (b, k)")
    cut = assert_cuts(written(model, {"a": lambda layer: two_links(layer, 5), "y": [0, 5]}))
    assert filters(cut) == {"n_a/lowrank/first": 5, "n_a/lowrank/last": 2, "n_y/lowrank/pruned": 4}
    cut = assert_cuts(written(model, {"a": in_groups, "y": [0, 2, 5]}))
    assert filters(cut)["n_a/lowrank/groups"] == 8  # groups stay whole
    assert len(gathers(cut)) == 1


def test_a_transposed_producer() -> None:
    model = network("b = Conv (x, w4)  a = ConvTranspose <strides = [2, 2]> (b, tt, v)  y = Conv <pads> (a, k)")
    model.graph.initializer.append(numpy_helper.from_array(normal(RNG, 6, 6, 2, 2), "tt"))
    cut = assert_cuts(written(model, {"y": [2, 4]}))
    assert filters(cut)["n_a"] == 2


def test_concatenated_producers_lose_their_part() -> None:
    model = network("a = Conv <pads> (x, wa, ba)  b = Conv (x, wd)  j = Concat <axis = 1> (a, b)  y = Conv (j, w12)")
    cut = assert_cuts(written(model, {"y": [0, 1, 7, 8, 11]}))
    assert (filters(cut)["n_a"], filters(cut)["n_b"]) == (2, 3)
    cut = assert_cuts(written(model, {"y": [6, 7]}))  # nothing of a is read, but an operand has to have a map
    assert (filters(cut)["n_a"], filters(cut)["n_b"]) == (1, 2)
    model = network("a = Conv <pads> (x, wa, ba)  j = Concat <axis = 1> (a, x)  y = Conv (j, w10)")
    cut = assert_cuts(written(model, {"y": [0, 2, 7]}))
    assert filters(cut)["n_a"] == 2
    assert gathers(cut) == [[0, 1, 3]]


def test_two_readers_leave_what_either_reads() -> None:
    model = network("a = Conv <pads> (x, wa, ba)  r = Relu (a)  y = Conv (r, w)  z = Conv <pads> (r, k)", "y z")
    cut = assert_cuts(written(model, {"y": [1, 3], "z": [3, 4]}))
    assert filters(cut)["n_a"] == 3
    assert gathers(cut) == [[0, 1], [1, 2]]


def test_nodes_that_share_weights_still_do() -> None:
    text = "a = Conv <pads> (x, wa, ba)  n = Neg (x)  b = Conv <pads> (n, wa, ba)  y = Conv (a, w)  z = Conv (b, w)"
    model = written(network(text, "y z"), {"y": [0, 3, 5]})
    cut = assert_cuts(model)
    assert (filters(cut)["n_a"], filters(cut)["n_b"]) == (3, 3)
    assert len(cut.graph.initializer) == 4


STAY = {
    "another layer reads it": ("a = Conv <pads> (x, wa, ba)  y = Conv (a, w)  z = Conv <pads> (a, k)", "y z"),
    "an output": ("a = Conv <pads> (x, wa, ba)  y = Conv (a, w)", "y a"),
    "a residual sum lives on": (
        "s = Conv (x, wd)  a = Conv <pads> (x, wa, ba)  f = Add (a, s)  y = Conv (f, w)  z = Identity (f)",
        "y z",
    ),
    "maps are mixed": ("a = Conv <pads> (x, wa, ba)  b = LRN <size = 3> (a)  y = Conv (b, w)", "y"),
    "groups": ("b = Conv (x, wd)  a = Conv <group = 2> (b, half)  y = Conv (a, w)", "y"),
}


@pytest.mark.parametrize("reason", STAY)
def test_where_maps_are_needed_they_stay_and_are_sampled(reason: str) -> None:
    text, outputs = STAY[reason]
    model = written(network(text, outputs), {"y": [1, 2, 5]})
    cut = assert_cuts(model)
    assert gathers(cut) == [[1, 2, 5]]
    assert filters(cut) == filters(model)
    assert filters_left(model) == {}


def test_a_sum_that_nothing_else_reads_is_cut_on_both_sides() -> None:
    model = network("a = Conv <pads> (x, wa, ba)  b = Conv (x, wd)  s = Add (a, b)  r = Relu (s)  y = Conv (r, w)")
    cut = assert_cuts(written(model, {"y": [0, 4]}))
    assert (filters(cut)["n_a"], filters(cut)["n_b"]) == (2, 2)
    assert gathers(cut) == []


def test_networks_without_a_choice_stay_as_they_are() -> None:
    model = network("a = Conv <pads> (x, wa, ba)  b = Relu (a)  y = Conv <pads> (b, k)")
    same = written(model, {"a": lambda layer: two_links(layer, 5)})
    assert cut_maps(same) is same
    same = rewrite(model, find_layers(model), {"n_a": in_groups(find_layers(model)[0])})
    assert cut_maps(same) is same


@st.composite
def networks(draw: st.DrawFn) -> tuple[ModelProto, dict[str, object]]:
    """Draw a network of convolutions, sums, concatenations and the like, and chains for some of its layers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    tensors, lines, constants, layers = {"x": 4}, [], {}, {}
    for i in range(draw(st.integers(3, 9))):
        name, source = f"t{i}", draw(st.sampled_from(sorted(tensors)[-3:]))
        maps = tensors[source]
        kind = draw(st.sampled_from(["conv", "conv", "conv", "relu", "pool", "scale", "depthwise", "sum", "concat"]))
        equal = sorted(other for other, count in tensors.items() if count == maps and other != source)
        if kind == "conv" or (kind == "sum" and not equal):
            tensors[name] = draw(st.integers(2, 6))
            constants[f"w{i}"] = normal(rng, tensors[name], maps, 3, 3) / np.float32(3 * maps**0.5)
            constants[f"b{i}"] = normal(rng, tensors[name])
            lines.append(f"{name} = Conv <pads = [1, 1, 1, 1]> ({source}, w{i}, b{i})")
            how = draw(st.sampled_from(["kept", "pruned", "pruned", "two", "groups"]))
            if how == "pruned" and maps > 1:
                layers[name] = sorted(draw(st.sets(st.integers(0, maps - 1), min_size=1, max_size=maps - 1)))
            elif how == "two":
                layers[name] = lambda layer: two_links(layer, 2)
            elif how == "groups" and maps % 2 == 0:
                layers[name] = in_groups
            continue
        tensors[name] = maps
        if kind == "sum":
            lines.append(f"{name} = Add ({source}, {draw(st.sampled_from(equal))})")
        elif kind == "concat":
            other = draw(st.sampled_from(sorted(tensors.keys() - {name})))
            tensors[name] = maps + tensors[other]
            lines.append(f"{name} = Concat <axis = 1> ({source}, {other})")
        elif kind == "depthwise":
            constants[f"w{i}"], constants[f"b{i}"] = normal(rng, maps, 1, 1, 1), normal(rng, maps)
            lines.append(f"{name} = Conv <group = {maps}> ({source}, w{i}, b{i})")
        elif kind == "scale":
            constants[f"w{i}"] = normal(rng, maps, 1, 1)
            lines.append(f"{name} = Mul ({source}, w{i})")
        else:
            op = "Relu" if kind == "relu" else "MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
            lines.append(f"{name} = {op} ({source})")
    last = f"t{len(lines) - 1}"
    outputs = sorted({last, *draw(st.sets(st.sampled_from(sorted(tensors.keys() - {"x"})), max_size=1))})
    declared = ", ".join(f"float[N, {tensors[name]}, {SIZE}, {SIZE}] {name}" for name in outputs)
    body = f"g (float[N, 4, {SIZE}, {SIZE}] x) => ({declared}) {{ {'  '.join(lines)} }}"
    return parse(body, **constants), layers


@settings(max_examples=120, deadline=None)
@given(networks())
def test_cut_networks_compute_the_same(case: tuple[ModelProto, dict[str, object]]) -> None:
    model, layers = case
    there = {layer.output for layer in find_layers(model)}
    assert_cuts(written(model, {name: how for name, how in layers.items() if name in there}))

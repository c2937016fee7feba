"""Weights that a file keeps in half precision are written in half precision again."""

import numpy as np
import onnx
import pytest
from helpers.models import error, normal, parse, run
from onnx import ModelProto, TensorProto, helper

from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import Geometry
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.graph.storage import bytes_per_weight, store, stored_types

RNG = np.random.default_rng(17)
FLOAT16, BFLOAT16 = TensorProto.FLOAT16, TensorProto.BFLOAT16


def half(*shape: int, scale: float = 0.1) -> np.ndarray:
    return (scale * normal(RNG, *shape)).astype(np.float16)


def network() -> ModelProto:
    """Return Convs, one with a BatchNorm behind it, and a MatMul, weights behind Casts, and one float32 Conv."""
    body = """g (float[N, 16, 8, 8] x, bool t) => (float[N, 24, 8, 8] y, float[N, 16, 8, 32] z, float[N, 24, 8, 8] q) {
        wa = Cast <to = 1> (ha)  wb = Cast <to = 1> (hb)  bb = Cast <to = 1> (hbb)  ti = Identity (hm)
        tt = Transpose <perm = [1, 0]> (ti)  wm = Cast <to = 1> (tt)
        a = Conv <pads = [1, 1, 1, 1]> (x, wa, bb)
        r = Relu (a)
        b = Conv <pads = [1, 1, 1, 1]> (r, wb)
        n = BatchNormalization (b, s, s, s, s)
        y = Conv (n, wc)
        z = MatMul (x, wm)
        wi = Cast <to = 1> (hi)
        i = Conv (n, wi)
        q = If (t) <then_branch = yes () => (float[N, 24, 8, 8] p) { p = Conv (n, wi) },
                    else_branch = no () => (float[N, 24, 8, 8] o) { o = Neg (i) }>
    }"""
    return parse(
        body, ha=half(16, 16, 3, 3), hb=half(16, 16, 3, 3), hbb=half(16), hm=half(32, 8), hi=half(24, 16, 1, 1),
        s=np.linspace(0.5, 1, 16, dtype=np.float32), wc=normal(RNG, 24, 16, 1, 1),
    )  # fmt: skip


def halves(model: ModelProto) -> dict[str, int]:
    """Return the sizes of the half-precision initializers."""
    return {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer if tensor.data_type == FLOAT16}


def feeds() -> dict[str, np.ndarray]:
    return {"x": normal(RNG, 2, 16, 8, 8), "t": np.array(True)}


def test_what_is_kept_is_stored_as_it_was() -> None:
    model = network()
    normalised, types = normalise(model), stored_types(model)
    stored = store(normalised, types)
    onnx.checker.check_model(stored, full_check=True)
    assert halves(normalised) == {}
    assert sorted(halves(stored).values()) == [32 * 8, 16 * 16 * 9, 16 * 16 * 9]  # not what the If reads
    assert stored.ByteSize() < 0.65 * normalised.ByteSize()
    given = feeds()
    for actual, wanted in zip(run(stored, **given), run(model, **given), strict=True):
        assert error(actual, wanted) <= 1e-3
    constants = {tensor.name: tensor for tensor in stored.graph.initializer}
    first = next(node for node in stored.graph.node if node.name == "n_a")
    cast = next(node for node in stored.graph.node if first.input[1] in node.output)
    was = next(tensor for tensor in model.graph.initializer if tensor.name == "ha")
    assert constants[cast.input[0]].raw_data == was.raw_data


def test_factors_are_stored_as_the_weights_were() -> None:
    model = network()
    normalised = normalise(model)
    layers = find_layers(normalised)
    by_name = {layer.name: layer for layer in layers}
    point = Geometry.pointwise(2)
    chains = {
        name: Chain(
            (
                Step("thin", np.ascontiguousarray(by_name[name].weight[:12]), by_name[name].geometry),
                Step("wide", 0.1 * normal(RNG, by_name[name].outputs, 12, 1, 1), point),
            ),
            normal(RNG, by_name[name].outputs),
        )
        for name in ("n_a", "n_y")
    }
    rewritten = rewrite(normalised, layers, chains)
    stored = store(rewritten, stored_types(model))
    onnx.checker.check_model(stored, full_check=True)
    written = [name for name in halves(stored) if "/lowrank/" in name]
    assert written == ["n_a/lowrank/thin.weight/stored"]  # the other factor is small, and n_y was in float32
    given = feeds()
    for actual, wanted in zip(run(stored, **given), run(rewritten, **given), strict=True):
        assert error(actual, wanted) <= 1e-3
    assert (bytes_per_weight(stored_types(model), "n_a"), bytes_per_weight(stored_types(model), "n_y")) == (2, 4)


@pytest.mark.parametrize("scale", [1e6, 1e-8, np.inf])
def test_numbers_out_of_range_stay_float32(scale: float) -> None:
    model = network()
    normalised, types = normalise(model), stored_types(model)
    weight = next(tensor for tensor in normalised.graph.initializer if tensor.name == "wa")
    values = onnx.numpy_helper.to_array(weight) * np.float32(scale)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "wa"))
    kept = {tensor.name: tensor for tensor in store(normalised, types).graph.initializer}
    assert kept["wa"] == weight
    assert len(halves(store(normalised, types))) == 2


def test_bfloat16() -> None:
    """What was stored so is so again, to the bit."""
    bits = (normal(RNG, 24, 24).view(np.uint32) >> 16).astype(np.uint16)
    model = parse("g (float[N, 24] x) => (float[N, 24] y) { w = Cast <to = 1> (h)  y = MatMul (x, w) }")
    model.graph.initializer.append(helper.make_tensor("h", BFLOAT16, (24, 24), bits.tobytes(), raw=True))
    stored = store(normalise(model), stored_types(model))
    (weight,) = stored.graph.initializer
    assert weight.data_type == BFLOAT16
    assert weight.raw_data == bits.tobytes()


def test_other_networks_stay_the_same_object() -> None:
    model = parse("g (float[N, 24] x) => (float[N, 24] y) { y = MatMul (x, w) }", w=normal(RNG, 24, 24))
    assert stored_types(model) == {}
    assert store(model, {}) is model


def test_a_node_that_is_called_like_a_link_of_a_chain_is_none() -> None:
    lines = "w = Cast <to = 1> (h)  a = MatMul (x, w)  y = MatMul (a, v)"
    body = f"g (float[N, 24] x) => (float[N, 24] y) {{ {lines} }}"
    model = parse(body, h=half(24, 24), v=normal(RNG, 24, 24))
    model.graph.node[2].name = "n_a/lowrank/thin"
    normalised = normalise(model)
    own = {node.name for node in normalised.graph.node}
    assert list(halves(store(normalised, stored_types(model), own)).values()) == [24 * 24]

"""What is trained, and that nothing else of a network changes."""

import numpy as np
import onnx
import pytest
from helpers.models import constants_as_nodes, normal, parse, run
from helpers.pairs import CHAIN, pair
from onnx import TensorProto, helper, numpy_helper

from onnxlowrank.errors import OptionError, UnsupportedModelError
from onnxlowrank.tune.weights import chain_nodes, changed, trained_weights

RNG = np.random.default_rng(0)


def test_chains_are_the_nodes_that_the_original_has_not():
    original, optimised = pair()
    assert [node.name for node in chain_nodes(original, optimised)] == list(CHAIN)
    assert chain_nodes(original, original) == []


@pytest.mark.parametrize(
    ("mode", "weights"),
    [
        ("chains", {"wr", "wc", "b2"}),
        ("above", {"wf", "bf"}),
        ("all", {"w1", "b1", "wr", "wc", "b2", "wf", "bf"}),
    ],
)
def test_modes(mode, weights):
    found = trained_weights(*pair(), mode, ["y"])
    assert (set(found.weights), found.stopped_by) == (weights, ())


def test_what_the_outputs_do_not_depend_on_is_not_trained():
    original, optimised = pair()
    assert set(trained_weights(original, optimised, "all", ["d"]).weights) == {"w1", "b1", "wr", "wc", "b2"}


def test_nothing_to_train():
    original, optimised = pair()
    for mode in ("chains", "above"):
        with pytest.raises(OptionError, match=f"--tune {mode} has nothing to begin with"):
            trained_weights(original, original, mode, ["y"])
    with pytest.raises(OptionError, match="--tune above leaves nothing to train: the last layer is approximated"):
        trained_weights(original, optimised, "above", ["d"])


def test_an_operator_without_a_gradient_stops_what_is_in_front_of_it():
    original, optimised = pair()
    for model in (original, optimised):
        relu = next(node for node in model.graph.node if node.output[0] == "d")
        relu.op_type, relu.domain = "Relu7", "own"
    found = trained_weights(original, optimised, "all", ["y"])
    assert (set(found.weights), found.stopped_by) == ({"wf", "bf"}, ("Relu7 (node 'n_d')",))
    with pytest.raises(UnsupportedModelError, match=r"differentiate Relu7 \(node 'n_d'\), which all"):
        trained_weights(original, optimised, "chains", ["y"])


def test_weights_of_matrix_products_and_those_that_are_moved():
    model = parse(
        """g (float[N, 4] x) => (float[N, 3] y) {
            a = MatMul (x, v)
            b = Add (c, a)
            t = Transpose (u)
            h = Cast <to = 1> (t)
            d = MatMul (b, h)
            s = Mul (d, f)
            y = Add (s, g)
        }""",
        v=normal(RNG, 4, 5),
        c=normal(RNG, 5),
        u=normal(RNG, 3, 5).astype(np.float16),
        f=np.float32(2),
        g=normal(RNG, 3),
    )
    assert set(trained_weights(model, model, "all", ["y"]).weights) == {"v", "c", "u"}


def stored_in_fields(model: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, values.shape, values.ravel()))
        assert tensor.float_data
    return model


@pytest.mark.parametrize("stored", ["raw", "fields", "nodes"])
def test_only_values_change(stored):
    model = {"raw": lambda one: one, "fields": stored_in_fields, "nodes": constants_as_nodes}[stored](pair()[1])
    model.graph.initializer.append(numpy_helper.from_array(np.arange(3), "unused"))
    before = model.SerializeToString(deterministic=True)
    values = {"wr": normal(RNG, 8, 12, 3, 1), "bf": normal(RNG, 5)}
    found = changed(model, values)
    assert model.SerializeToString(deterministic=True) == before
    tensors = {one.name: one for one in found.graph.initializer}
    tensors |= {node.output[0]: node.attribute[0].t for node in found.graph.node if node.op_type == "Constant"}
    for name, wanted in values.items():
        np.testing.assert_array_equal(numpy_helper.to_array(tensors[name]), wanted)
    assert len(found.SerializeToString()) == len(model.SerializeToString())
    own = {one.name: one for one in model.graph.initializer}
    own |= {node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"}
    for name in values:
        tensors[name].CopyFrom(own[name])
    assert found.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_other_types_stay(kind):
    values = normal(RNG, 4, 3)
    for raw in (False, True):
        tensor = helper.make_tensor("w", kind, [4, 3], values.ravel())
        if raw:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), "w"))
        model = parse("g (float[N, 4] x) => (float[N, 3] y) { c = Cast <to = 1> (w)  y = MatMul (x, c) }")
        model.graph.initializer.append(tensor)
        found = changed(model, {"w": values + 1})
        assert found.graph.initializer[0].data_type == kind
        assert found.graph.initializer[0].HasField("raw_data") == raw
        x = np.eye(4, dtype=np.float32)
        np.testing.assert_allclose(run(found, x=x)[0], values + 1, rtol=1e-2)

"""Which networks draw random numbers from run to run, and what a seed does to them."""

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.models import parse
from onnx import helper

from onnxlowrank.graph.chance import random_nodes, with_seeds

X, Y = "float[N, 4] x", "float[N, 4] y"


def network(body, opset=17, **constants):
    return parse(f"g ({X}) => ({Y}) {{ {body} }}", opset=opset, **constants)


def in_session(model, count=2):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(None, {"x": np.ones((3, 4), np.float32)})[0] for _ in range(count)]


RANDOM = {
    "RandomNormalLike": "n = RandomNormalLike (x)  y = Add (x, n)",
    "RandomUniformLike": "n = RandomUniformLike (x)  y = Add (x, n)",
    "RandomNormal": "n = RandomNormal <shape = [3, 4]> ()  y = Add (x, n)",
    "RandomUniform": "n = RandomUniform <shape = [3, 4]> ()  y = Add (x, n)",
    "Multinomial": "n = Multinomial <sample_size = 4, dtype = 6> (x)  c = Cast <to = 1> (n)  y = Add (x, c)",
    "Bernoulli": "h = Mul (x, half)  y = Bernoulli (h)",
    "Dropout": "y = Dropout (x, half, training)",
}
CONSTANTS = {"half": np.float32(0.5), "training": np.array(True)}
STILL = {
    "a seed": "n = RandomNormalLike <seed = 3.0> (x)  y = Add (x, n)",
    "no training": "y = Dropout (x, half, inference)",
    "no training said": "y = Dropout (x, half)",
    "nothing dropped": "y = Dropout (x, zero, training)",
    "no such operator": "y = Relu (x)",
}


@pytest.mark.parametrize("op", RANDOM)
def test_networks_that_draw_are_known_and_a_seed_makes_them_repeat(op):
    model = network(RANDOM[op], **CONSTANTS)
    assert [node.op_type for node in random_nodes(model)] == [op]
    seeded = with_seeds(model, 5)
    assert not random_nodes(seeded)
    assert random_nodes(model), "the network given stays as it was"
    first, second = in_session(seeded), in_session(seeded)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(*first), "from one feed to the next the numbers still differ"


@pytest.mark.parametrize("what", STILL)
def test_networks_that_repeat_stay_as_they_are(what):
    constants = {**CONSTANTS, "inference": np.array(False), "zero": np.float32(0)}
    model = network(STILL[what], **constants)
    assert not random_nodes(model)
    assert with_seeds(model, 5) is model


def test_seeds_differ_from_node_to_node_and_with_the_seed():
    model = network("a = RandomNormalLike (x)  b = RandomNormalLike (x)  y = Sub (a, b)")
    one, other = (in_session(with_seeds(model, seed))[0] for seed in (0, 1))
    assert np.abs(one).min() > 0
    assert not np.array_equal(one, other)


def test_branches_and_functions_are_looked_into():
    inner = helper.make_graph(
        [helper.make_node("RandomNormalLike", ["x"], ["t"])], "then", [], [onnx.ValueInfoProto(name="t")]
    )
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["e"])], "else", [], [onnx.ValueInfoProto(name="e")])
    model = network("y = Relu (x)", yes=np.array(True))
    model.graph.node[0].CopyFrom(helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=other))
    assert len(random_nodes(model)) == 1
    assert not random_nodes(with_seeds(model, 0))

    called = network("y = Relu (x)")
    called.graph.node[0].CopyFrom(helper.make_node("noisy", ["x"], ["y"], domain="local"))
    called.opset_import.append(helper.make_opsetid("local", 1))
    body = [helper.make_node("RandomNormalLike", ["a"], ["b"])]
    called.functions.append(helper.make_function("local", "noisy", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    assert len(random_nodes(called)) == 1
    assert not random_nodes(with_seeds(called, 0))

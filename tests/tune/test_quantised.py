"""Int8 networks are trained as they compute: rounding and its gradient, integers that are trained, what stays."""

import numpy as np
import onnx
import pytest
from helpers.int8 import feeds_of, quantised
from helpers.models import constants_as_nodes, normal, parse, residual_block, run
from helpers.pairs import pair, samples
from helpers.tuning import distance, tuned
from onnx import TensorProto, helper, numpy_helper

import onnxlowrank
from onnxlowrank.errors import UnsupportedModelError
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.measure.hardware import adds_int8_exactly
from onnxlowrank.tune.checks import check_same
from onnxlowrank.tune.network import _COMPUTED, OPERATORS, TorchNetwork
from onnxlowrank.tune.options import TuneOptions
from onnxlowrank.tune.quantised import bounds_of, rounded
from onnxlowrank.tune.split import split
from onnxlowrank.tune.student import Student
from onnxlowrank.tune.terms import hint_pairs
from onnxlowrank.tune.weights import chain_nodes, trained_weights

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(4)
KINDS = {
    "uint8": {"s": np.float32(2**-5), "z": np.uint8(91)},
    "int8": {"s": np.float32(2**-6), "z": np.int8(-3)},
    "a map each": {"s": np.float32([2**-7, 2**-6, 2**-4]), "z": np.array([128, 3, 250], np.uint8)},
    "no zero point": {"s": np.float32(2**-5)},
}
"""Of scales whose ties are ties in both."""


BITS = [7, pytest.param(8, marks=pytest.mark.skipif(not adds_int8_exactly(), reason="this processor has no VNNI"))]


def int8_pair(bits=7):
    """Return an original network, and one with a noisy chain as int8; 7 bits are exact on any processor."""
    original, optimised = pair()
    return original, quantised(optimised, samples(32), weight_bits=bits)


def integers(model):
    found = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    return {name: one for name, one in found.items() if one.dtype in (np.int8, np.int32) and "zero_point" not in name}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [False, True])
def test_rounding_as_onnxruntime_does_it(kind, whole):
    """With what is between the two computed too, they are two; otherwise they are one."""
    constants = KINDS[kind]
    z = ", z" if "z" in constants else ""
    model = parse(
        "g (float[2, 3, 40] x) => (float[2, 3, 40] y) "
        f"{{ q = QuantizeLinear (x, s{z})  y = DequantizeLinear (q, s{z}) }}",
        **constants,
    )
    x = 4 * normal(RNG, 2, 3, 40)
    x.ravel()[:6] = np.resize(constants["s"], 6) * np.array([0.5, 1.5, -0.5, -1.5, 200.5, -300])
    found = TorchNetwork(model, model.graph.node, [], ["q", "y"] if whole else ["y"], "cpu").run({"x": x})
    np.testing.assert_array_equal(found["y"].numpy(), run(model, x=x)[0])


@pytest.mark.parametrize("kind", ["uint8", "a map each"])
def test_rounding_has_the_gradient_of_what_it_rounds_and_none_outside_the_range(kind):
    model = parse(
        "g (float[1, 3, 5] x) => (float[1, 3, 5] y) { q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, s, z) }",
        **KINDS[kind],
    )
    s, z = (np.resize(one, 3)[:, None].astype(np.float32) for one in KINDS[kind].values())
    low, high = -z * s, (255 - z) * s
    x = np.concatenate([low - 1.1 * s, low + 0.2 * s, np.zeros_like(s), high - 0.2 * s, high + 1.1 * s], axis=1)[None]
    values = torch.from_numpy(x).requires_grad_(True)
    TorchNetwork(model, model.graph.node, [], ["y"], "cpu").run({"x": values})["y"].sum().backward()
    np.testing.assert_allclose(values.grad.numpy(), np.broadcast_to([0, 1, 1, 1, 0], (1, 3, 5)), atol=1e-6)


def test_integers_that_are_trained_stay_between_their_bounds():
    steps = torch.tensor([-80.0, -1.4, 0.6, 63.6, 70.0], requires_grad=True)
    found = rounded(steps, (-64, 64))
    assert found.tolist() == [-64, -1, 1, 64, 64]
    (2 * found).sum().backward()
    assert steps.grad.tolist() == [2] * 5
    assert steps.tolist() == pytest.approx([-64, -1.4, 0.6, 63.6, 64])


def test_bounds_are_those_of_the_network():
    for bits, largest in ((8, 127), (7, 64)):
        bounds = bounds_of(int8_pair(bits)[1])
        weights = {name: one for name, one in bounds.items() if "bias" not in name and name[0] == "w"}
        assert set(weights.values()) == {(-largest, largest)}
        assert bounds["b1_quantized"] == (-(2**31) + 128, 2**31 - 128)


@pytest.mark.parametrize(
    ("mode", "weights"),
    [
        ("chains", {"wr", "wc", "b2"}),
        ("above", {"wf", "bf"}),
        ("all", {"w1", "b1", "wr", "wc", "b2", "wf", "bf"}),
    ],
)
def test_modes_know_layers_behind_their_pairs(mode, weights):
    original, optimised = int8_pair()
    found = trained_weights(original, optimised, mode, ["y"])
    assert {name.partition("_quantized")[0].partition("/")[0] for name in found.weights} == weights
    assert found.stopped_by == ()


def test_hints_are_compared_behind_their_rounding():
    original, optimised = int8_pair()
    trained = trained_weights(original, optimised, "all", ["y"])
    names = dict(hint_pairs(original, optimised, trained, ["y"]))
    assert set(names.values()) == {"q", "b"}
    assert all(name.endswith("DequantizeLinear_Output") for name in names)


def test_pytorch_computes_what_onnxruntime_does():
    original, optimised = int8_pair()
    trained = trained_weights(original, optimised, "all", ["y"]).weights
    student = Student(optimised, trained, ["y"], "cpu")
    x = np.concatenate([one["x"] for one in samples(32)])
    expected = run(optimised, x=x)[0]
    with torch.no_grad():
        found = student.run({"x": x})["y"].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    again = student.model(student.values())
    assert again.SerializeToString(deterministic=True) == optimised.SerializeToString(deterministic=True)


MIXED = """g (float[N, 4, 8, 8] x) => (float[N, 5] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  r = Clip (a, low, high)
    m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  c = Conv <group = 2> (m, w2)
    j = Concat <axis = 1> (c, m)  v = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (j)
    s = Add (v, k)  f = Flatten (s)  h = MatMul (f, w3)  i = Add (h, b3)  o = Relu (i)
    y = Gemm <transB = 1> (o, w4, b4)
}"""


def kinds_of_layers():
    weights = {"w1": (8, 4, 3, 3), "b1": (8,), "w2": (8, 4, 1, 1), "k": (16, 1, 1), "w3": (64, 12), "b3": (12,)}
    constants = {name: normal(RNG, *shape) / 4 for name, shape in (weights | {"w4": (5, 12), "b4": (5,)}).items()}
    return parse(MIXED, low=np.float32(0), high=np.float32(1.5), **constants)


@pytest.mark.parametrize("name", ["several kinds", "residual"])
def test_every_kind_of_layer_agrees_with_onnxruntime(name):
    model = kinds_of_layers() if name == "several kinds" else normalise(residual_block())
    x = normal(RNG, 8, 4, 8, 8)
    optimised = quantised(model, feeds_of(x), weight_bits=7)
    trained = trained_weights(model, optimised, "all", ["y"])
    names = {one.removesuffix("_quantized") for one in trained.weights}
    wanted = {"w1", "b1", "w2", "w3", "b3", "w4", "b4"} if name == "several kinds" else {"wf", "bf"}
    assert names >= wanted
    assert len(names) >= 6
    feeds = [{"x": one[None]} for one in x]
    check_same(optimised, Student(optimised, trained.weights, ["y"], "cpu"), feeds)


def test_another_result_than_onnxruntimes_is_refused(monkeypatch):
    """It is looked for from one rounding to the next, since one that is off puts the others off as well."""
    original, optimised = int8_pair()
    compute = OPERATORS["Conv"]
    monkeypatch.setitem(_COMPUTED, "Conv", lambda call, x: 1.02 * compute(call, x))
    with pytest.raises(UnsupportedModelError, match=r"something else for tensor 'b_\w+' of OPTIMISED than onnxruntime"):
        tuned(original, optimised, samples())


@pytest.mark.parametrize("bits", BITS)
def test_it_gains_and_only_integers_change(bits):
    original, optimised = int8_pair(bits)
    before = optimised.SerializeToString(deterministic=True)
    found = tuned(original, optimised, samples(), steps=40)
    assert found.is_better
    assert "b_DequantizeLinear_Output" in found.hints
    unseen = samples(200)[96:]
    assert distance(original, found.model, unseen) < 0.9 * distance(original, optimised, unseen)
    old, new = integers(optimised), integers(found.model)
    assert {name for name in old if (old[name] != new[name]).any()} == set(found.trained.weights)
    assert max(np.abs(one).max() for one in new.values() if one.dtype == np.int8) <= (127 if bits == 8 else 64)
    for tensor in found.model.graph.initializer:
        if tensor.name in old:
            tensor.CopyFrom(numpy_helper.from_array(old[tensor.name], tensor.name))
    for tensor, given in zip(found.model.graph.initializer, optimised.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(given))
        tensor.CopyFrom(given)
    assert found.model.SerializeToString(deterministic=True) == before


def test_rounding_in_front_of_what_is_trained_is_compared_step_by_step_too():
    original, optimised = int8_pair()
    trained = trained_weights(original, optimised, "above", ["y"]).weights
    student = Student(optimised, trained, ["y"], "cpu")
    assert student.rounds
    compute = student.run
    student.run = lambda feeds: {name: 1.05 * one for name, one in compute(feeds).items()}
    check_same(optimised, student, [samples(4)[0]])
    assert set(tuned(original, optimised, samples(), steps=4, tune="above").trained.weights) == set(trained)


def test_figures_are_those_of_the_int8_networks_in_onnxruntime():
    original, optimised = int8_pair()
    inputs = samples()
    found = tuned(original, optimised, inputs, steps=15)
    x = np.concatenate([one["x"] for one in split(original, inputs).held_out])
    wanted, was, became = (run(one, x=x)[0].astype(np.float64) for one in (original, optimised, found.model))
    squares = [((y - wanted) ** 2).mean() for y in (was, became)]
    assert squares[1] < squares[0]
    assert found.figures[1] / found.figures[0] == pytest.approx(squares[1] / squares[0], rel=1e-3)


def test_nothing_worse_is_returned_though_pytorch_finds_it_better(monkeypatch):
    """What onnxruntime computes counts: here weights that the student never has are written."""
    original, optimised = int8_pair()
    write = Student.model
    monkeypatch.setattr(
        Student, "model", lambda self, values: write(self, {name: 0 * one for name, one in values.items()})
    )
    found = tuned(original, optimised, samples(), steps=8)
    assert not found.is_better
    assert found.figures[0] == found.figures[1]
    assert found.model.SerializeToString() == optimised.SerializeToString()


def test_equal_steps_and_seeds_give_equal_networks():
    networks = int8_pair()
    first, again, other = (tuned(*networks, samples(48), steps=6, seed=seed).model for seed in (3, 3, 4))
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert first.SerializeToString(deterministic=True) != other.SerializeToString(deterministic=True)


@pytest.mark.parametrize("stored", ["fields", "nodes"])
def test_integers_wherever_they_are_stored(stored):
    original, optimised = int8_pair()
    if stored == "nodes":
        optimised = constants_as_nodes(optimised)
    else:
        for tensor in optimised.graph.initializer:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.ravel().tolist()))
    found = tuned(original, optimised, samples(), steps=12)
    assert found.is_better
    assert len(found.trained.weights) == 7
    onnx.checker.check_model(found.model)


def test_other_quantised_networks_are_refused(tmp_path):
    original, optimised = int8_pair()
    other = parse(
        """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            q, s, z = DynamicQuantizeLinear (x)  d = DequantizeLinear (q, s, z)  p = GlobalAveragePool (d)
            f = Flatten (p)  y = Gemm <transB = 1> (f, w)
        }""",
        w=normal(RNG, 5, 3),
    )
    with pytest.raises(UnsupportedModelError, match=r"is a DynamicQuantizeLinear.*one that --precision int8 made"):
        onnxlowrank.finetune(original, other, data=samples(), steps=2)
    weight = next(one for one in optimised.graph.initializer if one.name.startswith("wf"))
    for suffix in ("quantized", "zero_point"):
        one = next(tensor for tensor in optimised.graph.initializer if tensor.name == f"wf_{suffix}")
        one.CopyFrom(helper.make_tensor(one.name, TensorProto.INT4, one.dims, np.zeros(one.dims, int).ravel().tolist()))
    optimised.opset_import[0].version = 21
    with pytest.raises(UnsupportedModelError, match=f"PyTorch has no type for tensor '{weight.name}'"):
        onnxlowrank.finetune(original, optimised, data=samples(), steps=2)


def test_no_chain_is_seen_where_layers_are_only_quantised():
    original, _ = pair()
    assert {node.op_type for node in chain_nodes(original, quantised(original, samples(32)))} >= {"QuantizeLinear"}
    with pytest.raises(onnxlowrank.OptionError, match="--tune chains has nothing to begin with; use --tune all"):
        trained_weights(original, quantised(original, samples(32)), "chains", ["y"])
    TuneOptions(tune="all", steps=1).check()

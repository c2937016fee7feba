"""Weights and biases that take back what rounding does to responses."""

import numpy as np
import onnx
import pytest
from helpers.int8 import feeds_of, mean_of_maps, quantised, ranges_of, responses, small_network
from helpers.models import normal, parse
from onnx import numpy_helper

from onnxlowrank.decompose.activation import IDENTITY, RELU
from onnxlowrank.decompose.bias_shift import bias_shift
from onnxlowrank.quantize import forward
from onnxlowrank.quantize.int8_layers import int8_layers
from onnxlowrank.quantize.qdq import quantise
from onnxlowrank.quantize.ranges import percentile
from onnxlowrank.quantize.refit import refitted


def nothing(amount):
    pass


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(6)
    model, x = small_network(rng), normal(rng, 64, 8, 8, 8) + 0.3
    inputs = feeds_of(x)
    return model, x, inputs, quantised(model, inputs)


@pytest.mark.parametrize("weights", [False, True])
def test_the_means_that_are_read_are_those_of_the_float32_network(case, weights):
    model, x, inputs, int8 = case
    before, done = int8.SerializeToString(), []
    corrected = refitted(model, int8, inputs, 8, done.append, weights)
    assert int8.SerializeToString() == before
    assert abs(sum(done) - 1) < 1e-9
    names = ["n_a", "n_c", "n_y"]
    wanted, moved, found = (
        [
            mean_of_maps(behind(value))
            for behind, value in zip((RELU, IDENTITY, IDENTITY), responses(one, x, names), strict=True)
        ]
        for one in (model, int8, corrected)
    )
    constants = {one.name: one for one in corrected.graph.initializer}
    for number, name in enumerate(("b1", "b2", "b3")):
        step = np.frombuffer(constants[f"{name}_quantized_scale"].raw_data, np.float32)
        assert np.all(np.abs(found[number] - wanted[number]) <= 0.51 * step + 1e-4)
    assert np.abs(moved[1] - wanted[1]).max() > 10 * np.abs(found[1] - wanted[1]).max()


def test_biases_are_those_found_by_running_the_whole_network_for_every_layer(case):
    model, x, inputs, int8 = case
    slow = onnx.ModelProto()
    slow.CopyFrom(int8)
    for layer in int8_layers(slow):
        wanted, found = (
            np.moveaxis(value, 1, -1).reshape(-1, value.shape[1])
            for one in (model, slow)
            for value in responses(one, x, [layer.node.name])
        )
        behind = RELU if layer.node.name == "n_a" else IDENTITY
        layer.bias.CopyFrom(layer.with_bias(bias_shift(behind, wanted, found)))
    fast = refitted(model, int8, inputs, 8, nothing, weights=False)
    for one, other in zip(slow.graph.initializer, fast.graph.initializer, strict=True):
        assert one.name == other.name
        assert np.abs(numpy_helper.to_array(one).astype(float) - numpy_helper.to_array(other)).max() <= 1


@pytest.mark.parametrize("shortcut", [False, True])
def test_errors_that_a_relu_hides_move_no_bias(shortcut):
    """Where a few large inputs are clipped, far below zero, what is read behind the activation is not worse for it."""
    rng = np.random.default_rng(3)
    model = parse(
        f"""g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{
            a = Conv (x, w1, b1)
            {"s = Add (a, x)  r = Relu (s)" if shortcut else "r = Relu (a)"}
            y = Conv (r, w2, b2)
        }}""",
        w1=-np.abs(normal(rng, 4, 4, 1, 1)),
        b1=np.abs(normal(rng, 4)),
        w2=normal(rng, 4, 4, 1, 1),
        b2=normal(rng, 4),
    )
    x = np.abs(normal(rng, 64, 4, 8, 8)) / 4
    x[:, :, ::4, ::4] *= 40
    inputs = feeds_of(x)
    clipped = ranges_of(model, inputs, percentile)
    int8 = quantise(model, clipped)
    moved = refitted(model, int8, inputs, 8, nothing, weights=False)
    name = "n_s" if shortcut else "n_a"
    wanted, before, after = (RELU(responses(one, x, [name])[0]) for one in (model, int8, moved))
    assert np.square(after - wanted).sum() <= np.square(before - wanted).sum()
    assert mean_of_maps(after) == pytest.approx(
        mean_of_maps(wanted), abs=0.02 if shortcut else 0.002
    )  # an Add reads rounded ones


def deep(rng, depth):
    lines = [f"h{i + 1} = Conv <pads = [1, 1, 1, 1]> (h{i}, w{i}, b{i})" for i in range(depth)]
    lines.append(f"y = Relu (h{depth})")
    constants = {f"w{i}": normal(rng, 4, 4, 3, 3) * 0.2 for i in range(depth)}
    constants |= {f"b{i}": normal(rng, 4) for i in range(depth)}
    return parse("g (float[N, 4, 8, 8] h0) => (float[N, 4, 8, 8] y) { " + "\n".join(lines) + " }", **constants)


def test_the_work_is_linear_in_the_depth(monkeypatch):
    """No node is run more often than three times a feed, however deep it is."""
    rng = np.random.default_rng(8)
    model, x = deep(rng, 12), normal(rng, 8, 4, 8, 8)
    inputs = feeds_of(x)
    renamed = type(inputs)(lambda index: {"h0": inputs[index]["x"]}, len(inputs), inputs.batch, "random numbers")
    int8 = quantised(model, renamed)
    opened, convolutions = [], []

    def count(part, target):
        opened.append(part)
        convolutions.append(sum(node.op_type == "Conv" for node in part.graph.node))
        return real(part, target)

    real = forward.open_session
    monkeypatch.setattr(forward, "open_session", count)
    refitted(model, int8, renamed, 8, nothing)
    assert len(opened) <= 2 * 12
    assert sum(convolutions) <= 2 * 12


def test_weights_give_responses_closer_to_those_of_the_float32_network(case):
    model, _, inputs, _ = case
    rng = np.random.default_rng(11)
    mixing = normal(rng, 8, 4) * np.array([1, 1, 0.1, 0.05], np.float32)  # maps that say nearly the same
    x = np.einsum("ij,njhw->nihw", mixing, normal(rng, 64, 4, 8, 8)).astype(np.float32)
    inputs = feeds_of(x)
    int8 = quantised(model, inputs, weight_bits=7)
    wanted, *_ = responses(model, x, ["n_c"])
    biases = refitted(model, int8, inputs, 7, nothing, weights=False)
    weights = refitted(model, int8, inputs, 7, nothing)
    lost = [np.square(responses(one, x, ["n_c"])[0] - wanted).mean() for one in (int8, biases, weights)]
    assert lost[2] < 0.9 * lost[1] < 0.9 * lost[0]
    largest = [np.abs(numpy_helper.to_array(one.weight).astype(int)).max() for one in int8_layers(weights)]
    assert max(largest) <= 64


def test_layers_without_a_bias_stay_or_are_rounded_anew():
    rng = np.random.default_rng(7)
    model = parse("g (float[N, 6] x) => (float[N, 5] y) { y = MatMul (x, w) }", w=normal(rng, 6, 5))
    inputs = feeds_of(normal(rng, 64, 6) @ normal(rng, 6, 6) + 1, batch=8)
    int8 = quantised(model, inputs)
    assert refitted(model, int8, inputs, 8, nothing, weights=False) == int8
    anew = refitted(model, int8, inputs, 8, nothing)
    (before,), (after,) = (int8_layers(one) for one in (int8, anew))
    assert before.steps.tolist() == after.steps.tolist()
    moved = numpy_helper.to_array(before.weight).astype(int) - numpy_helper.to_array(after.weight)
    assert 0 < np.abs(moved).max() <= 3


def test_a_weight_that_two_layers_share_stays():
    rng = np.random.default_rng(12)
    model = parse(
        """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
            a = Conv (x, w, b)
            r = Relu (a)
            y = Conv (r, w, b)
        }""",
        w=normal(rng, 4, 4, 1, 1),
        b=normal(rng, 4),
    )
    inputs = feeds_of(normal(rng, 16, 4, 8, 8))
    int8 = quantised(model, inputs)
    found = refitted(model, int8, inputs, 8, nothing)
    for one, other in zip(int8.graph.initializer, found.graph.initializer, strict=True):
        if one.data_type == onnx.TensorProto.INT8:
            assert one == other


def test_the_last_link_of_a_chain_is_fitted_to_the_float32_response():
    """Of inner maps that are rounded coarsely, some are worth more than others: ridge regression tells."""
    rng = np.random.default_rng(13)
    model = parse(
        """g (float[N, 6, 8, 8] x) => (float[N, 8, 8, 8] y) {
            a = Conv (x, w, b1)
            c = Conv (a, v, b2)
            y = Relu (c)
        }""",
        w=normal(rng, 6, 6, 1, 1) * np.array([1, 1, 1, 1, 0.01, 0.01], np.float32)[:, None, None, None],
        b1=np.zeros(6, np.float32),
        v=normal(rng, 8, 6, 1, 1) * np.array([1, 1, 1, 1, 50, 50], np.float32)[None, :, None, None],
        b2=normal(rng, 8),
    )
    x = normal(rng, 64, 6, 8, 8)
    inputs = feeds_of(x)
    lost = {}
    for last in ("n_c", "n_a/lowrank/outputs"):
        model.graph.node[1].name = last
        found = refitted(model, quantised(model, inputs), inputs, 8, nothing)
        wanted, got = (responses(one, x, [last])[0] for one in (model, found))
        lost[last] = np.square(got - wanted).mean()
    assert lost["n_a/lowrank/outputs"] < 0.9 * lost["n_c"]

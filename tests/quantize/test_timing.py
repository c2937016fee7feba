"""Int8 layers and chains on the stopwatch: what onnxruntime fuses is found again, float32 times are no answer."""

import numpy as np
import pytest
from helpers.models import normal, parse

from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.cache import Cache
from onnxlowrank.measure.chain_timer import ChainTimer
from onnxlowrank.measure.lowerings import Lowerings
from onnxlowrank.measure.node_times import profile
from onnxlowrank.measure.sessions import Target
from onnxlowrank.passes import load_passes
from onnxlowrank.passes.base import keep
from onnxlowrank.plan import network as network_module
from onnxlowrank.plan.network import INT8_SUBJECT, Network
from onnxlowrank.progress import Silent
from onnxlowrank.quantize.int8 import int8_of


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Return Conv-ReLU-Conv + shortcut-ReLU-pool-Conv-MatMul-Add, to be int8."""
    rng = np.random.default_rng(4)
    model = parse(
        """g (float[N, 3, 24, 24] x) => (float[N, 10] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba)
            ar = Relu (a)
            b = Conv <pads = [1, 1, 1, 1]> (ar, wb, bb)
            s = Add (b, ar)
            sr = Relu (s)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (sr)
            c = Conv <pads = [1, 1, 1, 1]> (p, wc, bc)
            q = GlobalAveragePool (c)
            f = Flatten (q)
            m = MatMul (f, wf)
            y = Add (m, bf)
        }""",
        wa=normal(rng, 64, 3, 3, 3),
        ba=normal(rng, 64),
        wb=normal(rng, 64, 64, 3, 3),
        bb=normal(rng, 64),
        wc=normal(rng, 64, 64, 3, 3),
        bc=normal(rng, 64),
        wf=normal(rng, 64, 10),
        bf=normal(rng, 10),
    )
    x = [normal(rng, 1, 3, 24, 24) for _ in range(4)]
    inputs = Inputs(lambda index: {"x": x[index]}, 4, 1, "random numbers")
    layers = with_shapes(model, find_layers(model), inputs)
    passes = {one.name: one for one in load_passes(["channel"])}
    applicable = {layer.name: passes for layer in layers}
    times = Cache(tmp_path_factory.mktemp("times"))
    int8 = int8_of(model, layers, inputs, (), 8, Silent())
    lowering = Lowerings(None)
    return Network(model, model, layers, applicable, lowering, inputs[0], Target(), times=times, int8=int8)


def test_fused_int8_nodes_are_those_of_the_network(network):
    found = {part.op: part.node for part in profile(network.dense, network.feeds, Target(), 0.05)}
    assert found["QLinearConv"] == "n_c"
    assert found["QLinearAdd"] in ("n_s", "n_y")
    assert found["NhwcMaxPool"] == "n_p"


def test_layers_and_chains_are_told_inside_the_int8_network(network):
    inside, whole = network.dense_times
    assert set(inside) == {layer.name for layer in network.layers}
    assert sum(inside.values()) <= whole
    second = network.layers[1]
    plan = {layer.name: keep(layer) for layer in network.layers}
    plan[second.name] = load_passes(["channel"])[0].candidate(second, (16,), 0.9)
    chains = network.outlines(plan)
    (times,) = network.chain_times([chains])
    assert set(times) == {second.name}
    assert any(node.op_type == "DequantizeLinear" for node in network.outline(plan).graph.node)
    float32 = Network(
        network.original, network.model, network.layers, network.applicable, network.lowering, network.feeds, Target(),
        times=network.times,
    )  # fmt: skip
    remembered = len(network.times.entries())
    float32.chain_times([chains])
    assert len(network.times.entries()) > remembered  # what was measured in int8 is no time of float32


def test_the_whole_is_the_original_and_what_is_kept_is_int8(network, monkeypatch):
    monkeypatch.setattr(network_module, "_DENSE_S", 0.1)
    _, whole = network.dense_times
    assert network.dense is not network.model
    assert network.original_time > 0
    assert network.original_time != whole


def test_chains_alone_are_timed_as_int8(network, tmp_path):
    timer = ChainTimer(Target(), Cache(tmp_path), network.int8.outline, INT8_SUBJECT)
    timing = timer.milliseconds(network.layers[1], None)
    assert timing.ms > 0
    (key,) = Cache(tmp_path).entries()
    assert '"precision":"int8"' in key

"""Networks of few maps, odd kernels and single positions, odd layers, and numbers at the ends of float32."""

import math

import numpy as np
import onnx
import pytest
from helpers.models import constants_as_nodes, conv_model, error, normal, parse, run
from helpers.stopwatch import no_stopwatch
from onnx import TensorProto, helper, numpy_helper

from onnxlowrank import analyze, compare, optimize, profile
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.verify import fed
from onnxlowrank.options import SELECTIONS
from onnxlowrank.passes import load_passes
from onnxlowrank.plan.manual_ranks import ManualRank

RNG = np.random.default_rng(41)
PASSES = load_passes()
FEW = [(c, f) for c in (1, 2, 3) for f in (1, 2, 3)]
SOME = [(1, 1)]
"""Of these, what every run of the tests looks at."""
few_maps = pytest.mark.parametrize(
    ("channels", "filters"), [pytest.param(*one, marks=() if one in SOME else pytest.mark.slow) for one in FEW]
)


def slow_but(cases, *some):
    """Return the cases of a test, of which the default run of the tests takes some."""
    return [pytest.param(case, marks=() if case in some else pytest.mark.slow) for case in cases]


SIZE = 7


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    no_stopwatch(monkeypatch, block=1)


def decaying(*shape: int) -> np.ndarray:
    """Return a weight whose singular values fall fast."""
    u, s, v = np.linalg.svd(RNG.standard_normal(shape).reshape(shape[0], -1), full_matrices=False)
    return ((u * s * 0.6 ** np.arange(len(s))) @ v).reshape(shape).astype(np.float32)


def branches(channels: int, filters: int, axes: int) -> onnx.ModelProto:
    """Return convolutions of one input: kernels of one tap, along one axis, even, of the whole input; long strides."""
    kernels = {
        1: [(1,), (2,), (3,), (SIZE,)],
        2: [(1, 1), (1, 3), (3, 1), (2, 2), (3, 3), (4, 2), (SIZE, SIZE)],
    }[axes]
    nodes, weights, outputs = [], [], []
    for strides in ([1] * axes, [4] * axes):
        for kernel in kernels:
            name = f"c{len(nodes)}"
            weights.append(numpy_helper.from_array(normal(RNG, filters, channels, *kernel), f"{name}.w"))
            nodes.append(helper.make_node("Conv", ["x", f"{name}.w"], [name], name=name, strides=strides))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", filters, *[None] * axes]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, *[SIZE] * axes])
    graph = helper.make_graph(nodes, "branches", [x], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("axes", [1, 2])
@few_maps
def test_few_maps(channels, filters, axes):
    model, x = branches(channels, filters, axes), normal(RNG, 4, channels, *[SIZE] * axes)
    for selection in sorted(SELECTIONS):
        result = optimize(model, speedup=2, target="macs", calibration=x, selection=selection)
        assert all(layer.kept_because or layer.method != "keep" for layer in result.layers)
        assert result.reached == (result.macs_speedup >= 2)


@pytest.mark.parametrize("axes", [1, 2])
@few_maps
@pytest.mark.parametrize("method", PASSES, ids=lambda one: one.name)
def test_every_pass_by_hand(method, channels, filters, axes):
    """Of rank 1, and of its largest ranks, which give the network back where a pass can."""
    model, x = branches(channels, filters, axes), normal(RNG, 4, channels, *[SIZE] * axes)
    suited = [layer for layer in find_layers(model) if layer.op in method.ops and method.refusal(layer) is None]
    for ranks, metric in ((lambda layer: [1] * len(method.rank_names), "frobenius"), (method.limits, "data")):
        by_hand = {layer.name: ManualRank(tuple(ranks(layer)), method=method.name) for layer in suited}
        result = optimize(model, max_macs=1, calibration=x, ranks=by_hand, metric=metric, passes=[method.name])
        assert {layer.name for layer in result.layers if layer.method == method.name} >= by_hand.keys()
        assert all(np.isfinite(value).all() for value in run(result.model, x=x[:1]))
    approximate = method.name == "monochromatic" or "bicluster" in method.name  # at any rank
    whole = set() if approximate else {layer.output for layer in suited}
    names = [output.name for output in model.graph.output]
    for name, one, other in zip(names, run(model, x=x[:1]), run(result.model, x=x[:1]), strict=True):
        assert name not in whole or error(other, one) < 2e-2


@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (1, 2), (2, 1)])
def test_single_positions(channels, filters):
    """Convolutions over one position, padded or not."""
    for pads in ([0] * 4, [1] * 4, [3, 0, 0, 2]):
        kernel = (1 + min(pads[0] + pads[2], 2), 1 + min(pads[1] + pads[3], 2))
        model = conv_model(normal(RNG, filters, channels, *kernel), normal(RNG, filters), pads=pads)
        result = optimize(model, speedup=2, target="macs", calibration=normal(RNG, 6, channels, 1, 1))
        assert result.model.graph.output[0].name == "y"


@pytest.mark.parametrize(("inputs", "outputs"), FEW)
def test_small_matrices(inputs, outputs):
    model = parse(
        f"g (float[N, {inputs}] x) => (float[N, {outputs}] y) {{ m = MatMul (x, w) y = Add (m, b) }}",
        w=normal(RNG, inputs, outputs),
        b=normal(RNG, outputs),
    )
    result = optimize(model, max_macs=0.5, calibration=normal(RNG, 8, inputs), ranks={"n_m": (1,)})
    assert result.layers[0].method == "fully_connected"
    assert optimize(model, max_macs=0.5, calibration=normal(RNG, 8, inputs)).layers


@pytest.mark.parametrize(("channels", "filters"), [(1, 1), pytest.param(1, 16, marks=pytest.mark.slow)])
def test_studies_of_few_maps(channels, filters):
    model, x = branches(channels, filters, 2), normal(RNG, 4, channels, SIZE, SIZE)
    assert len(analyze(model, calibration=x).layers) == len(model.graph.node)
    assert profile(model, inputs=x, seconds=0.05).nodes
    rewritten = optimize(model, speedup=1.1, target="macs", calibration=x).model
    assert len(compare([model, rewritten], inputs=x, seconds=0.05).facts) == 2


# What is no layer, or not one of ours


def test_odd_products_are_kept_and_the_others_done():
    model = parse(
        """g (float[N, 64] x) => (float[N, 32] y, float[N] vector, float[N, 0] nothing, float[3, N, 5] many) {
            m = MatMul (x, w)
            r = Relu (m)
            y = MatMul (r, head)
            vector = MatMul (r, v)
            nothing = MatMul (r, empty)
            many = MatMul (r, three)
        }""",
        w=decaying(64, 64),
        head=decaying(64, 32),
        v=normal(RNG, 64),
        empty=np.zeros((64, 0), np.float32),
        three=normal(RNG, 3, 64, 5),
    )
    assert [layer.name for layer in find_layers(model)] == ["n_m", "n_y"]
    x = normal(RNG, 64, 64)
    result = optimize(model, max_macs=3000, calibration=x)
    assert "fully_connected" in {layer.method for layer in result.layers}
    for one, other in zip(run(model, x=x), run(result.model, x=x), strict=True):
        assert one.shape == other.shape


def test_a_product_with_one_axis_is_kept():
    model = parse(
        """g (float[1, 64] x) => (float[32] y) {
            m = MatMul (x, w)
            r = Relu (m)
            flat = Reshape (r, minus_one)
            y = MatMul (flat, head)
        }""",
        w=decaying(64, 64),
        head=decaying(64, 32),
        minus_one=np.array([-1]),
    )
    first, last = optimize(model, max_macs=3000, calibration=normal(RNG, 64, 64)).layers
    assert (first.method, last.method) == ("fully_connected", "keep")
    assert last.kept_because == "its input has one axis"


def chosen_rows() -> onnx.ModelProto:
    """Return a network whose second half sees the rows of x that begin with a positive number, perhaps none."""
    return parse(
        """g (float[rows, 16] x) => (float[chosen, 24] y, float[chosen, 8] z) {
            sums = ReduceMax <axes = [1], keepdims = 0> (x)
            positive = Greater (sums, zero)
            rows = Compress <axis = 0> (x, positive)
            m = MatMul (rows, w)
            r = Relu (m)
            y = MatMul (r, v)
            maps = Reshape (r, shape)
            c = Conv <pads = [1, 1, 1, 1]> (maps, k)
            pooled = GlobalAveragePool (c)
            z = Flatten (pooled)
        }""",
        w=decaying(16, 32),
        v=decaying(32, 24),
        k=decaying(8, 2, 3, 3),
        zero=np.float32(0),
        shape=np.array([-1, 2, 4, 4]),
    )


def test_layers_that_see_nothing_of_some_inputs():
    model = chosen_rows()
    feeds = [{"x": normal(RNG, 6, 16) - np.float32(100 * (i % 4 == 3))} for i in range(12)]
    result = optimize(model, max_macs=1, calibration=feeds)
    assert any(layer.method != "keep" for layer in result.layers)
    assert all(layer.kept_because != "it computes nothing for the first input" for layer in result.layers)
    first = [{"x": normal(RNG, 6, 16) - np.float32(100 * (i < 11))} for i in range(12)]
    result = optimize(model, max_macs=2000, calibration=first, evaluate=feeds[:1])
    assert {layer.kept_because for layer in result.layers} == {"it computes nothing for the first input"}
    assert result.model == model


# Everything kept, whatever the goal


def as_inputs(model: onnx.ModelProto, ir: int = 3) -> onnx.ModelProto:
    """Return the model with its initializers among its inputs, as IR version 3 wants it."""
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    model.ir_version = ir
    return model


def as_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its initializers among its outputs."""
    for tensor in model.graph.initializer:
        model.graph.output.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return model


def plain() -> onnx.ModelProto:
    return parse(
        """g (float[N, 3, 8, 8] x) => (float[N, 10] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba)
            r = Relu (a)
            b = Conv <pads = [1, 1, 1, 1]> (r, wb)
            p = GlobalAveragePool (b)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, wf, bf)
        }""",
        opset=9,
        wa=normal(RNG, 12, 3, 3, 3),
        ba=normal(RNG, 12),
        wb=normal(RNG, 12, 12, 3, 3),
        wf=normal(RNG, 10, 12),
        bf=normal(RNG, 10),
    )


def in_constant_nodes() -> onnx.ModelProto:
    return constants_as_nodes(plain())


INTERFACES = {
    "plain": plain,
    "initializers are inputs": lambda: as_inputs(plain()),
    "initializers may be fed": lambda: as_inputs(plain(), ir=8),
    "initializers are outputs": lambda: as_outputs(plain()),
    "initializers are both": lambda: as_inputs(as_outputs(plain())),
    "constant nodes": in_constant_nodes,
}
GOALS = {
    "speedup": {"speedup": 2},
    "conv macs": {"speedup": 2, "target": "macs"},
    "latency": {"latency": 5000},
    "too low a latency": {"latency": 1e-6},
    "max_drop": {"max_drop": 50, "outputs": {"y": "classes"}, "evaluate": normal(RNG, 12, 3, 8, 8)},
    "max_macs": {"max_macs": 1e9},
    "too few macs": {"max_macs": 1},
    "max_size": {"max_size": 1e9},
    "too small a size": {"max_size": 1},
}


@pytest.mark.parametrize("kept", [True, False], ids=["all kept", "some rewritten"])
@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("interface", slow_but(INTERFACES, "plain", "initializers are inputs", "initializers are both"))
def test_the_interface_stays(interface, goal, kept):
    """Where every layer is kept the network is given back as it was; else what must be fed stays, and all outputs."""
    model, x = INTERFACES[interface](), normal(RNG, 8, 3, 8, 8)
    options = {"exclude": ["*"]} if kept else {"passes": ["channel", "fully_connected"]}
    result = optimize(model, calibration=x, selection="energy", **GOALS[goal], **options)
    kept = all(layer.method == "keep" for layer in result.layers)
    if kept:
        assert result.model == model
        assert all(layer.kept_because for layer in result.layers)
    assert [value.name for value in fed(result.model)] == ["x"]
    assert fed(result.model) == fed(model)
    assert result.model.graph.output == model.graph.output
    onnx.checker.check_model(result.model)
    for one, other in zip(run(model, x=x), run(result.model, x=x), strict=True):
        assert one.shape == other.shape
        assert np.array_equal(one, other) or not kept


@pytest.mark.parametrize("interface", INTERFACES)
def test_no_pass_for_any_layer(interface):
    """Fully connected layers are none of ``--target macs``: every layer is kept without being excluded."""
    model = INTERFACES[interface]()
    result = optimize(model, target="macs", calibration=normal(RNG, 8, 3, 8, 8), passes=["fully_connected"])
    assert result.model == model
    assert not result.reached


# Numbers


def two_layers(scale: float, back: float, activation: str = "Relu") -> onnx.ModelProto:
    return parse(
        f"""g (float[N, 6, 10, 10] x) => (float[N, 16, 10, 10] y) {{
            a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba)
            r = {activation} (a)
            y = Conv <pads = [1, 1, 1, 1]> (r, wb)
        }}""",
        wa=decaying(12, 6, 3, 3) * np.float32(scale),
        ba=(RNG.standard_normal(12) * scale).astype(np.float32),
        wb=decaying(16, 12, 3, 3) * np.float32(back),
    )


CONV_PASSES = [one.name for one in PASSES if "Conv" in one.ops]
EXTREMES = {
    "huge weights": (1e18, 1e-18, 1.0),
    "tiny weights": (1e-20, 1e20, 1.0),
    "tiny then ordinary weights": (1e-20, 1.0, 1.0),
    "near the largest weights": (1e30, 1e-3, 1.0),
    "huge inputs": (1.0, 1.0, 1e18),
    "tiny inputs": (1.0, 1.0, 1e-30),
    "inputs that are hardly normal": (1.0, 1.0, 1e-38),
    "no weights": (0.0, 1.0, 1.0),
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("method", slow_but([None, *CONV_PASSES], None))
@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_numbers(case, method):
    """Networks that differ by factors alone come out about as good, whatever the pass."""
    scale, back, inputs = EXTREMES[case]
    model = two_layers(scale, back)
    x = (RNG.standard_normal((12, 6, 10, 10)) * inputs).astype(np.float32)
    passes = None if method is None else [method]
    result = optimize(model, speedup=1.6, target="macs", calibration=x, passes=passes, selection="energy")
    if method not in ("monochromatic", "bicluster_svd"):
        assert result.reached
        assert result.agreement.relative_error < 0.4
    assert np.isfinite(run(result.model, x=x)[0]).all()


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("activation", slow_but(["Relu", "Sigmoid", "HardSwish"], "Relu"))
@pytest.mark.parametrize("inputs", ["dead channels", "constant but once", "zero but once", "one huge channel"])
def test_extreme_inputs(inputs, activation):
    model, x = two_layers(1, 1, activation), RNG.standard_normal((12, 6, 10, 10))
    channel = np.arange(6)[:, None, None]
    x = {
        "dead channels": x * (channel % 2),
        "constant but once": np.where(np.arange(12)[:, None, None, None], 1.0, x),
        "zero but once": np.where(np.arange(12)[:, None, None, None], 0.0, x),
        "one huge channel": x * np.where(channel == 2, 1e18, 1.0),
    }[inputs].astype(np.float32)
    for selection in ("exact", "energy"):
        result = optimize(model, speedup=1.6, target="macs", calibration=x, selection=selection)
        assert result.reached
        assert np.isfinite(run(result.model, x=x)[0]).all()


def test_what_is_not_finite_keeps_its_layer():
    """The root of negative numbers is not finite: the layer behind it stays, the one before it does not."""
    model = two_layers(1, 1, "Sqrt")
    result = optimize(model, speedup=1.2, target="macs", calibration=normal(RNG, 12, 6, 10, 10))
    first, second = result.layers
    assert first.method != "keep"
    assert (second.method, second.kept_because) == ("keep", "it computes or reads what is not finite")


@pytest.mark.parametrize("case", ["weights", "one input"])
def test_a_network_that_is_not_finite_is_given_back(case):
    model = two_layers(math.inf if case == "weights" else 1e19, 1)
    x = normal(RNG, 12, 6, 10, 10)
    x[-2] *= 1 if case == "weights" else 1e20
    result = optimize(model, speedup=1.5, target="macs", calibration=x, ranks={"n_a": (1,)})
    assert {layer.kept_because for layer in result.layers} == {"it computes or reads what is not finite"}
    assert result.model == model
    looked = analyze(model, calibration=x)
    assert [layer.spectrum for layer in looked.layers] == [(), ()]

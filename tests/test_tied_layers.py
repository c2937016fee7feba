"""Networks that use a weight at several places, through the whole pipeline."""

import math
import sys

import numpy as np
import onnx
import pytest
from helpers.models import error, normal, parse, run
from onnx import ModelProto

from onnxlowrank import OptionError, optimize, pipeline
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.measure.latency import Latency
from onnxlowrank.plan import builder
from onnxlowrank.plan.manual_ranks import ManualRank

RNG = np.random.default_rng(5)
CONV = "Conv <pads = [1, 1, 1, 1]>"


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    """Align ranks to 4, as the networks are narrow, no stopwatch, equal weights in any order of tests."""
    monkeypatch.setattr(sys.modules[__name__], "RNG", np.random.default_rng(5))
    monkeypatch.setattr(pipeline, "channel_block", lambda provider: 4)
    monkeypatch.setattr(builder, "measure_in_sessions", lambda *_, **__: [Latency((1.0,) * 7)] * 2)


def kernel(*shape: int, rank: int = 6) -> np.ndarray:
    """Return a kernel nearly of a low rank, so that there is something to gain."""
    flat = normal(RNG, shape[0], rank) @ normal(RNG, rank, math.prod(shape[1:]))
    flat += 0.1 * normal(RNG, *flat.shape)
    return (flat.reshape(shape) / np.sqrt(rank * math.prod(shape[1:]))).astype(np.float32)


def weights(model: ModelProto) -> int:
    """Return the number of weights and biases in the file."""
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type == 1)


def twins() -> ModelProto:
    sides = "".join(
        f"{s}1 = {CONV} ({s}, u, bu) {s}2 = Relu ({s}1) {s}3 = {CONV} ({s}2, v) {s}4 = Relu ({s}3) "
        f"{s}5 = GlobalAveragePool ({s}4) {s}6 = Flatten ({s}5) {s}7 = Gemm <transB = 1> ({s}6, w, bw) "
        for s in "ab"
    )
    return parse(
        f"""g (float[N, 8, 10, 10] a, float[N, 8, 10, 10] b) => (float[N, 16] y) {{
            {sides} d = Sub (a7, b7) y = Abs (d) }}""",
        u=kernel(16, 8, 3, 3), bu=normal(RNG, 16), v=kernel(16, 16, 3, 3), w=kernel(16, 16), bw=normal(RNG, 16),
    )  # fmt: skip


def images(count: int = 24, channels: int = 8, size: int = 10) -> list[np.ndarray]:
    return [normal(RNG, 1, channels, size, size) for _ in range(count)]


def pyramid() -> ModelProto:
    """A head over three levels, whose last link has another activation at one of them."""
    heads = "".join(
        f"h{i} = {CONV} (p{i}, w, b) r{i} = Relu (h{i}) s{i} = {CONV} (r{i}, v, c) y{i} = {end} (s{i}) "
        for i, end in enumerate(("Sigmoid", "Sigmoid", "Identity"))
    )
    outputs = ", ".join(f"float[N, 12, h{i}, w{i}] y{i}" for i in range(3))
    return parse(
        f"""g (float[N, 8, 12, 12] x) => ({outputs}) {{
            p0 = {CONV} (x, u)
            p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (p0)
            p2 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (p1)
            {heads} }}""",
        u=kernel(16, 8, 3, 3), w=kernel(16, 16, 3, 3), b=normal(RNG, 16), v=kernel(12, 16, 3, 3), c=normal(RNG, 12),
    )  # fmt: skip


def unrolled() -> ModelProto:
    """Four steps of a recurrence: what a step computes is what the next one reads."""
    steps = "".join(
        f"i{t} = MatMul (x{t}, w) r{t} = MatMul (h{t}, u) p{t} = Add (i{t}, r{t}) q{t} = Add (p{t}, b) "
        f"h{t + 1} = Tanh (q{t}) "
        for t in range(4)
    )
    inputs = ", ".join(f"float[N, 16] x{t}" for t in range(4))
    return parse(
        f"g ({inputs}, float[N, 24] h0) => (float[N, 24] y) {{ {steps} y = MatMul (h4, v) }}",
        w=kernel(16, 24), u=kernel(24, 24), v=kernel(24, 24), b=0.1 * normal(RNG, 24),
    )  # fmt: skip


def residual() -> ModelProto:
    """A shortcut at the first and third place, none at the second."""
    return parse(
        f"""g (float[N, 16, 9, 9] x) => (float[N, 16, 9, 9] y) {{
            a = {CONV} (x, w, b) as = Add (a, x) ar = Relu (as)
            c = {CONV} (ar, w, b) cr = Relu (c)
            d = {CONV} (cr, w, b) ds = Add (ar, d) y = Relu (ds) }}""",
        w=kernel(16, 16, 3, 3), b=normal(RNG, 16),
    )  # fmt: skip


def feeds(model: ModelProto, count: int = 24) -> list[dict[str, np.ndarray]]:
    shapes = {
        value.name: (1, *(size.dim_value for size in value.type.tensor_type.shape.dim[1:]))
        for value in model.graph.input
    }
    return [{name: normal(RNG, *shape) for name, shape in shapes.items()} for _ in range(count)]


TWIN_MACS = 2 * (100 * 16 * 9 * (8 + 16) + 256)
NETWORKS = {
    "twins": (twins, {"n_a1": 2, "n_a3": 2, "n_a7": 2}, TWIN_MACS),
    "pyramid": (pyramid, {"n_p0": 1, "n_h2": 3, "n_s2": 3}, 9 * (144 * 8 * 16 + (144 + 36 + 9) * (16 + 12) * 16)),
    "unrolled": (unrolled, {"n_i0": 4, "n_r0": 4, "n_y": 1}, 24 * (4 * 16 + 4 * 24 + 24)),
    "residual": (residual, {"n_a": 3}, 3 * 81 * 9 * 16 * 16),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_count_at_each_place_and_parameters_once(name: str) -> None:
    make, places, macs = NETWORKS[name]
    model = make()
    result = optimize(model, max_macs=0.6 * macs, calibration=feeds(model))
    assert {layer.name: layer.places for layer in result.layers} == places
    assert result.before.macs == macs
    assert result.after.macs <= 0.6 * macs
    others = 24 if name == "unrolled" else 0  # the bias of a sum, which is no layer's
    assert result.before.parameters == weights(model) - others
    assert result.after.parameters == weights(result.model) - others
    assert weights(result.model) < weights(model)
    onnx.checker.check_model(result.model, full_check=True)
    assert result.agreement.relative_error < 0.3


@pytest.mark.parametrize("passes", [["channel", "fully_connected"], ["spatial"], ["bicluster_svd"]])
def test_the_distance_of_equal_inputs_stays_zero(passes: list[str]) -> None:
    model = twins()
    data = feeds(model)
    result = optimize(model, max_macs=0.6 * TWIN_MACS, calibration=data, passes=passes)
    assert any(layer.method != "keep" for layer in result.layers)
    same = {"a": data[0]["a"], "b": data[0]["a"]}
    assert not run(model, **same)[0].any()
    assert not run(result.model, **same)[0].any()
    assert run(result.model, **data[0])[0].any()
    assert result.model.ByteSize() < model.ByteSize()


@pytest.mark.parametrize("nonlinear", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_all_ranks_change_nothing(name: str, nonlinear: bool) -> None:
    """Only where rows of features, responses and shortcuts belong together at every place is the fit the identity."""
    model = NETWORKS[name][0]()
    full = {one.name: (one.outputs if one.is_conv else min(one.weight.shape),) for one in find_layers(model)}
    data = feeds(model, 40)
    passes = ["channel", "fully_connected"]
    result = optimize(model, max_macs=1, calibration=data, ranks=full, passes=passes, nonlinear=nonlinear)
    assert all(layer.method != "keep" for layer in result.layers)
    for actual, wanted in zip(run(result.model, **data[0]), run(model, **data[0]), strict=True):
        assert error(actual, wanted) < 0.01


def test_a_layer_goes_by_the_name_of_any_place() -> None:
    model = twins()
    options = {"max_macs": 1, "calibration": feeds(model), "passes": ["channel"]}
    by_pattern = optimize(model, only=["n_b3"], **options)
    assert [layer.name for layer in by_pattern.layers if layer.method != "keep"] == ["n_a3"]
    by_rank = optimize(model, ranks={"n_b3": ManualRank((4,))}, only=["n_a3"], **options)
    assert [layer.setting for layer in by_rank.layers if layer.name == "n_a3"] == [(4,)]
    with pytest.raises(OptionError, match=r"--rank n_b3=8: that is layer n_a3"):
        optimize(model, ranks={"n_a3": (4,), "n_b3": (8,)}, **options)


def test_a_weight_that_something_else_reads_is_kept() -> None:
    model = parse(
        f"""g (float[N, 16, 8, 8] x) => (float[N, 16, 4, 4] y) {{
            a = {CONV} (x, w) ar = Relu (a) y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (ar, w) }}""",
        w=kernel(16, 16, 3, 3),
    )
    result = optimize(model, max_macs=1, calibration=feeds(model))
    assert {layer.kept_because for layer in result.layers} == {
        "its weight is shared by nodes that compute something else with it"
    }
    assert not result.reached


def test_places_of_other_batches_count_what_they_compute() -> None:
    """At one place a sample is one row, at the other four."""
    model = parse(
        """g (float[N, 16] x, float[N, 4, 16] u) => (float[N, 24] y, float[M, 24] z) {
            y = MatMul (x, w)  r = Reshape (u, flat)  z = MatMul (r, w) }""",
        w=kernel(16, 24),
        flat=np.array([-1, 16]),
    )
    data = [{"x": normal(RNG, 1, 16), "u": normal(RNG, 1, 4, 16)} for _ in range(24)]
    result = optimize(model, max_macs=1200, calibration=data)
    assert [(layer.places, layer.macs[0], layer.method) for layer in result.layers] == [
        (2, 5 * 16 * 24, "fully_connected")
    ]
    (rank,) = result.layers[0].setting
    assert result.after.macs == 5 * rank * (16 + 24)

"""One-layer networks compute what the layer computes; times are what the clock says, and remembered."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.models import conv_model, error, normal, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from onnxlowrank.decompose.activation import IDENTITY, RELU, Activation, Smooth, clip, leaky_relu
from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.convolution import conv_attributes
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import FLAT, Geometry, Layer
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.measure import chain_timer as chains_module
from onnxlowrank.measure import latency
from onnxlowrank.measure.cache import Cache, Timing
from onnxlowrank.measure.chain_timer import ChainTimer, fastest_lowering
from onnxlowrank.measure.latency import Latency
from onnxlowrank.measure.one_layer import frame, framed, layer_model, random_feeds
from onnxlowrank.measure.sessions import Target

RNG = np.random.default_rng(8)
POINT = Geometry.pointwise(2)
ACTIVATIONS = [
    IDENTITY, RELU, leaky_relu(0.2), clip(0, 6), clip(-np.inf, 0.5), clip(0.25, np.inf),
    *map(Smooth, ("sigmoid", "tanh", "silu", "hard_swish", "gelu")),
]  # fmt: skip


def conv_layer(
    weight: np.ndarray,
    bias: np.ndarray | None,
    geometry: Geometry,
    size: Sequence[int],
    group: int = 1,
    activation: Activation = IDENTITY,
    shortcut: str | None = None,
    batch: int = 1,
) -> Layer:
    """Return a Conv layer that reads an input of spatial ``size``."""
    output = geometry.output_size(tuple(size), weight.shape[2:])
    return Layer(
        "conv", "Conv", weight, bias, geometry, "in", "out", ("conv",), "out", group, False, activation, shortcut,
        (batch, weight.shape[1] * group, *size), (batch, weight.shape[0], *output),
    )  # fmt: skip


def simple_layer(filters: int = 16, maps: int = 16, **arguments: object) -> Layer:
    weight = normal(RNG, filters, maps, 3, 3)
    return conv_layer(weight, normal(RNG, filters), Geometry((1, 1), (1,) * 4, (1, 1)), (7, 5), **arguments)


def two(layer: Layer, rank: int = 8) -> Chain:
    first = Step("first", normal(RNG, rank, layer.inputs, *layer.kernel), layer.geometry)
    return Chain((first, Step("second", normal(RNG, layer.outputs, rank, 1, 1), POINT)), layer.bias)


@st.composite
def geometries(draw: st.DrawFn, axes: int, kernel: Sequence[int]) -> tuple[Geometry, list[int]]:
    """Return a geometry and a size of input that fits it."""
    strides, dilations = ([draw(st.integers(1, 3)) for _ in range(axes)] for _ in range(2))
    pads = [draw(st.integers(0, 2)) for _ in range(2 * axes)]
    size = [d * (k - 1) + 1 + draw(st.integers(0, 5)) for d, k in zip(dilations, kernel, strict=True)]
    return Geometry(tuple(strides), tuple(pads), tuple(dilations)), size


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    axes, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    geometry, size = draw(geometries(axes, kernel))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    filters = group * draw(st.integers(1, 3))
    return conv_layer(
        normal(rng, filters, draw(st.integers(1, 9)), *kernel),
        normal(rng, filters) if draw(st.booleans()) else None,
        geometry,
        size,
        group,
        draw(st.sampled_from(ACTIVATIONS)),
        draw(st.sampled_from([None, "before"])),
        draw(st.integers(1, 2)),
    )


def expected(layer: Layer, x: np.ndarray, shortcut: np.ndarray | None = None) -> np.ndarray:
    """Return what ``layer`` and what follows it make of ``x``."""
    step = Step("conv", layer.weight, layer.geometry, layer.group)
    (y,) = run(conv_model(layer.weight, layer.bias, **conv_attributes(step)), x=x)
    return layer.activation(y if shortcut is None else y + shortcut)


@given(layers(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_layer_model_computes_the_layer(layer: Layer, as_chain: bool) -> None:
    chain = Chain((Step("same", layer.weight, layer.geometry, layer.group),), layer.bias) if as_chain else None
    model = layer_model(layer, chain)
    onnx.checker.check_model(model, full_check=True)
    feeds = random_feeds(model)
    assert {name: value.shape for name, value in feeds.items()} == {
        "x": layer.input_shape, **({"shortcut": layer.output_shape} if layer.shortcut else {})
    }  # fmt: skip
    assert error(run(model, **feeds)[0], expected(layer, *feeds.values())) <= 1e-5


@given(layers(), st.sampled_from(["cpu", "cuda"]))
@settings(max_examples=60, deadline=None)
def test_frame_spreads_one_map_and_reads_one_position(layer: Layer, provider: str) -> None:
    model = framed(layer, None, provider)
    onnx.checker.check_model(model, full_check=True)
    feeds = random_feeds(model)
    full = [
        np.broadcast_to(value, shape)
        for value, shape in zip(feeds.values(), (layer.input_shape, layer.output_shape), strict=False)
    ]
    outputs = [expected(layer, *full), *full[1:]]
    corner = (slice(None), slice(None), *(slice(1),) * layer.geometry.axes)
    actual = run(model, **feeds)
    for found, output in zip(actual, outputs, strict=True):
        assert np.abs(found - output[corner].mean(1, keepdims=True)).max() <= 1e-4 * np.abs(output).max()

    empty = frame(layer, provider)
    assert empty is not None
    onnx.checker.check_model(empty, full_check=True)
    assert {info.name: value.shape for info, value in zip(empty.graph.input, feeds.values(), strict=True)} == {
        name: value.shape for name, value in feeds.items()
    }
    for found, value in zip(run(empty, **feeds), full, strict=True):
        assert np.abs(found - value[corner].mean(1, keepdims=True)).max() <= 1e-4 * np.abs(value).max()


def test_frame_leaves_images_as_they_are() -> None:
    image, inner = simple_layer(maps=3), simple_layer(maps=16)
    assert framed(image, None, "cpu").graph.input[0].name == "x"
    assert [n.op_type for n in framed(image, None, "cpu").graph.node] == ["Conv"] * 2
    assert framed(inner, None, "cpu").graph.input[0].name == "x/map"
    assert [n.op_type for n in framed(inner, None, "cpu").graph.node] == ["Conv"] * 3


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 6)])
def test_fully_connected(op: str, biased: bool, shape: tuple[int, ...]) -> None:
    if op == "Gemm" and len(shape) > 2:
        return
    layer = Layer(
        "fc", op, normal(RNG, 5, 6), normal(RNG, 5) if biased else None, FLAT, "in", "out", ("fc",), "out",
        activation=RELU, input_shape=shape, output_shape=(*shape[:-1], 5),
    )  # fmt: skip
    chain = Chain((Step("a", normal(RNG, 2, 6)), Step("b", normal(RNG, 5, 2))), layer.bias)
    for given_chain, weight in ((None, layer.weight), (chain, chain.dense_kernel())):
        model = framed(layer, given_chain, "cpu")
        onnx.checker.check_model(model, full_check=True)
        feeds = random_feeds(model)
        y = feeds["x"] @ weight.T + (layer.bias if biased else 0)
        assert error(run(model, **feeds)[0], np.maximum(y, 0)) <= 1e-5
    assert frame(layer, "cpu") is None


@st.composite
def grouped_chains(draw: st.DrawFn) -> tuple[Layer, Chain]:
    """Return a layer and a chain of links in groups, with and without orders on either side."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (1, 3)]))
    geometry, size = draw(geometries(2, kernel))
    inputs, steps = draw(st.integers(1, 9)), []
    maps = inputs
    for i in range(draw(st.integers(1, 3))):
        is_spatial, group = i == 0, draw(st.integers(1, 3))
        per_group = -(-maps // group)
        whole = per_group * group
        take = rng.permutation(np.resize(np.arange(maps), whole)) if whole > maps or draw(st.booleans()) else None
        filters = group * draw(st.integers(1, 3))
        given_maps = draw(st.integers(1, filters))
        give = rng.permutation(filters)[:given_maps] if draw(st.booleans()) else None
        weight = normal(rng, filters, per_group, *(kernel if is_spatial else (1, 1)))
        steps.append(Step(f"s{i}", weight, geometry if is_spatial else POINT, group, take, give))
        maps = filters if give is None else given_maps
    bias = normal(rng, maps) if draw(st.booleans()) else None
    layer = conv_layer(np.zeros((maps, inputs, *kernel), np.float32), bias, geometry, size)
    shortcut = draw(st.sampled_from([None, "before"]))
    return replace(layer, shortcut=shortcut), Chain(tuple(steps), bias)


@given(grouped_chains(), st.sampled_from([9, 13, 17]))
@settings(max_examples=60, deadline=None)
def test_all_forms_compute_the_same(case: tuple[Layer, Chain], opset: int) -> None:
    layer, chain = case
    dense = replace(layer, weight=chain.dense_kernel())
    whole = layer_model(dense, None)
    feeds, tiny = random_feeds(whole), random_feeds(framed(dense, None, "cpu"))
    y, position = run(whole, **feeds)[0], run(framed(dense, None, "cpu"), **tiny)[0]
    spread = {name: np.broadcast_to(tiny.get(name, tiny.get(f"{name}/map")), x.shape) for name, x in feeds.items()}
    summed = np.abs(run(whole, **spread)[0]).max()  # a position is a mean of maps, which may cancel
    network = conv_model(layer.weight, layer.bias, **conv_attributes(Step("conv", layer.weight, layer.geometry)))
    network.opset_import[0].version = opset
    (found,) = find_layers(network)
    (response,) = run(layer_model(replace(dense, shortcut=None), None), x=feeds["x"])
    for lowerings in itertools.product(*(step.lowerings for step in chain.steps)):
        lowered = chain.lowered(lowerings)
        written = layer_model(layer, lowered)
        onnx.checker.check_model(written, full_check=True)
        assert error(run(written, **feeds)[0], y) <= 1e-4
        inside = framed(layer, lowered, "cpu")
        assert np.abs(run(inside, **tiny)[0] - position).max() <= 1e-4 * summed
        rewritten = rewrite(network, [found], {"conv": lowered})
        onnx.checker.check_model(rewritten)
        assert error(run(rewritten, x=feeds["x"])[0], response) <= 1e-4


def gathers(model: ModelProto) -> list[str]:
    return [n.name for n in model.graph.node if n.op_type == "Gather"]


def test_gathers_count_where_they_would_stay() -> None:
    layer = simple_layer()
    step = Step("g", normal(RNG, 16, 8, 3, 3), layer.geometry, 2, RNG.permutation(16), RNG.permutation(16))
    chain = Chain((step,), layer.bias)
    assert len(gathers(layer_model(layer, chain))) == 2
    assert not gathers(framed(layer, chain, "cpu"))
    assert gathers(framed(replace(layer, shortcut="before"), chain, "cpu")) == ["conv/lowrank/g/give"]
    image = simple_layer(maps=4)
    chain = Chain((Step("g", normal(RNG, 16, 2, 3, 3), layer.geometry, 2, RNG.permutation(4)),))
    assert gathers(framed(image, chain, "cpu")) == ["conv/lowrank/g/take"]


class Clock:
    """A stopwatch that shows times by the number of weights, in place of a measurement."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slowness, self.noise = 1.0, 0.0
        self.calls: list[list[int]] = []
        self.seconds: list[float] = []
        monkeypatch.setattr(chains_module, "measure", self.measure)

    def measure(self, models: Sequence[ModelProto], feeds: object, target: Target, seconds: float) -> list[Latency]:
        sizes = [sum(int(np.prod(t.dims)) for t in model.graph.initializer) for model in models]
        self.calls.append(sizes)
        self.seconds.append(seconds)
        drift = self.slowness * np.linspace(0.95, 1.05, 11)
        noise = 1 + self.noise * np.array([-2, 2, -2, 2, -2, 0, 2, -2, 2, -2, 2])
        return [Latency(tuple(size * drift * (noise if i == 0 else 1))) for i, size in enumerate(sizes)]


def test_times_are_those_inside_the_frame_and_free_of_drift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, layer = Clock(monkeypatch), simple_layer()
    timer = ChainTimer(Target(), Cache(tmp_path))
    dense = timer.milliseconds(layer, None)
    frame_weights = 16 + 16
    assert clock.calls == [[layer.parameters + frame_weights, frame_weights]]
    quartile = 0.975  # of the drift, which the layer's own time is taken at
    assert dense.ms == pytest.approx(quartile * layer.parameters)
    assert dense.spread == pytest.approx(0.04 * layer.parameters)

    clock.slowness = 5.0
    few, many = timer.many(layer, [two(layer, 1), two(layer, 9)])
    assert few.ms == pytest.approx(quartile * two(layer, 1).parameters)
    assert many.ms == pytest.approx(quartile * two(layer, 9).parameters)
    assert few.spread == pytest.approx(0, abs=1e-6)
    assert timer.milliseconds(layer, None) == dense


def test_second_request_is_served_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains_module, "SECONDS", (0.01, 0.03))
    layer = simple_layer(activation=RELU, shortcut="before")
    asked = [two(layer, 2), None, two(layer, 3), two(layer, 2)]
    first = ChainTimer(Target(), Cache(tmp_path)).many(layer, asked)
    assert all(np.isfinite([timing.ms, timing.spread]).all() and timing.ms > 0 for timing in first)
    assert first[0] == first[3]

    def refuse(*_: object) -> None:
        raise AssertionError("a session is opened")

    monkeypatch.setattr(latency, "open_session", refuse)
    again = ChainTimer(Target(), Cache(tmp_path))
    assert again.many(replace(layer, name="other"), [two(layer, 2), None, two(layer, 3), two(layer, 2)]) == first
    with pytest.raises(AssertionError, match="a session is opened"):
        again.milliseconds(layer, two(layer, 4))


def test_places_add_up_and_those_of_one_shape_are_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains_module, "SECONDS", (0.01, 0.03))
    one = simple_layer()
    other = replace(one.places[0], input="b", output="c", nodes=("d",))
    larger = replace(other, input_shape=(1, 16, 9, 9), output_shape=(1, 16, 9, 9))
    tied = replace(one, elsewhere=(other, larger))
    timer, chain = ChainTimer(Target(), Cache(tmp_path)), two(one, 2)
    together = timer.milliseconds(tied, chain)
    assert timer.timed == 4  # the chain and the layer, in two shapes
    alone = [timer.milliseconds(layer, chain) for layer in tied.one_by_one()]
    assert alone[0] == alone[1] != alone[2]
    assert together.ms == pytest.approx(sum(timing.ms for timing in alone))
    assert together.spread == pytest.approx(sum(timing.spread**2 for timing in alone) ** 0.5)


def test_only_what_is_missing_is_timed_each_time_with_the_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, layer = Clock(monkeypatch), simple_layer()
    timer = ChainTimer(Target(), Cache(tmp_path))
    timer.many(layer, [two(layer, rank) for rank in (1, 2, 2)])
    timer.many(layer, [two(layer, rank) for rank in range(1, 21)])
    around = 32
    dense = layer.parameters + around
    sizes = [two(layer, rank).parameters + around for rank in range(1, 21)]
    assert [sorted(call) for call in clock.calls] == [
        sorted([around, dense, *part]) for part in (sizes[:2], sizes[2:10], sizes[10:18], sizes[18:])
    ]


def test_noise_takes_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, layer = Clock(monkeypatch), simple_layer()
    for noise, calls in ((0.001, 1), (0.2, 3)):
        clock.noise, clock.seconds = noise, []
        timing = ChainTimer(Target(), Cache(tmp_path / str(noise))).milliseconds(layer, two(layer))
        assert clock.seconds == [pytest.approx(3 * seconds) for seconds in chains_module.SECONDS][:calls]
        assert timing.ms == pytest.approx(0.975 * two(layer).parameters, rel=0.01)


def test_time_lost_in_noise_stays_positive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, layer = Clock(monkeypatch), simple_layer()
    measure = clock.measure
    shrunk: Callable[..., list[Latency]] = lambda *arguments: [*measure(*arguments)[:-1], Latency((1e9,) * 11)]  # noqa: E731
    monkeypatch.setattr(chains_module, "measure", shrunk)
    dense, chain = ChainTimer(Target(), Cache(tmp_path)).many(layer, [None, two(layer)])
    assert 0 < chain.ms <= dense.ms


def keys(layer: Layer, chain: Chain, target: Target | None = None) -> str:
    return ChainTimer(target or Target(), Cache(Path("unused")))._key(layer, chain)


def test_keys_tell_apart_what_takes_other_times() -> None:
    layer = simple_layer()
    step = Step("g", normal(RNG, 16, 8, 3, 3), layer.geometry, 2)
    order = RNG.permutation(16)
    variants = [
        replace(step, weight=normal(RNG, 16, 8, 3, 1)),
        replace(step, geometry=Geometry((2, 1), (1,) * 4, (1, 1))),
        replace(step, geometry=Geometry((1, 1), (1, 1, 1, 0), (1, 1))),
        replace(step, geometry=Geometry((1, 1), (1,) * 4, (1, 2))),
        replace(step, geometry=Geometry((1, 1), (1,) * 4, (1, 1), "VALID")),
        replace(step, group=1),
        replace(step, take=order),
        replace(step, give=order),
        replace(step, give=order[:12]),
        replace(step, split=True),
    ]
    chains = [Chain((one,), layer.bias) for one in [step, *variants]] + [
        Chain((step,)),
        Chain((step, step), layer.bias),
    ]
    others = [
        replace(layer, op="Gemm"),
        replace(layer, input_shape=(2, *layer.input_shape[1:])),
        replace(layer, activation=RELU),
        replace(layer, shortcut="before"),
    ]
    found = [keys(layer, chain) for chain in chains] + [keys(other, chains[0]) for other in others]
    found += [keys(layer, chains[0], Target(threads=2))]
    assert len(set(found)) == len(chains) + len(others) + 1
    same = Chain((replace(step, name="other", weight=step.weight + 1),), layer.bias)
    assert keys(replace(layer, name="other", weight=layer.weight + 1), same) == found[0]
    assert keys(layer, Chain((replace(step, take=order),))) == keys(layer, Chain((replace(step, take=order[::-1]),)))


class Planted:
    """A timer of forms that were given their times."""

    def __init__(self, time: Callable[[tuple[str, ...]], float]) -> None:
        self.time = time
        self.asked: list[list[tuple[str, ...]]] = []

    def many(self, layer: Layer, chains: Sequence[Chain]) -> list[Timing]:
        lowerings = [
            tuple("split" if step.split else "grouped" if step.group > 1 else "dense" for step in chain.steps)
            for chain in chains
        ]
        self.asked.append(lowerings)
        return [Timing(self.time(chosen), 0.0) for chosen in lowerings]


def three_links() -> tuple[Layer, Chain]:
    layer = simple_layer()
    mono = Step("mono", normal(RNG, 16, 1, 3, 3), layer.geometry, 4)
    mix = Step("mix", normal(RNG, 16, 8, 1, 1), POINT, 2)
    return layer, Chain((mono, Step("whole", normal(RNG, 16, 16, 1, 1), POINT), mix), layer.bias)


@pytest.mark.parametrize("first", ["grouped", "split"])
@pytest.mark.parametrize("last", ["dense", "grouped", "split"])
def test_fastest_forms_are_found(first: str, last: str) -> None:
    layer, chain = three_links()
    timer = Planted(lambda lowerings: 10.0 - (lowerings[0] == first) - 2 * (lowerings[2] == last))
    assert fastest_lowering(timer, layer, chain) == (first, "dense", last)
    mono, _, mix = (step.lowerings for step in chain.steps)
    assert set(mono) == {"grouped", "split"}
    assert set(mix) == {"dense", "grouped", "split"}
    assert timer.asked == [
        [(lowering, "dense", mix[0]) for lowering in mono],
        [(first, "dense", lowering) for lowering in mix],
    ]


def test_forms_change_only_for_more_than_noise() -> None:
    layer, chain = three_links()
    default, other = chain.steps[0].lowerings
    for share, lowering in ((0.98, default), (0.96, other)):
        timer = Planted(lambda lowerings, share=share: share if lowerings[0] == other else 1.0)
        assert fastest_lowering(timer, layer, chain)[0] == lowering


def test_single_forms_are_not_timed() -> None:
    layer = simple_layer()
    timer = Planted(lambda lowerings: 1.0)
    depthwise = Step("depthwise", normal(RNG, 16, 1, 3, 3), layer.geometry, 16)
    chain = Chain((depthwise, Step("mix", normal(RNG, 16, 16, 1, 1), POINT)), layer.bias)
    assert fastest_lowering(timer, layer, chain) == chain.lowerings == ("grouped", "dense")
    assert timer.asked == []


def test_forms_are_timed_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    layer, chain = three_links()
    lowerings = fastest_lowering(ChainTimer(Target(), Cache(tmp_path)), layer, chain)
    assert lowerings[1:] == ("dense", "grouped")  # by the clock, weights that are zero cost as much
    calls = len(clock.calls)
    assert fastest_lowering(ChainTimer(Target(), Cache(tmp_path)), layer, chain) == lowerings
    assert len(clock.calls) == calls

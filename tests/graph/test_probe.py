import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.models import conv_model, error, normal, parse, residual_block, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxlowrank.errors import ModelError
from onnxlowrank.graph.chain import Chain, Step, Window
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import Geometry
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.probe import POSITIONS, Probe, add_probes, expose
from onnxlowrank.graph.rewrite import rewrite

RNG = np.random.default_rng(4)


def chosen(total: int, numbers: np.ndarray) -> np.ndarray:
    """Return the positions a probe takes of ``total``."""
    count = min(len(numbers), total)
    place = (np.arange(count) + numbers[:count].astype(np.float64)) * total / count
    return np.minimum(np.floor(place), total - 1).astype(int)


def sampled(tensor: np.ndarray, numbers: np.ndarray, channels_last: bool = False) -> np.ndarray:
    """Return the rows a probe of ``tensor`` yields, ``[rows, channels]``."""
    rows = tensor if channels_last else np.moveaxis(tensor, 1, -1)
    rows = rows.reshape(rows.shape[0], -1, rows.shape[-1])
    return rows[:, chosen(rows.shape[1], numbers)].reshape(-1, rows.shape[-1])


def numbers(count: int) -> np.ndarray:
    return RNG.random(count, dtype=np.float32)


def im2col(x: np.ndarray, kernel: tuple[int, ...], geometry: Geometry) -> np.ndarray:
    """Return the patches of ``[N, C, H, W]`` as ``[N, C * kh * kw, H', W']``, tap by tap."""
    top, left, bottom, right = geometry.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    height, width = geometry.output_size(x.shape[2:], kernel)
    (sh, sw), (dh, dw) = geometry.strides, geometry.dilations
    patches = np.empty((*x.shape[:2], *kernel, height, width), x.dtype)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            window = padded[:, :, i * dh :, j * dw :]
            patches[:, :, i, j] = window[:, :, : sh * height : sh, : sw * width : sw]
    return patches.reshape(x.shape[0], -1, height, width)


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 21])
def test_rows_of_several_sizes_in_a_row(opset: int) -> None:
    body = "g (float[N, 3, h, w] x) => (float[N, 3, h, w] y) { y = Relu (x) }"
    model = add_probes(parse(body, opset), [Probe("in", "x", False), Probe("out", "y", False)])
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch, height, width, count in ((1, 5, 7, 4), (3, 9, 2, 12), (2, 2, 2, 100), (2, 1, 1, 1), (1, 40, 30, 333)):
        x, u = normal(RNG, batch, 3, height, width), numbers(count)
        inside, outside = session.run(None, {"x": x, POSITIONS: u})
        assert inside.shape == (batch * min(count, height * width), 3)
        np.testing.assert_array_equal(inside, sampled(x, u))
        np.testing.assert_array_equal(outside, np.maximum(sampled(x, u), 0))


@pytest.mark.parametrize(("count", "share", "taken"), [(12, 3, 4), (10, 3, 4), (100, 3, 30), (2, 3, 1), (1, 5, 1)])
def test_a_share_of_the_positions(count: int, share: int, taken: int) -> None:
    """Several probes that share them take as many rows as one, in their own strata."""
    body = """g (float[N, 3, h, w] x, float[N, t, 3] u) => (float[N, 3, h, w] y, float[N, t, 3] z) {
        y = Relu (x)  z = Neg (u) }"""
    window = Window((1, 1), Geometry.pointwise(2))
    probes = [
        Probe("a", "x", False, share=share),
        Probe("b", "x", False, (), window, share),
        Probe("c", "u", True, share=share),
    ]
    x, u, p = normal(RNG, 2, 3, 5, 6), normal(RNG, 2, 30, 3), numbers(count)
    first, second, last = run(add_probes(parse(body), probes), x=x, u=u, **{POSITIONS: p})
    assert first.shape == (2 * taken, 3)
    used = np.resize(p, max(taken, len(p)))[:taken]
    np.testing.assert_array_equal(first, sampled(x, used))
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(last, sampled(u, used, channels_last=True))


@pytest.mark.parametrize("shape", [(4, 3), (2, 6, 3), (2, 3, 5, 3)])
@pytest.mark.parametrize("count", [1, 4, 50])
def test_channels_last(shape: tuple[int, ...], count: int) -> None:
    dims = ", ".join(["N", *(f"d{i}" for i in range(len(shape) - 2)), "3"])
    model = add_probes(parse(f"g (float[{dims}] x) => (float[{dims}] y) {{ y = Neg (x) }}"), [Probe("p", "y", True)])
    x, u = normal(RNG, *shape), numbers(count)
    np.testing.assert_array_equal(run(model, x=x, **{POSITIONS: u})[0], sampled(-x, u, channels_last=True))


def test_one_spatial_axis() -> None:
    model = add_probes(conv_model(normal(RNG, 4, 3, 5)), [Probe("p", "x", False)])
    x, u = normal(RNG, 2, 3, 19), numbers(6)
    np.testing.assert_array_equal(run(model, x=x, **{POSITIONS: u})[0], sampled(x, u))


@pytest.mark.parametrize("u", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_extreme_numbers_stay_inside(u: float) -> None:
    model = add_probes(
        parse("g (float[N, 1, h, w] x) => (float[N, 1, h, w] y) { y = Neg (x) }"), [Probe("p", "x", False)]
    )
    x = np.arange(5000, dtype=np.float32).reshape(1, 1, 50, 100)
    for count in (7, 4999, 5000, 6000):
        rows = run(model, x=x, **{POSITIONS: np.full(count, u, np.float32)})[0][:, 0]
        assert len(np.unique(rows)) == len(rows) == min(count, 5000)
        np.testing.assert_array_equal(rows, chosen(5000, np.full(count, u, np.float32)))


def test_the_last_position_is_the_limit() -> None:
    model = add_probes(
        parse("g (float[N, 1, h, w] x) => (float[N, 1, h, w] y) { y = Neg (x) }"), [Probe("p", "x", False)]
    )
    x = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    assert run(model, x=x, **{POSITIONS: np.ones(3, np.float32)})[0][:, 0].tolist() == [2, 4, 5]


@st.composite
def geometries(draw: st.DrawFn) -> tuple[Geometry, tuple[int, int], int, tuple[int, int]]:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, dilations = pair(1, 3), pair(1, 2)
    geometry = Geometry(pair(1, 3), pair(0, 2) + pair(0, 2), dilations)
    size = tuple(d * (k - 1) + 1 + draw(st.integers(0, 5)) for d, k in zip(dilations, kernel, strict=True))
    return geometry, kernel, draw(st.integers(1, 3)), size


@given(geometries(), st.integers(1, 2), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_patches_and_responses_are_sampled_at_the_same_positions(
    case: tuple[Geometry, tuple[int, int], int, tuple[int, int]], group: int, count: int
) -> None:
    geometry, kernel, c, size = case
    weight, bias = normal(RNG, 2 * group, c, *kernel), normal(RNG, 2 * group)
    model = conv_model(
        weight, bias, group=group, strides=geometry.strides, pads=geometry.pads, dilations=geometry.dilations
    )
    window = Window(kernel, geometry)
    probed = add_probes(model, [Probe("patches", "x", False, (), window), Probe("responses", "y", False)])
    x, u = normal(RNG, 2, c * group, *size), numbers(count)
    patches, responses = run(probed, x=x, **{POSITIONS: u})
    np.testing.assert_array_equal(patches, sampled(im2col(x, kernel, geometry), u))
    dense = Step("w", weight, geometry, group).dense_weight().reshape(2 * group, -1)
    assert error(patches @ dense.T + bias, responses) < 1e-5


@pytest.mark.parametrize("exact", [2**24, 7])
@pytest.mark.parametrize("sizes", ["5, 9", "h, w"])
def test_pixels_beyond_the_whole_numbers_of_float32_are_told_apart(
    exact: int, sizes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 has whole numbers up to 2^24 only: fewer than a volume of 257 x 257 x 257 has voxels."""
    monkeypatch.setattr("onnxlowrank.graph.probe._EXACT", exact)
    model = parse(f"g (float[N, 3, {sizes}] x) => (float[N, 3, {sizes}] y) {{ y = Neg (x) }}")
    geometry = Geometry((1, 2), (1, 0, 2, 1), (1, 1))
    probed = add_probes(model, [Probe("patches", "x", False, (), Window((3, 2), geometry))])
    casts = [node for node in probed.graph.node if node.op_type == "Conv"]
    assert len(casts) == (1 if exact > 45 and "h" not in sizes else 2)
    x, u = normal(RNG, 2, 3, 5, 9), numbers(17)
    np.testing.assert_array_equal(run(probed, x=x, **{POSITIONS: u})[0], sampled(im2col(x, (3, 2), geometry), u))


def test_several_steps_and_a_rewritten_model_sample_the_same_positions() -> None:
    model = conv_model(normal(RNG, 4, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
    (layer,) = find_layers(model)
    v = Step("v", normal(RNG, 2, 3, 3, 1), layer.geometry.only(0))
    h = Step("h", normal(RNG, 4, 2, 1, 3), layer.geometry.only(1))
    x, u = normal(RNG, 2, 3, 11, 14), numbers(9)
    beside = run(add_probes(model, [Probe("p", "x", False, (v, h))]), x=x, **{POSITIONS: u})[0]
    rewritten = rewrite(model, [layer], {"conv": Chain((v, h))})
    inside = run(add_probes(rewritten, [Probe("p", "y", False)]), x=x, **{POSITIONS: u})[0]
    np.testing.assert_array_equal(beside, inside)


def test_only_what_the_probes_need_is_left() -> None:
    model = normalise(residual_block())
    before = model.SerializeToString(deterministic=True)
    probed = add_probes(model, [Probe("rb", "b", False), Probe("rx", "x", False)])
    assert [output.name for output in probed.graph.output] == ["rb", "rx"]
    assert [info.name for info in probed.graph.input] == ["x", POSITIONS]
    assert [n.name for n in probed.graph.node if not n.name.startswith("onnxlowrank_probe/")] == ["n_a"]
    used = {name for n in probed.graph.node for name in n.input}
    assert {tensor.name for tensor in probed.graph.initializer} <= used
    assert model.SerializeToString(deterministic=True) == before
    assert probed == add_probes(model, [Probe("rb", "b", False), Probe("rx", "x", False)])


def test_what_subgraphs_read_is_kept() -> None:
    model = parse(
        """g (float[N, 2, h, w] x, bool t) => (float[N, 2, h, w] y) {
            a = Neg (x)
            z = If (t) < then_branch = yes () => (float[N, 2, h, w] p) { p = Mul (a, c) },
                         else_branch = no () => (float[N, 2, h, w] q) { q = Identity (a) } >
            y = Relu (z)
        }""",
        c=np.float32(3),
    )
    x, u = normal(RNG, 2, 2, 4, 4), numbers(5)
    rows = run(add_probes(model, [Probe("rz", "z", False)]), x=x, t=np.array(True), **{POSITIONS: u})[0]
    np.testing.assert_array_equal(rows, sampled(-3 * x, u))


def test_refusals() -> None:
    model = parse("g (float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }")
    with pytest.raises(ValueError, match="'nowhere', which is not in the model"):
        add_probes(model, [Probe("p", "nowhere", True)])
    with pytest.raises(ValueError, match="has the name of"):
        add_probes(model, [Probe("y", "x", True)])
    with pytest.raises(ValueError, match="channels-last"):
        add_probes(model, [Probe("p", "x", True, (), Window((1, 1), Geometry.pointwise(2)))])
    with pytest.raises(ValueError, match="nowhere"):
        expose(model, ["nowhere"])
    with pytest.raises(ValueError, match="n_y"):
        expose(model, ["n_y"])  # a node
    model.opset_import[0].CopyFrom(helper.make_opsetid("", 8))
    with pytest.raises(ModelError, match="opset 8"):
        add_probes(model, [Probe("p", "x", True)])


def test_expose() -> None:
    model = normalise(residual_block())
    exposed = expose(model, ["e", "x", "b"])
    assert [output.name for output in exposed.graph.output] == ["e", "x", "b"]
    assert [n.name for n in exposed.graph.node] == ["n_a", "n_c", "n_d"]
    x = normal(RNG, 2, 4, 8, 8)
    second, same, first = run(exposed, x=x)
    np.testing.assert_array_equal(same, x)
    assert first.shape == (2, 6, 8, 8)
    weight, bias = find_layers(model)[1].weight, find_layers(model)[1].bias
    patches = im2col(np.maximum(first, 0), (3, 3), Geometry((1, 1), (1, 1, 1, 1), (1, 1)))
    expected = np.einsum("fk,nkhw->nfhw", weight.reshape(4, -1), patches) + bias[:, None, None]
    assert error(second, expected) < 1e-5

"""Chains against convolutions by SciPy and onnxruntime, and against numbers counted by hand."""

import math

import numpy as np
import pytest
from helpers.models import conv_model, error, normal, run
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import convolve

from onnxlowrank.graph.chain import DENSE, GROUPED, SPLIT, Chain, Step
from onnxlowrank.graph.convolution import conv_attributes
from onnxlowrank.graph.layer import FLAT, Geometry

RNG = np.random.default_rng(11)


def grouped_out(weight, group):
    """Return ``[F, C, *kernel]`` of a grouped kernel ``[F, C/group, *kernel]``, element by element."""
    f, c = weight.shape[0] // group, weight.shape[1]
    dense = np.zeros((weight.shape[0], c * group, *weight.shape[2:]))
    for out in range(weight.shape[0]):
        for inner in range(c):
            dense[out, (out // f) * c + inner] = weight[out, inner]
    return dense


def composed(kernels):
    """Return the kernel of convolutions one after the other, as sums of full convolutions of their taps."""
    total, *rest = [kernel.astype(np.float64) for kernel in kernels]
    for kernel in rest:
        total = np.stack(
            [
                np.stack(
                    [
                        sum(convolve(filters[m], total[m, c], mode="full") for m in range(len(total)))
                        for c in range(total.shape[1])
                    ]
                )
                for filters in kernel
            ]
        )
    return total


# In convolutions with pads, strides and dilations of its own, every geometry the tests draw from.
geometries = st.builds(
    lambda strides, pads, dilations: Geometry(tuple(strides), tuple(pads), tuple(dilations)),
    st.lists(st.integers(1, 3), min_size=2, max_size=2),
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
    st.lists(st.integers(1, 3), min_size=2, max_size=2),
)


@settings(max_examples=40, deadline=None)
@given(
    st.permutations([(3, 1), (1, 4), (1, 1)]),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=3, max_size=3),
    st.integers(1, 3),
    st.integers(0, 2**31),
)
def test_dense_kernel_is_the_composition(kernels, sizes, inputs, seed):
    rng = np.random.default_rng(seed)
    steps, channels = [], inputs
    for i, (kernel, (group, filters)) in enumerate(zip(kernels, sizes, strict=True)):
        group = group if channels % group == 0 else 1
        weight = normal(rng, filters * group, channels // group, *kernel)
        steps.append(Step(f"s{i}", weight, Geometry.pointwise(2), group))
        channels = filters * group
    dense = Chain(tuple(steps)).dense_kernel()
    expected = composed([grouped_out(step.weight, step.group) for step in steps])
    assert dense.shape == (channels, inputs, 3, 4)
    assert dense.dtype == np.float32
    np.testing.assert_allclose(dense, expected, atol=1e-4)


def test_dense_kernel_is_the_impulse_response():
    v, h, mix = normal(RNG, 5, 3, 4, 1), normal(RNG, 6, 5, 1, 3), normal(RNG, 7, 6, 1, 1)
    y = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)  # one impulse in each input map
    for weight, pads in ((v, [3, 0, 3, 0]), (h, [0, 2, 0, 2]), (mix, [0] * 4)):
        (y,) = run(conv_model(weight, pads=pads), x=y)
    geometry = Geometry.pointwise(2)
    chain = Chain((Step("v", v, geometry), Step("h", h, geometry), Step("mix", mix, geometry)))
    assert error(chain.dense_kernel(), y.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]) <= 1e-5


def test_dense_kernel_on_one_axis_and_on_none():
    a, b = normal(RNG, 2, 3, 5), normal(RNG, 4, 2, 1)
    dense = Chain((Step("a", a, Geometry.pointwise(1)), Step("b", b, Geometry.pointwise(1)))).dense_kernel()
    np.testing.assert_allclose(dense, composed([a, b]), atol=1e-5)
    p, q = normal(RNG, 2, 6), normal(RNG, 5, 2)
    np.testing.assert_allclose(Chain((Step("q", p), Step("p", q))).dense_kernel(), q @ p, atol=1e-5)
    assert Chain((Step("q", p),)).dense_kernel() is p


@pytest.mark.parametrize("kernel", [(3,), (2, 3)])
@pytest.mark.parametrize(("group", "filters", "channels"), [(1, 4, 3), (2, 6, 4), (3, 3, 3), (4, 8, 4)])
def test_groups_written_out_compute_the_same(kernel, group, filters, channels):
    step = Step("g", normal(RNG, filters, channels // group, *kernel), Geometry.pointwise(len(kernel)), group)
    dense = step.dense_weight()
    np.testing.assert_array_equal(dense, grouped_out(step.weight, group))
    x = normal(RNG, 2, channels, *(6,) * len(kernel))
    assert error(run(conv_model(step.weight, group=group), x=x)[0], run(conv_model(dense), x=x)[0]) <= 1e-5


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_orders_written_out(group, filters, channels, takes, gives, seed):
    """A map taken twice counts twice; a map not given is left out."""
    rng = np.random.default_rng(seed)
    weight = normal(rng, group * filters, channels, 3)
    inputs = max(group * channels - 1, 1)
    take = np.concatenate([rng.permutation(inputs), rng.integers(0, inputs, group * channels - inputs)])
    give = rng.permutation(group * filters)[: max(group * filters - 1, 1)]
    step = Step("w", weight, group=group, take=take if takes else None, give=give if gives else None)
    x = rng.standard_normal((inputs if takes else group * channels, 3)).astype(np.float32)
    maps = x[take] if takes else x
    expected = np.einsum("fct,ct->f", grouped_out(weight, group), maps)
    expected = expected[give] if gives else expected
    assert error(np.einsum("fct,ct->f", step.dense_weight(), x), expected) < 1e-5
    assert error(np.einsum("fct,ct->f", step.lowered(DENSE).weight, x), expected) < 1e-5


def test_forms_worth_a_measurement():
    def lowerings(f, c, group, *kernel, **order):
        return Step("w", np.zeros((f, c, *kernel)), group=group, **order).lowerings

    assert lowerings(8, 4, 1, 3, 3) == (DENSE,)
    assert lowerings(8, 1, 8, 3, 3) == (GROUPED,)  # truly depthwise
    assert lowerings(8, 1, 4, 3, 3) == (SPLIT, GROUPED)
    assert lowerings(8, 4, 2, 3, 3) == (GROUPED, SPLIT)
    assert lowerings(8, 4, 2, 1, 1) == (GROUPED, DENSE, SPLIT)
    chain = Chain((Step("a", np.ones((4, 2, 1, 1)), group=2), Step("b", np.ones((8, 2, 3, 3)), group=2)))
    assert chain.lowerings == (GROUPED, GROUPED)
    lowered = chain.lowered((DENSE, SPLIT))
    assert [step.split for step in lowered.steps] == [False, True]
    assert lowered.steps[0].weight.shape == (4, 4, 1, 1)
    np.testing.assert_array_equal(lowered.dense_kernel(), chain.dense_kernel())
    np.testing.assert_array_equal(chain.lowered(chain.lowerings).dense_kernel(), chain.dense_kernel())


def test_macs_and_parameters_counted_by_hand():
    bias = np.zeros(8, np.float32)

    # 12x10, pad 1, stride (2, 1), 3x3 -> 6x10: 5 filters of 4x3x3, then 8x5
    geometry = Geometry((2, 1), (1, 1, 1, 1), (1, 1))
    chain = Chain(
        (
            Step("reduced", np.zeros((5, 4, 3, 3)), geometry),
            Step("restore", np.zeros((8, 5, 1, 1)), Geometry.pointwise(2)),
        ),
        bias,
    )
    assert chain.macs((3, 4, 12, 10)) == 60 * (180 + 40)
    assert chain.parameters == 180 + 40 + 8

    # k x 1 at (6, 10), as the width is not yet reduced; 1 x k with dilation 2 and pads 0, 1 at (6, 7)
    geometry = Geometry((2, 1), (1, 0, 1, 1), (1, 2))
    chain = Chain(
        (
            Step("v", np.zeros((5, 4, 3, 1)), geometry.only(0)),
            Step("h", np.zeros((8, 5, 1, 3)), geometry.only(1)),
        )
    )
    assert chain.macs((1, 4, 12, 10)) == 60 * 60 + 42 * 120
    assert chain.parameters == 60 + 120

    # Groups: the weight's own size counts. One axis of 20 with stride 3 -> 6.
    chain = Chain((Step("g", np.zeros((6, 2, 5)), Geometry((3,), (0, 0), (1,)), group=3),))
    assert chain.macs((1, 6, 20)) == 6 * 60

    # Fully connected, without and with two more axes
    chain = Chain((Step("a", np.zeros((3, 7))), Step("b", np.zeros((8, 3)))), bias)
    assert chain.macs((16, 7)) == 21 + 24
    assert chain.macs((16, 5, 9, 7)) == 45 * (21 + 24)
    assert chain.parameters == 21 + 24 + 8


def test_papers_formulas():
    """At stride 1 and "same" padding all factors are computed at the same positions, as the papers count."""
    d, c, k, rank, vertical, size = 48, 24, 3, 10, 14, 20
    same = Geometry((1, 1), (1, 1, 1, 1), (1, 1))
    point = Geometry.pointwise(2)
    shape = (1, c, size, size)

    zhang = Chain((Step("w", np.zeros((rank, c, k, k)), same), Step("p", np.zeros((d, rank, 1, 1)), point)))
    assert zhang.macs(shape) == size**2 * (rank * k**2 * c + d * rank)
    assert zhang.parameters == rank * k**2 * c + d * rank

    three = Chain(
        (
            Step("v", np.zeros((vertical, c, k, 1)), same.only(0)),
            Step("h", np.zeros((rank, vertical, 1, k)), same.only(1)),
            Step("p", np.zeros((d, rank, 1, 1)), point),
        )
    )
    assert three.macs(shape) == size**2 * (vertical * c * k + rank * vertical * k + d * rank)
    assert three.parameters == vertical * c * k + rank * vertical * k + d * rank

    jaderberg = Chain(three.steps[:1] + (Step("h", np.zeros((d, vertical, 1, k)), same.only(1)),))  # noqa: RUF005
    assert jaderberg.macs(shape) == size**2 * (vertical * c * k + d * vertical * k)

    denton = Chain((Step("q", np.zeros((rank, c))), Step("p", np.zeros((d, rank)))))
    assert denton.macs((1, c)) == denton.parameters == rank * (c + d)


@settings(max_examples=60, deadline=None)
@given(
    geometries,
    st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
def test_output_size_is_onnxruntimes(geometry, auto_pad, kernel, extra):
    dilations = (1, 1) if auto_pad.startswith("SAME") else geometry.dilations  # SAME with dilations does not run
    geometry = Geometry(geometry.strides, geometry.pads, dilations, auto_pad)
    size = tuple(1 + d * (k - 1) + e for d, k, e in zip(dilations, kernel, extra, strict=True))
    step = Step("w", np.ones((1, 1, *kernel), np.float32), geometry)
    (y,) = run(conv_model(step.weight, **conv_attributes(step)), x=np.ones((1, 1, *size), np.float32))
    assert geometry.output_size(size, kernel) == y.shape[2:]

    # One axis after the other gives the same size; each leaves the other axis alone.
    between = geometry.only(0).output_size(size, (kernel[0], 1))
    assert between == (y.shape[2], size[1])
    assert geometry.only(1).output_size(between, (1, kernel[1])) == y.shape[2:]
    assert Geometry.pointwise(2).output_size(size, (1, 1)) == size


def test_only_keeps_one_axis():
    geometry = Geometry((2, 3), (1, 2, 3, 4), (5, 6), "VALID")
    assert geometry.only(0) == Geometry((2, 1), (1, 0, 3, 0), (5, 1), "VALID")
    assert geometry.only(1) == Geometry((1, 3), (0, 2, 0, 4), (1, 6), "VALID")
    assert geometry.only(0, 1) == geometry
    assert geometry.only() == Geometry((1, 1), (0, 0, 0, 0), (1, 1), "VALID")
    assert (geometry.axes, FLAT.axes) == (2, 0)
    assert Geometry.pointwise(0) == FLAT
    assert math.prod(FLAT.output_size((), ())) == 1

"""Every registered pass: what it offers, what its chains compute, and how well they are fitted."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
from helpers.models import conv_model, error, normal, parse, run, transposed_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.decompose.metric import element_weights, frobenius
from onnxlowrank.decompose.spatial import spatial_factors
from onnxlowrank.errors import OptionError
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.graph.chain import Chain, Step, as_chain
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import Geometry, Layer
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.passes import load_passes, pass_names
from onnxlowrank.passes.base import Pass, Setting, keep
from onnxlowrank.passes.groups import joint_energy, kernels_of
from onnxlowrank.progress import Silent

PASSES = load_passes()
every_pass = pytest.mark.parametrize("method", PASSES, ids=lambda one: one.name)
RNG = np.random.default_rng(17)
KERNELS = [(3, 3), (1, 1), (5, 3), (2, 2), (4, 4), (7, 7), (2, 5), (1, 3), (3, 1)]
DEPTHWISE = [(5, 5), (7, 4), (3, 9), (3, 5, 2)]
KERNELS_3D = [(3, 2, 2), (2, 1, 3), (1, 3, 2), (2, 2, 1), (3, 1, 1), (1, 1, 1)]

_WIDEST = 3000
"""Channels of a link, at most."""


@dataclass(frozen=True)
class Case:
    """A network of one layer, and batches to fit and to compare it on."""

    model: ModelProto
    layer: Layer
    inputs: Inputs

    @property
    def x(self) -> np.ndarray:
        return self.inputs[0]["x"]


def listed(batches: list[np.ndarray]) -> Inputs:
    return Inputs(lambda index: {"x": batches[index]}, len(batches), len(batches[0]), "random numbers")


def case_of(model: ModelProto, batches: list[np.ndarray]) -> Case:
    inputs = listed(batches)
    (layer,) = with_shapes(model, find_layers(model), inputs)
    return Case(model, layer, inputs)


def fit_alone(case: Case, method: Pass, setting: Setting, **options: bool) -> Chain:
    """Fit one layer as the pipeline does."""
    return fit_network(case.model, [case.layer], {case.layer.name: (method, setting)}, case.inputs, **options)[
        case.layer.name
    ]


def fit_network(
    model: ModelProto,
    layers: list[Layer],
    chosen: dict[str, tuple[Pass, Setting]],
    inputs: Inputs,
    **options: bool,
) -> dict[str, Chain]:
    applicable = {name: {method.name: method} for name, (method, _) in chosen.items()}
    plan = {layer.name: keep(layer) for layer in layers}
    for layer in layers:
        if layer.name in chosen:
            method, setting = chosen[layer.name]
            plan[layer.name] = method.candidate(layer, setting, 0.9)
    with RowStore() as store:
        about = Calibration(model, layers, applicable, inputs, store)
        return Fitter(about, Drafts(about.applicable, collect_statistics(about, Silent())), **options).fit(
            plan, Silent()
        )


def statistics_of(case: Case, method: Pass) -> dict:
    with RowStore() as store:
        applicable = {case.layer.name: {method.name: method}}
        found = collect_statistics(Calibration(case.model, [case.layer], applicable, case.inputs, store), Silent())
    return found[case.layer.name]


def matrix_model(op: str, weight: np.ndarray, bias: np.ndarray | None) -> ModelProto:
    constants = {"w": weight if op == "Gemm" else weight.T}
    if bias is not None:
        constants["b"] = bias
    (f, c), operands = weight.shape, ", b" if bias is not None else ""
    if op == "Gemm":
        body = f"g (float[N, {c}] x) => (float[N, {f}] y) {{ y = Gemm <transB = 1> (x, w{operands}) }}"
    else:
        last = "m = MatMul (x, w)  y = Add (m, b)" if bias is not None else "y = MatMul (x, w)"
        body = f"g (float[N, T, {c}] x) => (float[N, T, {f}] y) {{ {last} }}"
    return parse(body, **{name: np.ascontiguousarray(values) for name, values in constants.items()})


def dense_model(case: Case, chain: Chain) -> ModelProto:
    """Return the network with the one layer the chain should equal."""
    layer, kernel = case.layer, chain.dense_kernel()
    if not layer.is_conv:
        return matrix_model(layer.op, kernel, chain.bias)
    geometry = layer.geometry
    attributes = {"strides": geometry.strides, "dilations": geometry.dilations}
    attributes |= {"pads": geometry.pads} if geometry.auto_pad == "NOTSET" else {"auto_pad": geometry.auto_pad}
    if geometry.transposed:
        return transposed_model(kernel, chain.bias, output_padding=geometry.output_padding, **attributes)
    return conv_model(kernel, chain.bias, **attributes)


def absolute(chain: Chain) -> Chain:
    """Return the chain of absolute values."""
    return Chain(tuple(replace(step, weight=np.abs(step.weight)) for step in chain.steps), np.abs(chain.bias))


def rounding(actual: np.ndarray, case: Case, chain: Chain) -> float:
    """Return how far ``actual`` is from what the chain's dense layer computes of ``case.x``.

    That is relative to the sum of all absolute values: fitted to a few samples, factors may be large and cancel.
    """
    expected = run(dense_model(case, chain), x=case.x)[0]
    most = run(dense_model(case, absolute(chain)), x=np.abs(case.x))[0]
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / max(most.max(), 1e-6))


@st.composite
def cases(draw: st.DrawFn, kind: str, lots: bool = False) -> Case:
    """Draw a layer of ``kind``, and random samples; with ``lots``, enough to determine every fit."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    f, c, batch = draw(st.integers(2, 7)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    feeds = 4 if lots else draw(st.integers(1, 3))
    bias = normal(rng, f) if draw(st.booleans()) else None
    if kind in ("Gemm", "MatMul"):
        batch = 50 if lots else batch
        shape = (batch, c) if kind == "Gemm" else (batch, 3, c)
        return case_of(matrix_model(kind, normal(rng, f, c), bias), [normal(rng, *shape) for _ in range(feeds)])

    kernels = DEPTHWISE if kind == "depthwise" else KERNELS_3D if kind.endswith("3d") else KERNELS
    kernel = draw(st.sampled_from(kernels))[: 1 if kind.endswith("1d") else 3]
    axes = len(kernel)

    def each(low: int, high: int, count: int = axes) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(count)]

    attributes = {"strides": each(1, 3)}
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    attributes["dilations"] = [1] * axes if auto_pad.startswith("SAME") else each(1, 2)
    if auto_pad == "NOTSET":
        attributes["pads"] = each(0, 2, 2 * axes)
    else:
        attributes["auto_pad"] = auto_pad
    extra = [4 if axes == 3 else 12] * axes if lots else each(0, 2 if axes == 3 else 5)
    size = [d * (k - 1) + 1 + e for d, k, e in zip(attributes["dilations"], kernel, extra, strict=True)]
    if kind.startswith("transposed"):
        attributes["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in attributes["strides"]]
        if auto_pad != "NOTSET":
            attributes["output_padding"] = [0] * axes
        groups = 2 if kind.endswith("grouped") else 1
        bias = None if bias is None else normal(rng, groups * f)
        model = transposed_model(normal(rng, groups * f, c, *kernel), bias, groups, **attributes)
        c *= groups
        assume(min(find_layers(model)[0].geometry.output_size(tuple(size), kernel)) > 0)
    elif kind == "depthwise":
        model, c = conv_model(normal(rng, f, 1, *kernel), bias, group=f, **attributes), f
    elif kind == "grouped":
        groups = draw(st.integers(2, 3))
        bias = None if bias is None else normal(rng, groups * f)
        model = conv_model(normal(rng, groups * f, c, *kernel), bias, group=groups, **attributes)
        c *= groups
    else:
        model = conv_model(normal(rng, f, c, *kernel), bias, **attributes)
    return case_of(model, [normal(rng, batch, c, *size) + 0.3 for _ in range(feeds)])


KINDS = (
    *("conv2d", "conv1d", "conv3d", "Gemm", "MatMul", "transposed2d", "transposed1d", "transposed3d"),
    *("grouped", "transposed_grouped", "depthwise"),
)


def is_narrow(method: Pass, layer: Layer, setting: Setting) -> bool:
    """Tell whether a chain is no wider than its fit has memory for: it looks at all pairs of channels in a link.

    Clusters of one map each with all terms there are would be tens of thousands; no plan has such chains.
    """
    return max(len(step.weight) for step in method.outline(layer, setting).steps) <= _WIDEST


def suitable(method: Pass) -> list[str]:
    """Return the kinds of layers that a pass takes at all."""
    plain = {
        "conv2d": conv_model(normal(RNG, 8, 8, 3, 3)),
        "conv1d": conv_model(normal(RNG, 8, 8, 3)),
        "transposed2d": transposed_model(normal(RNG, 8, 8, 3, 3)),
        "conv3d": conv_model(normal(RNG, 8, 8, 3, 3, 3)),
        "transposed1d": transposed_model(normal(RNG, 8, 8, 3)),
        "transposed3d": transposed_model(normal(RNG, 8, 8, 3, 3, 3)),
        "grouped": conv_model(normal(RNG, 8, 4, 3, 3), group=2),
        "transposed_grouped": transposed_model(normal(RNG, 8, 4, 3, 3), group=2),
        "depthwise": conv_model(normal(RNG, 8, 1, 5, 5), group=8),
        "Gemm": matrix_model("Gemm", normal(RNG, 8, 8), None),
        "MatMul": matrix_model("MatMul", normal(RNG, 8, 8), None),
    }
    layers = {kind: find_layers(plain[kind])[0] for kind in KINDS}
    return [kind for kind, layer in layers.items() if layer.op in method.ops and method.refusal(layer) is None]


@every_pass
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_rewritten_layer_is_the_dense_layer_of_its_chain(method: Pass, data: st.DataObject) -> None:
    case = data.draw(cases(data.draw(st.sampled_from(suitable(method)))))
    assume(method.refusal(case.layer) is None)
    setting = tuple(data.draw(st.integers(1, limit)) for limit in method.limits(case.layer))
    assume(is_narrow(method, case.layer, setting))
    chain = fit_alone(case, method, setting)
    rewritten = rewrite(case.model, [case.layer], {case.layer.name: chain})
    onnx.checker.check_model(rewritten, full_check=True)
    assert rounding(run(rewritten, x=case.x)[0], case, chain) <= 1e-6
    assert all(step.weight.dtype == np.float32 for step in chain.steps)
    assert chain.bias.dtype == np.float32

    outline = method.outline(case.layer, setting)
    outline = outline.lowered(outline.lowerings)
    for is_step, was_step in zip(chain.steps, outline.steps, strict=True):
        assert is_step.weight.shape == was_step.weight.shape
        assert (is_step.name, is_step.geometry, is_step.group) == (was_step.name, was_step.geometry, was_step.group)
        assert (is_step.take is None, is_step.give is None) == (was_step.take is None, was_step.give is None)
    assert chain.bias.shape == outline.bias.shape
    shape = case.layer.input_shape
    assert chain.macs(shape) == outline.macs(shape) == method.candidate(case.layer, setting, 0.5).macs
    assert chain.parameters == outline.parameters
    assert chain.parameters - len(chain.bias) == sum(
        numpy_helper.to_array(tensor).size
        for tensor in rewritten.graph.initializer
        if "/lowrank/" in tensor.name and tensor.name.endswith("weight")
    )
    assert (
        run(rewrite(case.model, [case.layer], {case.layer.name: outline}), x=case.x)[0].shape[1:]
        == (case.layer.output_shape[1:])
    )


@every_pass
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_full_rank_is_the_layer_itself(method: Pass, data: st.DataObject) -> None:
    lots = data.draw(st.booleans())
    case = data.draw(cases(data.draw(st.sampled_from(suitable(method))), lots))
    assume(method.refusal(case.layer) is None)
    if method.name == "monochromatic" and 1 not in case.layer.folded.shape[1:]:
        return  # one colour a filter is not the layer
    assume(is_narrow(method, case.layer, method.limits(case.layer)))
    chain = fit_alone(case, method, method.limits(case.layer))
    rewritten = rewrite(case.model, [case.layer], {case.layer.name: chain})
    assert error(run(rewritten, x=case.x)[0], run(case.model, x=case.x)[0]) <= 1e-2
    if lots:  # then the samples determine the kernel
        assert error(chain.dense_kernel(), as_chain(case.layer).dense_kernel()) <= 2e-2


@every_pass
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_every_form_computes_the_same(method: Pass, data: st.DataObject) -> None:
    case = data.draw(cases(data.draw(st.sampled_from(suitable(method)))))
    assume(method.refusal(case.layer) is None)
    setting = tuple(data.draw(st.integers(1, limit)) for limit in method.limits(case.layer))
    assume(is_narrow(method, case.layer, setting))
    chain = fit_alone(case, method, setting)
    most = absolute(chain).dense_kernel().max()
    for lowerings in itertools.product(*(step.lowerings for step in chain.steps)):
        lowered = chain.lowered(lowerings)
        rewritten = rewrite(case.model, [case.layer], {case.layer.name: lowered})
        onnx.checker.check_model(rewritten, full_check=True)
        assert rounding(run(rewritten, x=case.x)[0], case, chain) <= 1e-6
        assert np.abs(lowered.dense_kernel() - chain.dense_kernel()).max() <= 1e-6 * most
        assert lowered.macs(case.layer.input_shape) >= chain.macs(case.layer.input_shape)


def test_energies_of_groups_are_shares_of_the_variance_that_projections_keep() -> None:
    case = case_of(conv_model(normal(RNG, 24, 5, 3, 3), group=3), [normal(RNG, 2, 15, 9, 9) for _ in range(2)])
    (method,) = load_passes(["channel"])
    responses = np.concatenate([run(case.model, **feeds)[0] for feeds in case.inputs])
    rows = np.moveaxis(responses, 1, -1).reshape(-1, 24) - responses.mean(axis=(0, 2, 3))
    offered = list(method.candidates(case.layer, statistics_of(case, method), 6))
    assert [one.setting for one in offered] == [(2,), (4,), (6,)]
    for one in offered:
        kept = 0.0
        for part in np.split(rows, 3, axis=1):
            kept += (np.linalg.svd(part, compute_uv=False)[: one.setting[0]] ** 2).sum()
        assert one.energy == pytest.approx(kept / (rows**2).sum(), abs=2e-3)


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("bias", [None, normal(RNG, 90)])
def test_responses_that_are_more_than_the_inputs_keep_what_they_are_predicted_to(op, bias) -> None:
    inputs = normal(RNG, 36, 36)
    feeds = [normal(RNG, 20, 36) @ inputs if op == "Gemm" else normal(RNG, 20, 3, 36) @ inputs for _ in range(8)]
    case = case_of(matrix_model(op, normal(RNG, 90, 36), bias), feeds)
    (method,) = load_passes(["fully_connected"])
    assert case.layer.widens
    assert method.limits(case.layer) == (36,)
    offered = list(method.candidates(case.layer, statistics_of(case, method), 6))
    assert [one.setting for one in offered] == [(6,), (12,), (18,), (24,)]
    truth = np.concatenate([run(case.model, x=x)[0].reshape(-1, 90) for x in feeds])
    for one in offered:
        rewritten = rewrite(case.model, [case.layer], {case.layer.name: fit_alone(case, method, one.setting)})
        found = np.concatenate([run(rewritten, x=x)[0].reshape(-1, 90) for x in feeds])
        lost = ((found - truth) ** 2).sum() / ((truth - truth.mean(axis=0)) ** 2).sum()
        assert lost == pytest.approx(1 - one.energy, rel=0.1, abs=1e-3)


def test_a_kernel_of_few_colours_is_recovered() -> None:
    rng = np.random.default_rng(4)
    kernel = np.einsum("fc,ft->fct", rng.standard_normal((4, 5))[rng.permutation(24) % 4], rng.standard_normal((24, 9)))
    model = conv_model(kernel.astype(np.float32).reshape(24, 5, 3, 3), normal(rng, 24), pads=[1] * 4)
    case = case_of(model, [normal(rng, 2, 5, 9, 9) for _ in range(3)])
    (method,) = load_passes(["monochromatic"])
    assert error(fit_alone(case, method, (4,)).dense_kernel(), case.layer.weight) <= 1e-3
    assert error(fit_alone(case, method, (3,)).dense_kernel(), case.layer.weight) > 0.1


SIZES = {"bicluster_svd": (40, 36), "channel_prune": (28, 20)}
SINGLE = ("depthwise",)
"""Passes that offer a single setting."""
CLUSTERS = ("G", "H", "C'")
"""Ranks that count clusters are not maps and need no alignment."""


def wide(method: Pass) -> Case:
    """Return a layer with many candidates of the first kind the pass takes."""
    kind = suitable(method)[0]
    rng = np.random.default_rng(2)
    f, c = SIZES.get(method.name, (28, 12))
    if method.name == "monochromatic":  # offers nothing where no few colours suffice
        colours = rng.permutation(48) % 4
        kernel = np.einsum("fc,ft->fct", rng.standard_normal((4, 8))[colours], rng.standard_normal((48, 9)))
        weight = (kernel + 0.3 * rng.standard_normal(kernel.shape)).astype(np.float32).reshape(48, 8, 3, 3)
        return case_of(conv_model(weight, pads=[1] * 4), [normal(rng, 2, 8, 9, 9) for _ in range(3)])
    if kind == "conv2d":
        model = conv_model(normal(rng, f, c, 3, 3), pads=[1] * 4)
        return case_of(model, [normal(rng, 2, c, 9, 9) for _ in range(3)])
    if kind == "conv1d":
        return case_of(conv_model(normal(rng, 28, 12, 3)), [normal(rng, 2, 12, 40) for _ in range(3)])
    if kind == "depthwise":
        weight = np.einsum("fi,fj->fij", rng.standard_normal((24, 7)), rng.standard_normal((24, 7)))
        weight = (weight + 0.3 * rng.standard_normal(weight.shape)).astype(np.float32)[:, None]
        model = conv_model(weight, pads=[3] * 4, group=24)
        return case_of(model, [normal(rng, 2, 24, 12, 12) for _ in range(3)])
    return case_of(matrix_model("Gemm", normal(rng, 40, 36), None), [normal(rng, 60, 36) for _ in range(3)])


@every_pass
@pytest.mark.parametrize("block", [4, 8])
def test_candidates(method: Pass, block: int) -> None:
    case = wide(method)
    offered = list(method.candidates(case.layer, statistics_of(case, method), block))
    assert len(offered) > (method.name not in SINGLE)
    assert len({candidate.setting for candidate in offered}) == len(offered)
    limits = method.limits(case.layer)
    for candidate in offered:
        assert (candidate.layer, candidate.method) == (case.layer.name, method.name)
        outline = method.outline(case.layer, candidate.setting)
        assert 0 < candidate.macs < case.layer.macs
        assert candidate.macs == outline.macs(case.layer.input_shape)
        assert candidate.parameters == outline.parameters
        assert 0 < candidate.energy <= 1
        assert len(candidate.setting) == len(limits) == len(method.rank_names)
        assert all(1 <= rank <= limit for rank, limit in zip(candidate.setting, limits, strict=True))
        inner = [
            len(step.given) for step in outline.steps[:-1] if np.prod(step.kernel) > 1 or method.name != "monochromatic"
        ]
        assert all(maps % block == 0 for maps in inner)
    for one in offered:
        for other in offered:
            pairs = list(zip(method.rank_names, one.setting, other.setting, strict=True))
            if all(a == b if name in CLUSTERS else a <= b for name, a, b in pairs):
                assert one.energy <= other.energy + 1e-9


TOO_CAREFUL = {"outer_product": 0.3, "cp": 0.3, "bicluster_outer": 0.3, "pruned_asymmetric3d": 0.2}
"""How much more than predicted these may keep: terms, or reductions, improve together, the prediction takes them one by
one."""


@every_pass
def test_predicted_energy_is_the_share_of_variance_a_linear_fit_keeps(method: Pass) -> None:
    """Statistics that do not determine the response would be no guide. The prediction may err, not mislead."""
    case = wide(method)
    offered = list(method.candidates(case.layer, statistics_of(case, method), 8))
    for candidate in offered[:: max(len(offered) // 6, 1)]:
        chain = fit_alone(case, method, candidate.setting, nonlinear=False)
        rewritten = rewrite(case.model, [case.layer], {case.layer.name: chain})
        lost = total = 0.0
        for feeds in case.inputs:
            y, z = run(case.model, **feeds)[0].astype(np.float64), run(rewritten, **feeds)[0]
            axes = (0, *range(2, y.ndim))
            lost += float(((y - z) ** 2).sum())
            total += float(((y - y.mean(axis=axes, keepdims=True)) ** 2).sum())
        kept = 1 - lost / total
        assert candidate.energy - 0.12 <= kept <= candidate.energy + TOO_CAREFUL.get(method.name, 0.12)


def refused(name: str, model: ModelProto) -> str | None:
    return load_passes([name])[0].refusal(find_layers(model)[0])


CONV, GROUPED = conv_model(normal(RNG, 4, 4, 3, 3)), conv_model(normal(RNG, 4, 2, 3, 3), group=2)
DEPTHWISE_1D, CONV_1D = conv_model(normal(RNG, 4, 1, 3), group=4), conv_model(normal(RNG, 4, 4, 3))
GEMM, MATMUL = (matrix_model(op, normal(RNG, 4, 4), None) for op in ("Gemm", "MatMul"))


@pytest.mark.parametrize(
    ("name", "model", "reason"),
    [
        ("channel", CONV, None),
        ("channel", CONV_1D, None),
        ("channel", conv_model(normal(RNG, 4, 4, 1, 1)), None),
        ("channel", GROUPED, None),
        ("channel", DEPTHWISE_1D, "group=4"),
        ("depthwise", DEPTHWISE_1D, "kernel 3"),
        ("depthwise", conv_model(normal(RNG, 4, 1, 5, 5), group=4), None),
        ("depthwise", conv_model(normal(RNG, 4, 1, 3, 3), group=4), "depthwise 3x3 is faster whole"),
        ("depthwise", conv_model(normal(RNG, 4, 1, 1, 25), group=4), "kernel 1x25"),
        ("depthwise", conv_model(normal(RNG, 8, 1, 5, 5), group=4), "not depthwise"),
        ("depthwise", conv_model(normal(RNG, 1, 1, 5, 5)), "not depthwise"),
        ("depthwise", GROUPED, "not depthwise"),
        ("fully_connected", GEMM, None),
        ("fully_connected", MATMUL, None),
    ],
)
def test_refusals(name: str, model: ModelProto, reason: str | None) -> None:
    assert refused(name, model) == reason


@pytest.mark.parametrize("name", ["svd", "outer_product", "monochromatic", "bicluster_svd", "bicluster_outer"])
def test_refusals_of_kernels_of_one_tap(name: str) -> None:
    assert refused(name, CONV) is None
    assert refused(name, CONV_1D) is None
    assert refused(name, conv_model(normal(RNG, 4, 4, 1, 7))) is None
    assert refused(name, conv_model(normal(RNG, 4, 4, 3, 1, 1))) is None
    assert refused(name, conv_model(normal(RNG, 4, 4, 1, 1, 1))) == "kernel 1x1x1"
    assert refused(name, conv_model(normal(RNG, 4, 4, 1, 1))) == "kernel 1x1"
    assert refused(name, GROUPED) == (None if name in ("svd", "outer_product") else "group=2")
    assert refused(name, DEPTHWISE_1D) == "group=4"


@pytest.mark.parametrize("name", ["spatial", "asymmetric3d", "cp"])
def test_refusals_of_spatial_passes(name: str) -> None:
    assert refused(name, CONV) is None
    assert refused(name, conv_model(normal(RNG, 4, 4, 2, 5))) is None
    assert refused(name, conv_model(normal(RNG, 4, 4, 1, 1))) == "kernel 1x1"
    assert refused(name, conv_model(normal(RNG, 4, 4, 1, 7))) == "kernel 1x7"
    assert refused(name, conv_model(normal(RNG, 4, 4, 3, 1))) == "kernel 3x1"
    assert refused(name, CONV_1D) == "kernel 3"
    assert refused(name, conv_model(normal(RNG, 4, 4, 3, 1, 1))) == "kernel 3x1x1"
    assert refused(name, conv_model(normal(RNG, 4, 4, 3, 3, 3))) == ("kernel 3x3x3" if name == "cp" else None)
    assert refused(name, GROUPED) == ("group=2" if name == "cp" else None)
    assert refused(name, conv_model(normal(RNG, 4, 1, 3, 3), group=4)) == "group=4"
    assert refused(name, conv_model(normal(RNG, 8, 1, 3, 3), group=4)) == "group=4"


GROUP_BY_GROUP = {"svd": (3, 4), "outer_product": (5,), "spatial": (4,), "asymmetric3d": (6, 4), "channel": (4,)}


@pytest.mark.parametrize("name", GROUP_BY_GROUP)
def test_groups_are_taken_apart_as_layers_of_their_own(name: str) -> None:
    (method,), setting = load_passes([name]), GROUP_BY_GROUP[name]
    weight, bias = normal(RNG, 21, 5, 3, 3), normal(RNG, 21)
    mixed = np.random.default_rng(3).standard_normal((15, 15))
    batches = [np.einsum("cd,ndhw->nchw", mixed, normal(RNG, 2, 15, 9, 9)).astype(np.float32) for _ in range(6)]
    whole = fit_alone(case_of(conv_model(weight, bias, group=3), batches), method, setting)
    assert {step.group for step in whole.steps} <= {3, 3 * setting[0]}
    for g in range(3):
        rows, maps = slice(7 * g, 7 * g + 7), slice(5 * g, 5 * g + 5)
        alone = case_of(conv_model(weight[rows], bias[rows]), [batch[:, maps] for batch in batches])
        own = fit_alone(alone, method, setting)
        rest = whole.dense_kernel()[rows].copy()
        found = rest[:, maps].copy()
        rest[:, maps] = 0
        assert not rest.any()
        assert error(found, own.dense_kernel()) <= (1e-4 if name in ("spatial", "asymmetric3d", "channel") else 0.2)
        assert error(whole.bias[rows], own.bias) <= 0.05


def test_errors_of_groups_add_up_to_those_of_the_whole_kernel() -> None:
    rng = np.random.default_rng(6)
    (layer,) = find_layers(conv_model(normal(rng, 9, 4, 2, 2), group=3))
    root = rng.standard_normal((48, 48))
    metric = replace(frobenius(9, 12, 4), outputs=rng.uniform(1, 2, 9), covariance=root @ root.T)
    whole = as_chain(layer).dense_kernel().reshape(9, 12, 4).astype(np.float64)
    parts = list(kernels_of(layer, metric))
    assert sum(part.norm2(kernel) for kernel, part in parts) == pytest.approx(metric.norm2(whole))
    by_element = element_weights(rng.uniform(1, 2, (9, 4, 4)))  # as gradients give them: of what is there
    parts = list(kernels_of(layer, by_element))
    assert sum(part.norm2(kernel) for kernel, part in parts) == pytest.approx(by_element.norm2(layer.folded))
    shares = joint_energy([np.array([0, 0.5, 1]), np.array([0, 0.9, 1])], [3.0, 1.0])
    np.testing.assert_allclose(shares, [0, 0.6, 1])
    assert joint_energy([np.zeros(2)] * 2, [0.0, 0.0]).tolist() == [1, 1]


def test_taps_and_patches_of_depthwise_films_go_together() -> None:
    """The inputs hardly change in time, so what a filter does along it is worth most."""
    rng = np.random.default_rng(7)
    product = np.einsum("mi,mj->mij", rng.standard_normal((8, 3)), rng.standard_normal((8, 15)))
    weight = product.reshape(8, 1, 3, 5, 3) + 1.5 * rng.standard_normal((8, 1, 3, 5, 3))
    model = conv_model(weight.astype(np.float32), normal(rng, 8), group=8)
    batches = [np.repeat(normal(rng, 2, 8, 1, 9, 7), 6, axis=2) + 0.3 * normal(rng, 2, 8, 6, 9, 7) for _ in range(6)]
    case, (method,) = case_of(model, batches), load_passes(["depthwise"])
    (offered,) = method.candidates(case.layer, statistics_of(case, method), 8)
    chain = fit_alone(case, method, offered.setting, nonlinear=False)
    rewritten = rewrite(model, [case.layer], {"conv": chain})
    y, z = (np.concatenate([run(one, **feeds)[0] for feeds in case.inputs]) for one in (model, rewritten))
    kept = 1 - ((y - z) ** 2).sum() / ((y - y.mean(axis=(0, 2, 3, 4), keepdims=True)) ** 2).sum()
    assert kept == pytest.approx(offered.energy, abs=0.01)
    assert 0.5 < kept < 0.97


@pytest.mark.parametrize("name", ["svd", "outer_product", "spatial", "asymmetric3d"])
def test_candidates_of_grouped_convolutions(name: str) -> None:
    (method,), rng = load_passes([name]), np.random.default_rng(5)
    model = conv_model(normal(rng, 48, 8, 3, 3), pads=[1] * 4, group=4)
    case = case_of(model, [normal(rng, 2, 32, 9, 9) for _ in range(3)])
    offered = list(method.candidates(case.layer, statistics_of(case, method), 8))
    assert len(offered) > 2
    for candidate in offered:
        outline = method.outline(case.layer, candidate.setting)
        assert candidate.macs == outline.macs(case.layer.input_shape) < case.layer.macs
        assert all(len(step.given) % 8 == 0 for step in outline.steps[:-1])
    for candidate in offered[:: max(len(offered) // 4, 1)]:
        chain = fit_alone(case, method, candidate.setting, nonlinear=False)
        rewritten = rewrite(case.model, [case.layer], {case.layer.name: chain})
        y, z = (np.concatenate([run(one, **feeds)[0] for feeds in case.inputs]) for one in (model, rewritten))
        kept = 1 - ((y - z) ** 2).sum() / ((y - y.mean(axis=(0, 2, 3), keepdims=True)) ** 2).sum()
        assert candidate.energy - 0.12 <= kept <= candidate.energy + TOO_CAREFUL.get(name, 0.12)


def test_registry() -> None:
    names = [method.name for method in PASSES]
    assert names == sorted(names)
    assert names == pass_names()
    assert set(names) >= {
        *("asymmetric3d", "bicluster_outer", "bicluster_svd", "channel", "cp", "fully_connected"),
        *("monochromatic", "outer_product", "spatial", "svd"),
    }
    assert [method.name for method in load_passes(["spatial", "channel"])] == ["spatial", "channel"]
    assert load_passes([]) == ()
    with pytest.raises(OptionError, match=r"there is no pass 'chanel'; choose from asymmetric3d, bicluster_outer"):
        load_passes(["channel", "chanel"])


# How good the solvers are, on a network as a whole.

DEEP = """g (float[N, 4, 14, 14] x) => (float[N, 20, 14, 14] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    ra = Relu (a)
    b = Conv <pads = [1, 1, 1, 1]> (ra, w2, b2)
    rb = Relu (b)
    c = Conv <pads = [1, 1, 1, 1]> (rb, w3, b3)
    y = Relu (c)
}"""


def structured(rng: np.random.Generator, count: int, channels: int, size: int) -> np.ndarray:
    """Return smooth images: few sources, mixed into the channels, with a little noise."""
    coarse = rng.standard_normal((count, 3, 5, 5))
    grid = np.linspace(0, 4, size)
    low = np.floor(grid).clip(0, 3).astype(int)
    share = grid - low
    fine = coarse[:, :, low] * (1 - share)[:, None] + coarse[:, :, low + 1] * share[:, None]
    fine = fine[..., low] * (1 - share) + fine[..., low + 1] * share
    mixed = np.einsum("kc,nchw->nkhw", np.random.default_rng(99).standard_normal((channels, 3)), fine)
    return (mixed + 0.1 * rng.standard_normal(mixed.shape)).astype(np.float32)


# The papers' formulas and figures.


def shaped(f: int, c: int, k: int, size: int, stride: int = 1, pad: int = 0) -> Layer:
    """Return a layer of hollow weights."""
    model = conv_model(np.zeros((f, c, k, k), np.float32), strides=[stride] * 2, pads=[pad] * 4)
    (layer,) = find_layers(model)
    out = layer.geometry.output_size((size, size), (k, k))
    return replace(layer, input_shape=(1, c, size, size), output_shape=(1, f, *out))


def macs(name: str, layer: Layer, setting: Setting) -> int:
    return load_passes([name])[0].outline(layer, setting).macs(layer.input_shape)


def test_formulas_of_denton_tables_1_and_2() -> None:
    """Table 1 counts stride 1 and "same" padding; Table 2 counts weights."""
    c, f, k, n = 96, 256, 5, 20
    layer, positions = shaped(f, c, k, n, pad=2), n * n
    g, h, k1, k2, rank = 2, 4, 19, 24, 6
    expected = {
        ("monochromatic", (8,)): 8 * c + k * k * f,
        ("bicluster_outer", (48, h, rank)): 48 * h * rank * (c // 48 + k * k) + 48 * h * rank * f // h,
        ("bicluster_svd", (g, h, k1, k2)): g * h * (c // g * k1 + k1 * k * k * k2 + k2 * f // h),
        ("svd", (k1, k2)): c * k1 + k1 * k * k * k2 + k2 * f,
        ("outer_product", (rank,)): rank * (c + k * k + f),
        ("cp", (rank,)): rank * (c + k + k + f),
    }
    for (name, setting), count in expected.items():
        outline = load_passes([name])[0].outline(layer, setting)
        assert outline.macs(layer.input_shape) == count * positions
        assert outline.parameters == count + f  # and the bias


def test_weights_of_denton_table_2() -> None:
    """96 filters 7x7 of 3 maps; 256 filters 5x5 of 96 maps. The printed K2=24 must be the supplement's 64."""
    for name, layer, setting, printed in (
        ("monochromatic", shaped(96, 3, 7, 30, 2), (6,), 3.0),
        ("bicluster_svd", shaped(256, 96, 5, 20), (2, 2, 19, 64), 3.9),
    ):
        outline = load_passes([name])[0].outline(layer, setting)
        reduction = layer.weight.size / (outline.parameters - layer.outputs)
        assert reduction == pytest.approx(printed, abs=0.02)


@pytest.mark.parametrize(("colours", "printed"), [(4, 2.97), (6, 2.95), (8, 2.94), (12, 2.91), (16, 2.88), (24, 2.82)])
def test_speedups_of_denton_supplement_table_4(colours: int, printed: float) -> None:
    """7x7 filters at stride 2 of 224x224 images; the colours are computed at every pixel."""
    layer = shaped(96, 3, 7, 224, 2, 3)
    assert layer.macs / macs("monochromatic", layer, (colours,)) == pytest.approx(printed, abs=0.01)


TABLE_2_CONV2 = {
    **{(14, 51): 8.6, (16, 51): 7.5, (19, 44): 7.3, (19, 51): 6.3, (19, 64): 5.0},
    **{(19, 76): 4.2, (24, 64): 4.0, (24, 76): 3.3, (28, 64): 3.4, (28, 76): 2.9},
}
TABLE_2_CONV3 = {
    **{(38, 38): 6.5, (38, 51): 5.1, (38, 64): 4.2, (38, 76): 3.6, (51, 51): 4.0, (51, 64): 3.3},
    **{(51, 76): 2.9, (64, 64): 2.8, (64, 76): 2.4, (76, 76): 2.1},
}
TABLE_3 = {
    (256, 96, 5, 48, 2): {5: 8.3, 6: 6.9, 8: 5.2, 10: 4.1, 12: 3.4, 14: 2.9},
    (512, 256, 3, 128, 4): {1: 16.6, 2: 8.3, 3: 5.5, 4: 4.1, 6: 2.8, 8: 2.1},
    (1024, 512, 3, 256, 8): {1: 16.6, 2: 8.3, 3: 5.5, 4: 4.1, 5: 3.3, 6: 2.8, 8: 2.1},
}


def test_reductions_of_denton_supplement_table_2() -> None:
    """256 to 512 maps agree with Table 1; for 96 to 256 maps the paper counted the k x k convolutions alone."""
    layer = shaped(512, 256, 3, 14, pad=1)
    for (k1, k2), printed in TABLE_2_CONV3.items():
        assert layer.macs / macs("bicluster_svd", layer, (2, 4, k1, k2)) == pytest.approx(printed, abs=0.051)
    layer = shaped(256, 96, 5, 24, pad=2)
    (bicluster,) = load_passes(["bicluster_svd"])
    for (k1, k2), printed in TABLE_2_CONV2.items():
        core = bicluster.outline(layer, (2, 2, k1, k2)).steps[1].weight.size
        assert layer.weight.size / core == pytest.approx(printed, abs=0.08)


def test_reductions_of_denton_supplement_table_3() -> None:
    for (f, c, k, g, h), rows in TABLE_3.items():
        layer = shaped(f, c, k, 14, pad=k // 2)
        for rank, printed in rows.items():
            assert layer.macs / macs("bicluster_outer", layer, (g, h, rank)) == pytest.approx(printed, abs=0.051)


def deep(seed: int) -> tuple[ModelProto, list[Layer], Inputs, np.ndarray]:
    """Return a random ReLU network of three convolutions, its layers, inputs to fit it on, and others."""
    rng = np.random.default_rng(seed)
    constants = {}
    for i, (inputs, outputs) in enumerate(((4, 20), (20, 20), (20, 20)), start=1):
        constants[f"w{i}"] = normal(rng, outputs, inputs, 3, 3) * np.float32((2 / (9 * inputs)) ** 0.5)
        constants[f"b{i}"] = normal(rng, outputs) * np.float32(0.3) - np.float32(0.5)
    model = parse(DEEP, **constants)
    inputs = listed(list(structured(rng, 24, 4, 14).reshape(4, 6, 4, 14, 14)))
    return model, with_shapes(model, find_layers(model), inputs), inputs, structured(rng, 32, 4, 14)


def output_error(model: ModelProto, layers: list[Layer], chains: dict[str, Chain], x: np.ndarray) -> float:
    y, z = run(model, x=x)[0], run(rewrite(model, layers, chains), x=x)[0]
    return float(np.linalg.norm(z - y) / np.linalg.norm(y))


def truncated(layer: Layer, rank: int) -> Chain:
    """Return two convolutions by the SVD of the weight alone."""
    u, s, vt = np.linalg.svd(layer.weight.reshape(layer.outputs, -1), full_matrices=False)
    first = (s[:rank, None] * vt[:rank]).reshape(rank, *layer.weight.shape[1:])
    steps = (
        Step("reduced", first.astype(np.float32), layer.geometry),
        Step("restore", u[:, :rank, None, None].astype(np.float32), Geometry.pointwise(2)),
    )
    return Chain(steps, layer.bias)


def split_by_weight(layer: Layer, rank: int) -> Chain:
    """Return a vertical and a horizontal convolution by the SVD of the folded weight alone."""
    v, h = spatial_factors(layer.weight, rank)
    steps = Step("v", v, layer.geometry.only(0)), Step("h", h, layer.geometry.only(1))
    return Chain(steps, layer.bias)


SEEDS = (1, 2, 3)
SOLVED = [("channel", (5,)), ("spatial", (5,)), ("asymmetric3d", (8, 4))]


def errors_of(name: str, setting: Setting, **options: bool) -> list[float]:
    (method,) = load_passes([name])
    found = []
    for seed in SEEDS:
        model, layers, inputs, x = deep(seed)
        chains = fit_network(model, layers, {layer.name: (method, setting) for layer in layers}, inputs, **options)
        found.append(output_error(model, layers, chains, x))
    return found


@pytest.mark.parametrize(("name", "setting"), SOLVED)
def test_solvers_help(name: str, setting: Setting) -> None:
    """Asymmetric beats symmetric, nonlinear beats linear, on inputs the fit has not seen."""
    best = np.array(errors_of(name, setting))
    symmetric = np.array(errors_of(name, setting, asymmetric=False))
    linear = np.array(errors_of(name, setting, nonlinear=False))
    assert best.max() < 0.8
    assert (best < 0.99 * symmetric).all()
    assert (best < 0.99 * linear).all()
    assert best.sum() < 0.98 * symmetric.sum()
    assert best.sum() < 0.97 * linear.sum()


def test_fits_to_data_beat_fits_to_weights() -> None:
    channel, spatial = errors_of("channel", (5,)), errors_of("spatial", (5,))
    for seed, fitted_channel, fitted_spatial in zip(SEEDS, channel, spatial, strict=True):
        model, layers, _, x = deep(seed)
        by_svd = output_error(model, layers, {layer.name: truncated(layer, 5) for layer in layers}, x)
        by_split = output_error(model, layers, {layer.name: split_by_weight(layer, 5) for layer in layers}, x)
        assert fitted_channel < 0.8 * by_svd
        assert fitted_spatial < 0.8 * by_split

"""Canonical polyadic decomposition: 1x1, ``k x 1`` and ``1 x k`` depthwise, 1x1 (Lebedev et al. 2015).

Algebra. The kernel is a 4-tensor and

    W[f, c, i, j] ~ sum_r p_r[f] a_r[c] v_r[i] h_r[j]

All ``R`` terms are fitted together by alternating least squares, under the metric of
:mod:`onnxlowrank.decompose.metric`. Terms of a CP may grow without bound while they cancel each other; here their norms
are bounded, see :mod:`onnxlowrank.decompose.cp`. Then the ``p_r`` are refitted to the responses.

Subgraph:    Conv(1x1, R) -> Conv(kh x 1, R, group=R) -> Conv(1 x kw, R, group=R) -> Conv(1x1, F, bias); strides, pads
             and dilations split over the two in the middle
MACs:        C R at (H_in, W_in) positions + R kh at (H_out, W_in) + R kw + R F at (H_out, W_out)
Parameters:  R (C + kh + kw + F) + F
"""

from __future__ import annotations

from collections.abc import Iterator

from onnxlowrank.decompose._als import Terms, joint_als
from onnxlowrank.decompose.cp import cp_energy, cp_terms
from onnxlowrank.decompose.refine import refine
from onnxlowrank.graph.chain import Chain, Step
from onnxlowrank.graph.layer import FloatArray, Geometry, Layer
from onnxlowrank.passes.base import (
    Candidate,
    Draft,
    KernelPass,
    Setting,
    Statistics,
    draft_of,
    placeholder,
    pointwise,
)


class Cp(KernelPass):
    """Four convolutions, one a mode of the kernel, the two spatial ones depthwise."""

    name = "cp"
    rough_energy = True
    rank_names = ("R",)

    def refusal(self, layer: Layer) -> str | None:
        """Refuse what has not exactly two spatial axes with more than one tap each, and grouped convolutions."""
        if layer.group == 1 and (len(layer.kernel) != 2 or min(layer.kernel) < 2):
            return f"kernel {'x'.join(map(str, layer.kernel))}"
        return super().refusal(layer)

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield every aligned ``R`` with what the closed-form start keeps; the fit keeps more."""
        metric = statistics.data.with_separable_taps(*layer.kernel)
        energy = cp_energy(metric.whiten(layer.folded).reshape(layer.weight.shape))
        yield from self.by_rank(layer, energy, block)

    def limits(self, layer: Layer) -> Setting:
        """Return the number of terms that every kernel is a sum of."""
        return (layer.taps * min(layer.inputs, layer.outputs),)

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes."""
        (rank,), (kh, kw) = setting, layer.kernel
        spatial = placeholder(rank, kh), placeholder(rank, kw)
        return _chain(
            layer,
            placeholder(rank, layer.inputs),
            *spatial,
            placeholder(layer.outputs, rank),
            placeholder(layer.outputs),
        )

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the decomposition of the kernel under the metric."""
        metric, shape = statistics.metric.with_separable_taps(*layer.kernel), layer.weight.shape

        def solve(kernel: FloatArray, start: Terms | None) -> Terms:
            if start is not None:
                return joint_als(kernel.reshape(shape), start, sweeps=2)
            return cp_terms(kernel.reshape(shape), setting[0], sweeps=10)

        found = refine(metric, layer.folded, solve, lambda terms: terms.dense().reshape(layer.folded.shape))
        outputs, inputs, rows, columns = found.factors
        spatial = metric.unwhiten_rows(rows).T, metric.unwhiten_columns(columns).T
        inputs, outputs = metric.unwhiten_inputs(inputs), metric.unwhiten_outputs(outputs)
        return draft_of(layer, _chain(layer, inputs.T, *spatial, outputs, layer.bias))


def _chain(
    layer: Layer,
    inputs: FloatArray,
    rows: FloatArray,
    columns: FloatArray,
    outputs: FloatArray,
    bias: FloatArray | None,
) -> Chain:
    (kh, kw), rank, flat = layer.kernel, len(inputs), Geometry.pointwise(2)
    steps = (
        Step("inputs", pointwise(inputs, layer), flat),
        Step("rows", rows.astype("float32", copy=False).reshape(rank, 1, kh, 1), layer.geometry.only(0), group=rank),
        Step("columns", columns.astype("float32", copy=False).reshape(rank, 1, 1, kw), layer.geometry.only(1), rank),
        Step("outputs", pointwise(outputs, layer), flat),
    )
    return Chain(steps, bias)

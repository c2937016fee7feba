"""Depthwise ``k x k`` as depthwise ``k x 1``, then depthwise ``1 x k``: separable filters a map.

Algebra. The kernel ``w [kh, kw]`` of every map is replaced by ``sum_k v_k h_k'`` of ``K`` terms (Jaderberg 2014, scheme
1, for a map by itself), see :mod:`onnxlowrank.decompose.separable`: by the SVD, closed form, of the kernel whitened by
the covariances of the map's rows and columns, then the best under the covariance of its whole patches. With the ``v``
fixed, the response is linear in the ``h``, which are then regressed on what the ``v`` give in the rewritten prefix.

One term is what is offered: then both links are depthwise, for which onnxruntime has fast code. With two, the second
link sums two maps a group, for which it has none in 2-D: that takes ten times as long as the layer. A 3 x 3 kernel is
faster whole, a 3 x 3 x 3 one is not (``benchmarks/depthwise.py``). ``K`` may be more by hand. Films and volumes are
split as :mod:`onnxlowrank.passes.spatial` splits them, plane first.

Subgraph:    Conv(kh x 1, K C, group=C) -> Conv(1 x kw, C, group=C, bias); strides, pads and dilations split over both
MACs:        K C kh at (H_out, W_in) positions + K C kw at (H_out, W_out), against C kh kw
Parameters:  K C (kh + kw) + C
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxlowrank.decompose.separable import separable_energy, separable_terms
from onnxlowrank.decompose.spectrum import Float64Array
from onnxlowrank.graph.chain import Chain, Window
from onnxlowrank.graph.layer import Layer
from onnxlowrank.passes.base import Candidate, Draft, Features, Pass, Setting, Statistics, draft_of, placeholder
from onnxlowrank.passes.spatial import horizontal_step, split_axes, taps_of, two_axes, vertical_step

MAP_PATCHES = "map_patches"

_FEWEST_TAPS = 25
"""Smaller kernels are faster whole, see ``benchmarks/depthwise.py``."""


class Depthwise(Pass):
    """Two depthwise convolutions along different axes in place of one along all of them."""

    name = "depthwise"
    rank_names = ("K",)

    def refusal(self, layer: Layer) -> str | None:
        """Refuse what is not depthwise, has a single long axis, or so few taps that two links take longer."""
        if not layer.group == layer.inputs == layer.outputs or layer.group == 1:
            return "not depthwise"
        kernel = "x".join(map(str, layer.kernel))
        if sum(taps > 1 for taps in layer.kernel) < 2:
            return f"kernel {kernel}"
        return None if layer.taps >= _FEWEST_TAPS else f"depthwise {kernel} is faster whole"

    def moments(self, layer: Layer) -> dict[str, Features]:
        """Ask for the covariance of the patches of every map."""
        return {MAP_PATCHES: Features(layer.input, (), Window(layer.kernel, layer.geometry), layer.group)}

    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield one term a map, if that is cheaper."""
        candidate = self.candidate(layer, (1,), float(separable_energy(*_maps(layer, statistics))[1]))
        if candidate.macs < layer.macs:
            yield candidate

    def limits(self, layer: Layer) -> Setting:
        """Return the number of terms that every kernel is a sum of."""
        return (min(taps_of(layer)),)

    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return the chain's shapes."""
        (terms,), (kh, kw) = setting, taps_of(layer)
        vertical, horizontal = (
            placeholder(terms * layer.outputs, 1, kh, 1),
            placeholder(layer.outputs, terms, 1, kw),
        )
        steps = vertical_step(layer, vertical), horizontal_step(layer, horizontal)
        return Chain(steps, placeholder(layer.outputs))

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the best terms under the covariance of the patches."""
        vertical, horizontal = separable_terms(*_maps(layer, statistics), setting[0])
        first = vertical.reshape(-1, 1, vertical.shape[2], 1).astype(np.float32)
        steps = vertical_step(layer, first), horizontal_step(layer, horizontal[:, :, None])
        return draft_of(layer, Chain(steps, layer.bias))


def _maps(layer: Layer, statistics: Statistics) -> tuple[np.ndarray, Float64Array]:
    """Return the kernel ``[C, kh, kw]`` of every map, and the covariance of its patches, taps in that order."""
    first, second = split_axes(layer)
    order = np.arange(layer.taps).reshape(layer.kernel).transpose(*first, *second).ravel()
    covariances = statistics.moments[MAP_PATCHES].covariances
    return two_axes(layer)[:, 0], covariances[:, order[:, None], order]

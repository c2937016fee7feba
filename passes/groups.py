"""Grouped convolutions group by group: what the passes share that take the kernel of every group apart by itself.

All groups get the same ranks, so the links of a chain have the layer's groups, and a rank is that of one of them. The
inner maps of all groups together are what is aligned to the provider's channel block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from onnxlowrank.decompose.metric import Metric
from onnxlowrank.decompose.spectrum import Float64Array
from onnxlowrank.graph.layer import FloatArray, Layer


def block_of(layer: Layer, block: int) -> int:
    """Return what the ranks of one group are multiples of, for the maps of all to be multiples of the block."""
    return block // math.gcd(block, layer.group)


def filters_of(layer: Layer) -> list[slice]:
    """Return where the filters of every group are."""
    size = layer.outputs // layer.group
    return [slice(start, start + size) for start in range(0, layer.outputs, size)]


def kernels_of(layer: Layer, metric: Metric) -> Iterator[tuple[FloatArray, Metric]]:
    """Yield the kernel ``[F/G, C/G, T]`` of every group, and the part of the metric that weighs its errors.

    Weights by gradients are those of elements that are there, and know nothing of the input maps of other groups.
    """
    if layer.group == 1:
        yield layer.folded, metric
        return
    maps = layer.weight.shape[1]
    for g, rows in enumerate(filters_of(layer)):
        inputs = np.arange(maps) + (g * maps if len(metric.inputs) == layer.inputs else 0)
        yield layer.folded[rows], metric.block(np.arange(rows.start, rows.stop), inputs)


def joint_energy(energies: Sequence[Float64Array], variances: Sequence[float]) -> Float64Array:
    """Return the share that is kept of all groups together, given the shares and the variance of each."""
    if len(energies) == 1:
        return energies[0]
    total = sum(variances)
    if not total > 0:
        return np.ones_like(energies[0])
    weighed = [energy * (variance / total) for energy, variance in zip(energies, variances, strict=True)]
    joint: Float64Array = np.minimum(np.sum(weighed, axis=0), 1.0)
    return joint


def kernel_energy(layer: Layer, metric: Metric, energy: Callable[[Float64Array], Float64Array]) -> Float64Array:
    """Return by rank what is kept of the kernels of all groups, where ``energy`` tells it of a whitened one."""
    whitened = [part.whiten(kernel) for kernel, part in kernels_of(layer, metric)]
    return joint_energy([energy(one) for one in whitened], [float((one**2).sum()) for one in whitened])

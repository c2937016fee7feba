"""What every pass has to say: which layers it suits, its settings with their cost, and the fit of one of them.

The pipeline asks in this order, and never more than it needs:

1. :meth:`Pass.refusal`: does the method suit the layer at all?
2. :meth:`Pass.moments`: which covariances should be collected from the original network?
3. :meth:`Pass.candidates`: which settings are there, what do they cost, how much of the response do they keep?
4. :meth:`Pass.outline`: a chain of the setting's shape, to count and to time before anything is fitted.
5. :meth:`Pass.draft`: the chain by weights and statistics alone, and what is to be sampled from the rewritten prefix.
6. :meth:`Pass.fit`: the chain, its last link refitted to the network's true responses.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from onnxlowrank.decompose.map_regression import fit_maps
from onnxlowrank.decompose.metric import Metric, frobenius
from onnxlowrank.decompose.moments import Moments
from onnxlowrank.decompose.regression import Samples, fit_low_rank
from onnxlowrank.decompose.spectrum import Float64Array, shares
from onnxlowrank.graph.chain import Chain, Step, Window, as_chain
from onnxlowrank.graph.layer import FloatArray, Layer

KEEP = "keep"
RESPONSE = "response"
Setting = tuple[int, ...]
NO_METRIC = frobenius(1, 1, 1)

LOWEST_ENERGY = 0.8
"""A setting predicted to lose more than a fifth of a response's variance is no approximation and is not offered."""

CHECKED_AT = 0.85
"""Where energies are checked: settings predicted to keep so much are about those that plans are made of."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """What calibration found out about one layer.

    Attributes:
        moments: Of the response, and of what its passes asked for.
        unseen: Moments of the response on the inputs held out from those, if there are any.
        data: The metric under which an error of its kernel ``[F, C, taps]`` is the error of the response: energies are
            predicted and checked with it. Given if a pass uses it.
        metric: The metric to decompose the kernel under, likewise.
        memo: What passes found out with all this and would find out again, by any name of theirs.
    """

    moments: Mapping[str, Moments]
    unseen: Moments | None = None
    data: Metric = NO_METRIC
    metric: Metric = NO_METRIC
    memo: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def response_energy(self) -> Float64Array:
        """Share of the response's variance that its leading axes keep, ``[F + 1]`` (Zhang 2015, Eq. 13).

        There are ``C`` axes, so ``[C + 1]``, of a fully connected layer that widens ``C`` maps to ``F``.

        A fully connected layer gives one response an input. A few hundred lie in a subspace of as many dimensions,
        which holds all of their variance, but not that of others: the share is that of responses held out.
        """
        moments = self.moments[RESPONSE]
        if self.unseen is None:
            return shares(moments.variances())
        _, axes = moments.principal_axes()
        return shares(self.unseen.along(axes) + (axes.T @ (self.unseen.mean - moments.mean)) ** 2)

    def lost(self, layer: Layer, chain: Chain) -> float | None:
        """Return the share of the response's variance that a chain loses, or None where the metric is not known."""
        if self.data is NO_METRIC:
            return None
        kernel = as_chain(layer).dense_kernel().reshape(layer.outputs, layer.inputs, -1).astype(np.float64)
        whole = self.data.norm2(kernel)
        if not whole > 0:
            return None
        return float(self.data.norm2(kernel - chain.dense_kernel().reshape(kernel.shape)) / whole)


@dataclass(frozen=True)
class Candidate:
    """One way to rewrite one layer.

    Attributes:
        layer: Name of the layer.
        method: Name of the pass, or ``keep``.
        setting: The pass's ranks.
        macs: Multiply-accumulates for one sample.
        parameters: Number of weights and biases.
        energy: Predicted share of the response's variance that is kept, in (0, 1].
    """

    layer: str
    method: str
    setting: Setting
    macs: int
    parameters: int
    energy: float


Plan = dict[str, Candidate]
"""One candidate for every layer."""


def keep(layer: Layer) -> Candidate:
    """Return the candidate that leaves the layer as it is."""
    return Candidate(layer.name, KEEP, (), layer.macs, layer.parameters, 1.0)


@dataclass(frozen=True)
class Features:
    """What is sampled: a tensor, behind convolutions, and under a window if there is one.

    Attributes:
        tensor: Name of the layer's input or output; at another place of the layer, that stands for the one there.
        steps: Convolutions to apply to it.
        window: Patches ``[channels * taps]`` are sampled instead of single positions ``[channels]``.
        groups: Of so many groups of equal size the covariances are wanted, each by itself.
    """

    tensor: str
    steps: tuple[Step, ...] = ()
    window: Window | None = None
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Draft:
    """A chain as the weights and the statistics alone give it, and what its fit to responses wants sampled."""

    chain: Chain
    features: Features


def draft_of(layer: Layer, chain: Chain) -> Draft:
    """Return the draft whose last link is to be refitted: its features are what that link sees."""
    last = chain.steps[-1]
    window = Window(last.kernel, last.geometry) if math.prod(last.kernel) > 1 else None
    if last.among is not None:
        window = Window(last.kernel, last.geometry, tuple(map(int, last.taken)))
    return Draft(chain, Features(layer.input, chain.steps[:-1], window))


class Pass(ABC):
    """One method of decomposition. Passes hold no state: one object serves all layers.

    Attributes:
        name: What ``--passes`` calls it.
        ops: The kinds of layers it decomposes: ``Conv``, ``ConvTranspose``, ``Gemm``, ``MatMul``.
        rank_names: What the entries of a setting are called.
        rough_energy: Whether the energies of its candidates are rough: drafts have to tell how far off they are.
        uses_metric: Whether it decomposes the kernel under a metric: then the patches' moments are collected for it.
        chooses_maps: Whether its chains read only some of the input maps.
        by_default: Whether it is among the passes to choose from where none are named.
    """

    name: ClassVar[str]
    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    rank_names: ClassVar[tuple[str, ...]]
    rough_energy: ClassVar[bool] = False
    uses_metric: ClassVar[bool] = False
    chooses_maps: ClassVar[bool] = False
    by_default: ClassVar[bool] = True

    @abstractmethod
    def refusal(self, layer: Layer) -> str | None:
        """Return why the method does not suit a layer of its ``ops``, e.g. ``group=32``, or None when it does."""

    def moments(self, layer: Layer) -> dict[str, Features]:
        """Return, by name, what the pass needs the covariance of.

        The covariance of the response is always there, as ``response``; with :attr:`uses_metric`, the patches' as well.
        """
        return {}

    @abstractmethod
    def candidates(self, layer: Layer, statistics: Statistics, block: int) -> Iterator[Candidate]:
        """Yield the settings that cost less than the layer, ranks in multiples of the provider's channel block."""

    @abstractmethod
    def limits(self, layer: Layer) -> Setting:
        """Return the largest rank of each kind."""

    @abstractmethod
    def outline(self, layer: Layer, setting: Setting) -> Chain:
        """Return a chain with the shapes of the setting and constant weights that take no memory."""

    @abstractmethod
    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        """Return the chain of the setting before any fit to responses, and what the fit wants sampled."""

    def fit(self, layer: Layer, setting: Setting, draft: Draft, samples: Samples, nonlinear: bool = True) -> Chain:
        """Return the chain of the setting, fitted to the samples: here, the last link of the draft is.

        Args:
            layer: The layer, with its true weight.
            setting: The ranks.
            draft: From :meth:`draft`.
            samples: The features asked for and the original network's preactivations, at the same positions.
            nonlinear: Whether the activation is taken into account.
        """
        return refit_last(draft.chain, samples, nonlinear)

    def by_rank(self, layer: Layer, energy: Float64Array, block: int) -> Iterator[Candidate]:
        """Yield the settings of a single, aligned rank that cost less than the layer; ``energy[rank]`` is kept."""
        for rank in aligned_ranks(len(energy) - 1, block):
            candidate = self.candidate(layer, (rank,), float(energy[rank]))
            if candidate.macs < layer.macs:
                yield candidate

    def candidate(self, layer: Layer, setting: Setting, energy: float) -> Candidate:
        """Return the candidate of one setting, what it costs counted on the outline: every factor, 1x1 ones too."""
        chain = self.outline(layer, setting)
        return Candidate(layer.name, self.name, setting, chain.macs_in(layer), chain.parameters, energy)


def pointwise(weight: FloatArray, layer: Layer) -> FloatArray:
    """Return a matrix ``[F, C]`` as the kernel of a 1x1 convolution."""
    return weight.astype(np.float32, copy=False).reshape(*weight.shape, *(1,) * len(layer.kernel))


class KernelPass(Pass):
    """A pass that decomposes the kernel of several taps under the metric, before its last link is refitted.

    Attributes:
        by_group: Whether it takes the kernels of grouped convolutions apart, each by itself.
    """

    uses_metric = True
    by_group: ClassVar[bool] = False

    def refusal(self, layer: Layer) -> str | None:
        """Refuse convolutions of one tap, and grouped ones unless it takes them and the groups have several maps."""
        if layer.group > 1 and not (self.by_group and has_wide_groups(layer)):
            return f"group={layer.group}"
        return None if layer.taps > 1 else f"kernel {'x'.join(map(str, layer.kernel))}"


def has_wide_groups(layer: Layer) -> bool:
    """Return whether the groups of a layer have several maps on both sides."""
    return layer.group < min(layer.inputs, layer.outputs)


def aligned_ranks(largest: int, block: int) -> Sequence[int]:
    """Return the multiples of ``block`` below ``largest``: cost is a staircase, and these are its edges."""
    return range(block, largest, block)


def placeholder(*shape: int) -> FloatArray:
    """Return a constant array that takes no memory; the constant keeps activations near their size."""
    fan_in = max(math.prod(shape[1:]), 1)
    return np.broadcast_to(np.float32(1 / fan_in), shape)


def refit_last(chain: Chain, samples: Samples, nonlinear: bool, ridge: float = 1e-2) -> Chain:
    """Return the chain with its last link and its bias regressed on what that link sees, group by group.

    Args:
        chain: A draft; a small ridge draws to its last link.
        samples: Features ``[n, C * taps]``: the maps of the link before, or their patches.
        nonlinear: Whether the activation is taken into account.
        ridge: Its weight, see :func:`onnxlowrank.decompose.regression.fit_low_rank`.
    """
    last = chain.steps[-1]
    if last.group == len(last.weight) > 1 and last.take is None and last.give is None:
        prior = last.weight.reshape(last.group, -1).astype(np.float64)
        maps, biases = fit_maps(samples, prior, ridge, nonlinear)
        fitted_last = replace(last, weight=maps.astype(np.float32).reshape(last.weight.shape))
        return Chain((*chain.steps[:-1], fitted_last), biases.astype(np.float32))
    weight, bias = np.zeros_like(last.weight), np.zeros(len(last.given), np.float32)
    taps, f, c = math.prod(last.kernel), last.weight.shape[0] // last.group, last.weight.shape[1]
    for g in range(last.group):
        rows = np.arange(g * f, (g + 1) * f)
        outputs = np.flatnonzero(np.isin(last.given, rows))
        rows = last.given[outputs]
        taken = np.arange(g * c, (g + 1) * c) if last.among is not None else last.taken[g * c : (g + 1) * c]
        columns = (taken[:, None] * taps + np.arange(taps)).ravel()
        part = samples if last.group == 1 else samples.part(columns, outputs)
        prior = last.weight[rows].reshape(len(rows), -1).T.astype(np.float64)
        fitted = fit_low_rank(part, len(rows), prior=prior, ridge=ridge, nonlinear=nonlinear)
        weight[rows] = (fitted.left @ fitted.right.T).reshape(len(rows), *last.weight.shape[1:])
        bias[outputs] = fitted.bias
    return Chain((*chain.steps[:-1], replace(last, weight=weight)), bias)


ApplicablePasses = Mapping[str, Mapping[str, Pass]]
"""For every layer that may be rewritten, the passes that suit it, by their names."""

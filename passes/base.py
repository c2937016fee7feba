"""What every pass offers: which layers it suits, its settings with their cost, and the fit of one of them.

The pipeline asks in this order, and never more than it needs:

1. :meth:`Pass.refusal`: does the method suit the layer at all?
2. :meth:`Pass.moments`: which covariances should be collected from the original network?
3. :meth:`Pass.candidates`: which settings are there, what do they cost, how much of the response do they keep?
4. :meth:`Pass.outline`: a chain of the setting's shape, to count and to time before anything is fitted.
5. :meth:`Pass.features`: what is to be sampled from the rewritten prefix?
6. :meth:`Pass.fit`: the chain.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxlowrank.chain import Chain, Step
from onnxlowrank.decompose.moments import Moments
from onnxlowrank.decompose.regression import Samples
from onnxlowrank.layer import FloatArray, Layer

KEEP = "keep"
RESPONSE = "response"
Setting = tuple[int, ...]
Statistics = Mapping[str, Moments]


@dataclass(frozen=True)
class Candidate:
    """One way to rewrite one layer.

    Attributes:
        layer: Name of the layer.
        method: Name of the pass, or ``keep``.
        setting: The pass's ranks.
        cost: Multiply-accumulates for one sample.
        energy: Predicted share of the response's variance that is kept, in (0, 1].
    """

    layer: str
    method: str
    setting: Setting
    cost: float
    energy: float


@dataclass(frozen=True)
class Features:
    """A tensor of the network and the convolutions to apply to it; their output is what the fit sees."""

    tensor: str
    steps: tuple[Step, ...] = ()


class Pass(ABC):
    """One method of decomposition. Passes hold no state: one object serves all layers.

    Attributes:
        name: What ``--passes`` calls it.
        ops: The kinds of layers it decomposes: ``Conv``, ``Gemm``, ``MatMul``.
        rank_names: What the entries of a setting are called.
    """

    name: ClassVar[str]
    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    rank_names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def refusal(self, layer: Layer) -> str | None:
        """Return why the method does not suit a layer of its ``ops``, e.g. ``group=32``, or None when it does."""

    def moments(self, layer: Layer) -> dict[str, tuple[Step, ...]]:
        """Return, by name, the convolutions of the layer's input whose outputs' covariances the pass needs.

        The covariance of the response is always there, as ``response``.
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
    def features(self, layer: Layer, setting: Setting, statistics: Statistics) -> Features:
        """Return what the fit wants sampled."""

    @abstractmethod
    def fit(
        self, layer: Layer, setting: Setting, statistics: Statistics, samples: Samples, nonlinear: bool = True
    ) -> Chain:
        """Return the chain of the setting, fitted to the samples.

        Args:
            layer: The layer, with its true weight.
            setting: The ranks.
            statistics: Moments of the original network.
            samples: The features asked for and the original network's preactivations, at the same positions.
            nonlinear: Whether the activation is taken into account.
        """

    def candidate(self, layer: Layer, setting: Setting, energy: float) -> Candidate:
        """Return the candidate of one setting, its cost counted on the outline: every factor, 1x1 ones too."""
        return Candidate(layer.name, self.name, setting, self.outline(layer, setting).macs(layer.input_shape), energy)


def aligned_ranks(largest: int, block: int) -> Sequence[int]:
    """Return the multiples of ``block`` below ``largest``: cost is a staircase, and these are its edges."""
    return range(block, largest, block)


def hollow(*shape: int) -> FloatArray:
    """Return a constant array that takes no memory; the constant keeps activations near their size."""
    fan_in = max(math.prod(shape[1:]), 1)
    return np.broadcast_to(np.float32(1 / fan_in), shape)

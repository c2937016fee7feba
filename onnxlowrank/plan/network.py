"""A network as it is planned and timed: the original, its layers, and how their chains are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx

from onnxlowrank.calibrate.kept_nodes import KeptNode
from onnxlowrank.fit.fitter import ChooseLowering
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.permute import fold_gathers
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.latency import measure
from onnxlowrank.measure.node_times import profile, profile_interleaved, time_per_layer
from onnxlowrank.measure.sessions import Target
from onnxlowrank.passes.base import KEEP, ApplicablePasses, Plan


@dataclass(frozen=True, eq=False)
class Network:
    """A network to be planned.

    Attributes:
        original: As it was given: what is compared with.
        model: Normalised: what is rewritten.
        layers: Its layers.
        applicable: The passes of every layer.
        lowering: Chooses how chains are written.
        feeds: One input, for timing.
        target: Where it is timed.
        kept: What multiplies and accumulates, and belongs to no layer.
    """

    original: onnx.ModelProto
    model: onnx.ModelProto
    layers: Sequence[Layer]
    applicable: ApplicablePasses
    lowering: ChooseLowering
    feeds: Feeds
    target: Target
    kept: Sequence[KeptNode] = ()

    def outline(self, plan: Plan) -> onnx.ModelProto:
        """Return the network of a plan, with constants for weights."""
        return rewrite_and_fold(self.model, self.layers, self.outlines(plan))

    def outlines(self, plan: Plan) -> dict[str, Chain]:
        """Return the chains of a plan, by layer, with constants for weights."""
        chains = {}
        for layer in self.layers:
            candidate = plan[layer.name]
            if candidate.method != KEEP:
                outline = self.applicable[layer.name][candidate.method].outline(layer, candidate.setting)
                chains[layer.name] = outline.lowered(self.lowering(layer, outline))
        return chains

    @cached_property
    def dense_times(self) -> tuple[dict[str, float], float]:
        """The milliseconds of the layers as they are, where they can be told, and of the whole network."""
        if self.target.kind != "cpu":
            (latency,) = measure([self.model], self.feeds, self.target, seconds=2.0)
            return {}, latency.median
        inside, rest = time_per_layer(profile(self.model, self.feeds, self.target), self.layers)
        return inside, rest + sum(inside.values())

    def layer_times(self, *models: onnx.ModelProto) -> list[dict[str, float]]:
        """Return for every model, run in turns, the milliseconds of the layers, dense or rewritten.

        There are none on CUDA, where onnxruntime's profiler sees nothing but their launch.
        """
        if self.target.kind != "cpu":
            return [{} for _ in models]
        return [time_per_layer(times, self.layers)[0] for times in profile_interleaved(models, self.feeds, self.target)]


def rewrite_and_fold(model: onnx.ModelProto, layers: Sequence[Layer], chains: Mapping[str, Chain]) -> onnx.ModelProto:
    """Return the network with chains in place of layers, permutations of maps folded into what follows."""
    return fold_gathers(rewrite(model, layers, chains))

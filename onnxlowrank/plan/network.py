"""A network as it is planned and timed: the original, its layers, and how their chains are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import onnx

from onnxlowrank.calibrate.kept_nodes import KeptNode
from onnxlowrank.evaluate.agreement import Agreement, compare_outputs
from onnxlowrank.evaluate.figure_of_merit import FigureOfMerit, compare_merit
from onnxlowrank.evaluate.measures import Measure
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.permute import fold_gathers
from onnxlowrank.graph.probe import with_only_outputs
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.graph.storage import StoredTypes, store, stored_types
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.cache import Cache
from onnxlowrank.measure.inside_timer import InsideTimer
from onnxlowrank.measure.lowerings import Lowerings
from onnxlowrank.measure.node_times import profile_interleaved, time_per_layer
from onnxlowrank.measure.sessions import Target
from onnxlowrank.passes.base import KEEP, ApplicablePasses, Plan
from onnxlowrank.progress import Advance


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
        measures: How its outputs are measured.
        metric: A figure of merit, or None.
        kept: What multiplies and accumulates, and belongs to no layer.
        times: Remembers measured times.
        at_once: How many of its inputs may be joined to one.
    """

    original: onnx.ModelProto
    model: onnx.ModelProto
    layers: Sequence[Layer]
    applicable: ApplicablePasses
    lowering: Lowerings
    feeds: Feeds
    target: Target
    measures: Sequence[Measure] = ()
    metric: str | FigureOfMerit | None = None
    kept: Sequence[KeptNode] = ()
    times: Cache = field(default_factory=Cache)
    at_once: int = 1

    def compare(
        self, model: onnx.ModelProto, chains: Mapping[str, Chain], inputs: Inputs, advance: Advance
    ) -> Agreement:
        """Return how far the outputs of a rewritten network are from those of the original.

        Args:
            model: The network as it is written.
            chains: What its layers became.
            inputs: Sample inputs.
            advance: Told of every feed.
        """
        outputs = {output.name for output in self.original.graph.output}
        tensors = [one.tensor for one in self.measures if one.tensor not in outputs]
        inside = None
        if tensors:
            exposed = with_only_outputs(self.model, tensors)
            inside = exposed, self._written(exposed, chains)
        found = compare_outputs(self.original, model, inputs, advance, self.measures, inside, self.at_once)
        if self.metric is None:
            return found
        return replace(found, merit=compare_merit(self.metric, self.original, model, inputs, self.measures))

    def outline(self, plan: Plan) -> onnx.ModelProto:
        """Return the network of a plan, with constants for weights."""
        return self.written(self.outlines(plan))

    def written(self, chains: Mapping[str, Chain]) -> onnx.ModelProto:
        """Return the network with chains in place of layers, orders of maps folded, weights as they were stored."""
        return self._written(self.model, chains)

    def _written(self, model: onnx.ModelProto, chains: Mapping[str, Chain]) -> onnx.ModelProto:
        return store(fold_gathers(rewrite(model, self.layers, chains)), self.stored_types, self._own)

    @cached_property
    def stored_types(self) -> StoredTypes:
        """Which weights are stored in half precision."""
        return stored_types(self.original)

    def outlines(self, plan: Plan) -> dict[str, Chain]:
        """Return the chains of a plan, by layer, with constants for weights."""
        chains = {}
        for layer in self.layers:
            candidate = plan[layer.name]
            if candidate.method != KEEP:
                outline = self.applicable[layer.name][candidate.method].outline(layer, candidate.setting)
                chains[layer.name] = outline.lowered(self.lowering(layer, outline))
        return chains

    @property
    def dense_times(self) -> tuple[dict[str, float], float]:
        """The milliseconds of the layers as they are, where they can be told, and of the whole network."""
        return self._inside.dense, self._inside.whole

    def chain_times(self, chains: Mapping[str, Chain]) -> dict[str, float]:
        """Return the milliseconds of chains inside the network they make together, where they can be told."""
        return self._inside.milliseconds(chains, self.written)

    @cached_property
    def _inside(self) -> InsideTimer:
        return InsideTimer(self.model, self.layers, self.feeds, self.target, self.times)

    def layer_times(self, *models: onnx.ModelProto) -> list[dict[str, float]]:
        """Return for every model, run in turns, the milliseconds of the layers, dense or rewritten.

        There are none on CUDA, where onnxruntime's profiler sees nothing but their launch.
        """
        if self.target.kind != "cpu":
            return [{} for _ in models]
        profiles = profile_interleaved(models, self.feeds, self.target)
        return [time_per_layer(times, self.layers, self._own)[0] for times in profiles]

    @cached_property
    def _own(self) -> frozenset[str]:
        return frozenset(node.name for node in self.model.graph.node)

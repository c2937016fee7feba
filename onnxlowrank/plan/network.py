"""A network as it is planned and timed: the original, its layers, and how their chains are written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import onnx

from onnxlowrank.calibrate.kept_nodes import KeptNode
from onnxlowrank.evaluate.agreement import Agreement, compare_outputs
from onnxlowrank.evaluate.figure_of_merit import FigureOfMerit, compare_merit
from onnxlowrank.evaluate.measures import Measure
from onnxlowrank.graph.affine import folded_away
from onnxlowrank.graph.branches import fold_branches, unfold_branches, unfolded_branches
from onnxlowrank.graph.chain import Chain, as_chain
from onnxlowrank.graph.cut_maps import cut_maps, filters_left
from onnxlowrank.graph.layer import Layer, Place
from onnxlowrank.graph.permute import fold_gathers
from onnxlowrank.graph.probe import with_only_outputs
from onnxlowrank.graph.recurrent import fold_recurrent
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.graph.storage import StoredTypes, store, stored_types
from onnxlowrank.graph.widen import is_half
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.cache import Cache
from onnxlowrank.measure.calm import Calm
from onnxlowrank.measure.inside_timer import InsideTimer, LinkTimes
from onnxlowrank.measure.interleaved import measure_in_sessions
from onnxlowrank.measure.latency import median_speedup
from onnxlowrank.measure.layer_times import time_per_layer
from onnxlowrank.measure.lowerings import Lowerings
from onnxlowrank.measure.node_times import profile_interleaved
from onnxlowrank.measure.sessions import Target
from onnxlowrank.passes.base import KEEP, ApplicablePasses, Plan, placeholder
from onnxlowrank.progress import Advance, Progress
from onnxlowrank.quantize.half import Half
from onnxlowrank.quantize.int8 import Int8

INT8_SUBJECT, FP16_SUBJECT = {"precision": "int8"}, {"precision": "fp16"}
"""What times of layers and chains in these are remembered with."""
_DENSE_S = 4.0


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
        int8: Makes it int8; None where it is not to be.
        half: Makes it half precision; likewise.
        calm: Tells when the original is slowed down by other work.
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
    int8: Int8 | None = None
    half: Half | None = None
    calm: Calm = field(default_factory=Calm)

    def compare(
        self, model: onnx.ModelProto, chains: Mapping[str, Chain] | None, inputs: Inputs, advance: Advance
    ) -> Agreement:
        """Return how far the outputs of a rewritten network are from those of the original.

        Args:
            model: The network as it is written.
            chains: What its layers became; None where its weights are no longer those of chains.
            inputs: Sample inputs.
            advance: Told of every feed.
        """
        outputs = {output.name for output in self.original.graph.output}
        tensors = [one.tensor for one in self.measures if one.tensor not in outputs]
        inside = None
        if tensors:
            exposed = with_only_outputs(self.model, tensors)
            if chains is None:
                inside = exposed, with_only_outputs(model, tensors)
            elif self.int8 is None:
                inside = exposed, self._written(exposed, chains)
            else:
                inside = exposed, exposed if model is self.original else with_only_outputs(model, tensors)
        found = compare_outputs(self.original, model, inputs, advance, self.measures, inside, self.at_once)
        if self.metric is None:
            return found
        return replace(found, merit=compare_merit(self.metric, self.original, model, inputs, self.measures))

    def outline(self, plan: Plan) -> onnx.ModelProto:
        """Return the network of a plan as it is timed, with constants for weights."""
        return self._timed(self.outlines(plan))

    @cached_property
    def dense(self) -> onnx.ModelProto:
        """The network with all its layers kept, as it is timed."""
        return self._as_timed(self.folded)

    @cached_property
    def folded(self) -> onnx.ModelProto:
        """The normalised network, its recurrent layers as they were."""
        return fold_recurrent(self.model)

    @cached_property
    def folded_away(self) -> int:
        """How many constant factors and addends are not nodes of the normalised network any more."""
        return folded_away(self.original, self.folded)

    @property
    def kept_all(self) -> onnx.ModelProto:
        """The network with all its layers kept, as it is written: to be counted."""
        return self._timed({})

    def finished(
        self, chains: Mapping[str, Chain], progress: Progress, float32: Collection[str] = ()
    ) -> onnx.ModelProto:
        """Return the network with fitted chains in place of layers as it is given to the user.

        Args:
            chains: By layer.
            progress: Told how far it is.
            float32: Layers of an int8 network that stay in float32.
        """
        if self.int8 is not None:
            return fold_branches(self.int8.network(chains, self.written, progress, float32))
        if self.half is not None and (chains or not is_half(self.original)):
            return fold_branches(self.half.network(chains, self.written, progress))
        return fold_branches(self.written(chains)) if chains or self.folded_away else self.original

    def _timed(self, chains: Mapping[str, Chain]) -> onnx.ModelProto:
        """Return the network with chains in place of layers as it is timed."""
        return self._as_timed(self.written(chains))

    def _as_timed(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return a float32 network in the precision that is planned in."""
        lower = self.half if self.int8 is None else self.int8
        return model if lower is None else lower.outline(model)

    def written(self, chains: Mapping[str, Chain]) -> onnx.ModelProto:
        """Return the network with chains in place of layers, orders of maps folded, weights as they were stored."""
        return self._written(self.model, chains)

    def _written(self, model: onnx.ModelProto, chains: Mapping[str, Chain]) -> onnx.ModelProto:
        folded = fold_recurrent(cut_maps(fold_gathers(rewrite(model, self.layers, chains))))
        return store(folded, self.stored_types, self._own)

    def counted(self, chains: Mapping[str, Chain]) -> dict[str, Chain]:
        """Return chains as they are counted: those whose layers, or which themselves, lose filters are without them."""
        if not any(step.among for chain in chains.values() for step in chain.steps):
            return dict(chains)
        left, counted = filters_left(fold_gathers(rewrite(self.model, self.layers, chains))), dict(chains)
        for layer in self.layers:
            own = [
                max((left[name] for name in left if _is_of(name, place, layer.name in chains)), default=None)
                for place in layer.places
            ]
            if all(own):
                counted[layer.name] = _with_filters(chains.get(layer.name, as_chain(layer)), max(filter(None, own)))
        return counted

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
        """The milliseconds of the layers that are kept, where they can be told, and of the network that keeps all."""
        return self._inside.dense, self._inside.whole

    @cached_property
    def original_time(self) -> float:
        """The milliseconds of the original network."""
        _, whole = self.dense_times
        if self.int8 is None and self.half is None and not self.folded_away:
            return whole
        both = self.original, self.dense
        return whole * median_speedup(
            *measure_in_sessions(both, self.feeds, self.target, _DENSE_S, fewest=2, calm=self.calm)
        )

    def chain_times(self, networks: Sequence[Mapping[str, Chain]]) -> list[dict[str, LinkTimes]]:
        """Return what the links of chains take inside each of the networks they make, where it can be told."""
        return self._inside.milliseconds(networks, self._timed)

    @property
    def rest_time(self) -> float | None:
        """The milliseconds of what belongs to no layer, beside the chains that were timed last; None before."""
        return self._inside.rest

    @cached_property
    def _inside(self) -> InsideTimer:
        subject = INT8_SUBJECT if self.int8 is not None else FP16_SUBJECT if self.half is not None else None
        return InsideTimer(self.dense, self.layers, self.feeds, self.target, self.times, subject)

    def layer_times(self, *models: onnx.ModelProto) -> list[dict[str, float]]:
        """Return for every model, run in turns, the milliseconds of the layers, dense or rewritten.

        There are none on CUDA, where onnxruntime's profiler sees nothing but their launch.
        """
        if self.target.kind != "cpu":
            return [{} for _ in models]
        unfolded = [unfold_branches(model, self._branches) for model in models]
        profiles = profile_interleaved(unfolded, self.feeds, self.target)
        return [time_per_layer(times, self.layers, self._own)[0] for times in profiles]

    @cached_property
    def _branches(self) -> dict[str, str]:
        return unfolded_branches(self.model)

    @cached_property
    def _own(self) -> frozenset[str]:
        return frozenset(node.name for node in self.model.graph.node)


def _is_of(node: str, place: Place, in_chain: bool) -> bool:
    """Return whether a node computes a layer at one place, or is of the chain in its place."""
    return node.startswith(f"{place.name}/lowrank/") if in_chain else node in place.nodes


def _with_filters(chain: Chain, count: int) -> Chain:
    """Return a chain with so many filters of the last link, to be counted."""
    last = chain.steps[-1]
    only = replace(last, weight=placeholder(count, *last.weight.shape[1:]), give=None)
    return Chain((*chain.steps[:-1], only), None if chain.bias is None else placeholder(count))

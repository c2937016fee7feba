"""Samples the layers of a network one by one, shallow to deep, without running anew all that is before them.

What is kept is the input of a layer, and what else the outputs need of all that computes it: inside a residual block
the shortcut, of a detector the scales that are joined later.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx

from onnxlowrank.calibrate.capture import Rows, run_probes
from onnxlowrank.calibrate.stored_tensors import MOST_BYTES, StoredTensors, is_numeric
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.cut import behind, frontier
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.probe import Probe, add_probes, expose, tensor_names
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.graph.walk import with_outputs
from onnxlowrank.inputs.feeds import Inputs, byte_count
from onnxlowrank.progress import Advance


class PrefixCache:
    """A network and those of its tensors that carry all that is computed later.

    They are kept for all inputs, and what is before them is forgotten. Where they would take more than ``MOST_BYTES``,
    networks run from earlier ones or their inputs.
    """

    def __init__(self, model: onnx.ModelProto, layers: Sequence[Layer], inputs: Inputs, seed: int) -> None:
        """Begin at the inputs of the network.

        Args:
            model: A normalised network.
            layers: Its layers.
            inputs: Sample inputs.
            seed: Of the sampled positions.
        """
        self._whole = self._left = model, inputs
        self._layers, self._seed = layers, seed

    def sample(
        self, chains: Mapping[str, Chain], probes: Sequence[Probe], settled: str, advance: Advance
    ) -> list[dict[str, Rows]]:
        """Return all that :func:`onnxlowrank.calibrate.capture.sample` yields, if it is finite.

        Args:
            chains: What computes layers, by their names.
            probes: What to sample.
            settled: Tensor of the network that is computed likewise from now on, and so are all tensors before it.
            advance: Told of every feed.

        Raises:
            NotFiniteError: If a tensor is not finite.
        """
        left, inputs = self._left
        tensors = frontier(left, settled) if self._has(probes) else None
        if tensors is None:
            return list(run_probes(*self.probed(chains, probes), self._seed, advance))
        fed = {value.name for value in left.graph.input}
        computed = [name for name in tensors if name not in fed]
        keeping, found = StoredTensors(tensors), []
        both = self._part(left, chains, {*computed, *(probe.tensor for probe in probes)})
        extended = with_outputs(add_probes(both, probes), computed)
        for index, rows in enumerate(run_probes(extended, inputs, self._seed, advance, computed)):
            values = {name: rows.pop(name) for name in computed}
            if len(values) < len(tensors):
                values |= {name: value for name, value in inputs[index].items() if name in tensors}
            if not all(map(is_numeric, values.values())) or byte_count(values) * len(inputs) > MOST_BYTES:
                return list(run_probes(*self.probed(chains, probes), self._seed, advance))
            keeping.add(values)
            found.append(rows)
        rest = behind(left, keeping.described()) if keeping.complete else None
        if rest is not None:
            self._left = rest, keeping.inputs(self._whole[1])
        return found

    def probed(self, chains: Mapping[str, Chain], probes: Sequence[Probe]) -> tuple[onnx.ModelProto, Inputs]:
        """Return what is left to run of the network to sample tensors of it, and the inputs of that."""
        model, inputs = self._left if self._has(probes) else self._whole
        return add_probes(self._part(model, chains, {probe.tensor for probe in probes}), probes), inputs

    def _has(self, probes: Sequence[Probe]) -> bool:
        """Return whether what is left to run has all that is sampled."""
        return tensor_names(self._left[0]).issuperset(probe.tensor for probe in probes)

    def rest(self, chains: Mapping[str, Chain]) -> tuple[onnx.ModelProto, Inputs]:
        """Return what is left to run of the network, to all its outputs, and the inputs of that."""
        model, inputs = self._left
        return self._written(model, chains), inputs

    def _part(self, model: onnx.ModelProto, chains: Mapping[str, Chain], tensors: Collection[str]) -> onnx.ModelProto:
        """Return what computes ``tensors`` of a part of the network."""
        return self._written(expose(model, sorted(tensors)), chains)

    def _written(self, model: onnx.ModelProto, chains: Mapping[str, Chain]) -> onnx.ModelProto:
        """Return a part of the network with chains at those places of layers that it has."""
        nodes = {node.name for node in model.graph.node}
        there = []
        for layer in self._layers:
            places = [place for place in layer.places if nodes.issuperset(place.nodes)]
            if layer.name in chains and places:
                there.append(layer.at(places))
        return rewrite(model, there, {layer.name: chains[layer.name] for layer in there})

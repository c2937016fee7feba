"""Samples the layers of a network one by one, shallow to deep, without running anew all that is before them.

What is kept is one tensor that all deeper layers and the outputs depend on, and on nothing else before it: behind a
block of a residual network, not inside.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto, helper

from onnxlowrank.calibrate.capture import Rows, run_probes
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.cut import behind, narrowest
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.probe import Probe, add_probes, expose, tensor_names
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.graph.walk import with_outputs
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.progress import Advance
from onnxlowrank.temporary import Scratch

_MOST_BYTES = 2**30
"""Of the activations kept in the temporary folder."""


class PrefixCache:
    """A network and the deepest of its tensors so far that alone carries all that is computed later.

    That is kept for all inputs, and what is before it is forgotten. Where there is none, or it would take more than
    ``_MOST_BYTES``, networks run from an earlier one or their inputs.
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
        (left, inputs), (probed, those) = self._left, self.probed(chains, probes)
        tensor = narrowest(left, [settled, *(output.name for output in left.graph.output)])
        if tensor is None or those is not inputs:
            return list(run_probes(probed, those, self._seed, advance))
        keeping, found = _Kept(tensor), []
        both = self._part(left, chains, {tensor, *(probe.tensor for probe in probes)})
        for rows in run_probes(with_outputs(add_probes(both, probes), [tensor]), inputs, self._seed, advance):
            value = rows.pop(tensor)
            if value.nbytes * len(inputs) > _MOST_BYTES:
                return list(run_probes(probed, inputs, self._seed, advance))
            keeping.add(value)
            found.append(rows)
        rest = behind(left, keeping.description()) if keeping.complete else None
        if rest is not None:
            self._left = rest, keeping.inputs(self._whole[1])
        return found

    def probed(self, chains: Mapping[str, Chain], probes: Sequence[Probe]) -> tuple[onnx.ModelProto, Inputs]:
        """Return what is left to run of the network to sample tensors of it, and the inputs of that."""
        tensors = {probe.tensor for probe in probes}
        model, inputs = self._left if tensors <= tensor_names(self._left[0]) else self._whole
        return add_probes(self._part(model, chains, tensors), probes), inputs

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


class _Kept:
    """A tensor of every feed, in the temporary folder, as long as there is room.

    Attributes:
        tensor: Its name.
        complete: Whether there was room.
    """

    def __init__(self, tensor: str) -> None:
        self.tensor, self.complete = tensor, True
        self._scratch = Scratch()
        self._shapes: list[tuple[int, ...]] = []

    def add(self, value: Rows) -> None:
        """Keep the tensor of the next feed."""
        if not self.complete:
            return
        try:
            np.save(self._scratch.folder / f"{len(self._shapes)}.npy", value, allow_pickle=False)
        except OSError:
            self._scratch.remove()
            self.complete = False
        self._shapes.append(value.shape)

    def description(self) -> ValueInfoProto:
        """Return the tensor as an input of a network; sizes that are not always the same are left open."""
        sizes = [axis[0] if len(set(axis)) == 1 else None for axis in zip(*self._shapes, strict=True)]
        return helper.make_tensor_value_info(self.tensor, TensorProto.FLOAT, sizes)

    def inputs(self, like: Inputs) -> Inputs:
        """Return it as inputs, of the same samples as those it was computed from."""
        folder, name = self._scratch.folder, self.tensor

        def read(index: int) -> dict[str, Rows]:
            return {name: np.load(folder / f"{index}.npy", allow_pickle=False)}

        return Inputs(read, len(like), like.batch, like.description, keep=self._scratch, samples=like.samples)

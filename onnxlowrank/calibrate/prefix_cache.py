"""Samples the layers of a network one by one, shallow to deep, without running anew all that is before them.

What is kept is one tensor that all deeper layers and the outputs depend on, and on nothing else before it: behind a
block of a residual network, not inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto, helper

from onnxlowrank.calibrate.capture import Rows, run_probes
from onnxlowrank.graph.cut import behind, narrowest
from onnxlowrank.graph.probe import Probe, add_probes
from onnxlowrank.graph.walk import with_outputs
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.progress import Advance
from onnxlowrank.temporary import Scratch

_MOST_BYTES = 2**30
"""Of the activations kept in the temporary folder."""


class PrefixCache:
    """The deepest tensor so far that alone carries all that is computed later, kept for all inputs.

    Where there is none, or it would take more than ``_MOST_BYTES``, networks run from an earlier one or their inputs.
    """

    def __init__(self, inputs: Inputs, seed: int) -> None:
        """Begin at the inputs of the network.

        Args:
            inputs: Sample inputs.
            seed: Of the sampled positions.
        """
        self._given, self._seed = inputs, seed
        self._kept: _Kept | None = None

    def sample(
        self, model: onnx.ModelProto, probes: Sequence[Probe], settled: str, advance: Advance
    ) -> list[dict[str, Rows]]:
        """Return all that :func:`onnxlowrank.calibrate.capture.sample` yields, if it is finite.

        Args:
            model: The network.
            probes: What to sample.
            settled: Tensor that later networks compute as this one does, and so all tensors before it.
            advance: Told of every feed.

        Raises:
            NotFiniteError: If a tensor is not finite.
        """
        probed, inputs = self.rest(add_probes(model, probes))
        tensor = narrowest(model, [settled, *(output.name for output in model.graph.output)])
        if tensor is None or (self._kept is not None and self._kept.tensor == tensor):
            return list(run_probes(probed, inputs, self._seed, advance))
        keeping, found = _Kept(tensor), []
        for rows in run_probes(with_outputs(probed, [tensor]), inputs, self._seed, advance):
            value = rows.pop(tensor)
            if value.nbytes * len(inputs) > _MOST_BYTES:
                return list(run_probes(probed, inputs, self._seed, advance))
            keeping.add(value)
            found.append(rows)
        if keeping.complete:
            self._kept = keeping
        return found

    def rest(self, model: onnx.ModelProto) -> tuple[onnx.ModelProto, Inputs]:
        """Return what is left to run of a network, and the inputs of that.

        Args:
            model: The network, perhaps with probes; up to the tensors that were settled it is what it was.
        """
        if self._kept is not None:
            left = behind(model, self._kept.description(), self._positions(model))
            if left is not None:
                return left, self._kept.inputs(self._given)
        return model, self._given

    def _positions(self, model: onnx.ModelProto) -> set[str]:
        """Return the input of a model with probes that is not fed: that of the sampled positions."""
        return {value.name for value in model.graph.input} - self._fed

    @cached_property
    def _fed(self) -> frozenset[str]:
        return frozenset(self._given[0])


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

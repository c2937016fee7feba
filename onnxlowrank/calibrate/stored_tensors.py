"""Tensors of every feed in the temporary folder, from which the rest of a network is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import ValueInfoProto, helper

from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.temporary import Scratch

MOST_BYTES = 2**30
"""Of the activations kept in the temporary folder."""


def is_numeric(value: object) -> bool:
    """Return whether a tensor is an array of numbers: there are sequences and strings, too."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


class StoredTensors:
    """Tensors of every feed, in the temporary folder, as long as there is room.

    Attributes:
        complete: Whether there was room.
    """

    def __init__(self, tensors: Sequence[str]) -> None:
        self.complete = True
        self._tensors = tensors
        self._scratch = Scratch()
        self._feeds = 0
        self._types: dict[str, int] = {}
        self._shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in tensors}

    def add(self, values: Feeds) -> None:
        """Keep the tensors of the next feed."""
        if not self.complete:
            return
        for name, value in values.items():
            self._types[name] = helper.np_dtype_to_tensor_dtype(value.dtype)
            self._shapes[name].append(value.shape)
            try:
                np.save(self._file(self._feeds, name), value, allow_pickle=False)
            except OSError:
                self._scratch.remove()
                self.complete = False
                return
        self._feeds += 1

    def described(self) -> list[ValueInfoProto]:
        """Return the tensors as inputs of a network; sizes that are not always the same are left open."""
        infos = []
        for name, shapes in self._shapes.items():
            sizes = None
            if len(set(map(len, shapes))) == 1:
                sizes = [axis[0] if len(set(axis)) == 1 else None for axis in zip(*shapes, strict=True)]
            infos.append(helper.make_tensor_value_info(name, self._types[name], sizes))
        return infos

    def inputs(self, like: Inputs) -> Inputs:
        """Return them as inputs, of the same samples as those they were computed from."""

        def read(index: int) -> Feeds:
            return {name: np.load(self._file(index, name), allow_pickle=False) for name in self._tensors}

        return Inputs(read, len(like), like.batch, like.description, keep=self._scratch, samples=like.samples)

    def _file(self, index: int, name: str) -> Path:
        return self._scratch.folder / f"{index}_{self._tensors.index(name)}.npy"

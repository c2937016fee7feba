"""Ready feeds in arrays, the first axis counting the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxlowrank.errors import UnfitInputsError
from onnxlowrank.inputs.feeds import Inputs, label_rows
from onnxlowrank.inputs.npy import Header, StoredArray, in_memory, open_npy, open_npz
from onnxlowrank.inputs.specs import (
    Array,
    Feeds,
    InputSpec,
    check_dtype,
    check_finite,
    fits,
    shape_text,
)
from onnxlowrank.temporary import Scratch


def npy_inputs(path: Path, specs: Sequence[InputSpec]) -> Inputs:
    """Return the feeds in a ``.npy`` file, for a model with one input.

    Raises:
        InputDataError: The model has several inputs, or the file cannot be read or does not fit.
    """
    if len(specs) != 1:
        names = ", ".join(f"'{spec.name}'" for spec in specs)
        raise UnfitInputsError(
            f"{path} holds one array, but the model has the inputs {names}: save an .npz with these names."
        )
    return array_inputs({specs[0].name: open_npy(path)}, specs, str(path))


def npz_inputs(path: Path, headers: dict[str, Header], specs: Sequence[InputSpec]) -> Inputs:
    """Return the feeds in a ``.npz`` file whose arrays are named like the inputs; ``labels`` may lie beside them.

    Raises:
        InputDataError: The file cannot be read or does not fit.
    """
    scratch = Scratch()
    wanted = [spec.name for spec in specs]
    wanted += [name for name in ("labels",) if name in headers and name not in wanted]
    return array_inputs(open_npz(path, wanted, headers, scratch), specs, str(path), scratch)


def array_inputs(
    arrays: Mapping[str, Array | StoredArray], specs: Sequence[InputSpec], where: str, keep: Scratch | None = None
) -> Inputs:
    """Return the feeds cut from ``arrays`` along axis 0.

    An array with as many axes as its input is cut in pieces of that input's batch, a short last one dropped; one with
    an axis more holds a whole feed at each position of axis 0 (that serves inputs without a batch axis).

    Args:
        arrays: One array for each input, by name; ``labels`` beside them are the class indices of the samples.
        specs: The model's inputs.
        where: Where the arrays come from, for messages.
        keep: The temporary folder the arrays lie in.

    Raises:
        InputDataError: An array is missing or does not fit, or their lengths differ.
    """
    missing = [spec.name for spec in specs if spec.name not in arrays]
    if missing:
        names = ", ".join(f"'{spec.name}'" for spec in specs)
        found = ", ".join(f"'{name}'" for name in arrays) or "none"
        raise UnfitInputsError(
            f"{where} has the arrays {found}, but the model's inputs are {names}: name the arrays like them."
        )
    counts = {spec.name: _count(arrays[spec.name], spec, where) for spec in specs}
    if len(set(counts.values())) > 1:
        text = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        raise UnfitInputsError(
            f"{where} makes a different number of feeds for each input ({text}): give equally many samples."
        )
    count = counts[specs[0].name]
    first = arrays[specs[0].name]
    whole = first.ndim > len(specs[0].shape)
    batch = (first.shape[1] if first.ndim > 1 else 1) if whole else specs[0].batch
    samples = first.shape[0] * (batch if whole else 1)
    is_input = any(spec.name == "labels" for spec in specs)
    labels = None
    if "labels" in arrays and not is_input:
        labels = label_rows(in_memory(arrays["labels"]), samples, count, batch, where)

    def read(index: int) -> Feeds:
        feeds = {spec.name: _piece(arrays[spec.name], spec, index) for spec in specs}
        return check_finite(feeds, f"{where}, item {index}")

    return Inputs(read, count, batch, f"{count * batch} samples in {where}", labels, keep)


def _count(array: object, spec: InputSpec, where: str) -> int:
    """Return how many feeds ``array`` makes for ``spec`` after checking its type and shape."""
    if not isinstance(array, np.ndarray | StoredArray):
        raise UnfitInputsError(f"{where}: input '{spec.name}' is a {type(array).__name__}: give a NumPy array.")
    check_dtype(array, spec, where)
    if array.ndim and 0 not in array.shape:
        if fits(array.shape[1:], spec.shape):
            return int(array.shape[0])
        if spec.shape and fits(array.shape[1:], spec.shape[1:]):
            if array.shape[0] >= spec.batch:
                return int(array.shape[0] // spec.batch)
            raise UnfitInputsError(
                f"{where}: input '{spec.name}' has {array.shape[0]} samples, but the model takes batches of "
                f"{spec.batch}: give at least as many."
            )
    raise UnfitInputsError(
        f"{where}: the array for input '{spec.name}' has shape {shape_text(array.shape)}, but the model wants samples, "
        f"counted by the first axis, of shape {shape_text(spec.shape[1:])}: reshape it."
    )


def _piece(array: Array | StoredArray, spec: InputSpec, index: int) -> Array:
    if array.ndim > len(spec.shape):
        return np.array(array[index])
    return np.array(array[index * spec.batch : (index + 1) * spec.batch])

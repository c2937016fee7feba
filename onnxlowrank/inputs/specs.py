"""What a model expects to be fed, and the checks of feeds against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxlowrank.boundary import foreign
from onnxlowrank.errors import UnfitInputsError, UnsupportedModelError

Array = NDArray[Any]
Feeds = dict[str, Array]
"""One call's worth of inputs: input name -> array, as ``InferenceSession.run`` takes it."""


class Typed(Protocol):
    """An array, in memory or in a file."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type."""
        ...


@dataclass(frozen=True)
class InputSpec:
    """What the model declares about one of its inputs.

    Attributes:
        name: Name of the graph input.
        shape: Its dimensions, batch included; None for a dynamic one.
        dtype: The NumPy type to feed.
        symbols: The names of its dynamic dimensions, where they have some; equal ones have equal sizes.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    symbols: tuple[str | None, ...] = field(default=(), compare=False)

    @property
    def batch(self) -> int:
        """Samples in one feed: the first dimension, or 1 where it is dynamic or there is none."""
        return (self.shape[0] or 1) if self.shape else 1

    def __str__(self) -> str:
        return f"input '{self.name}' ({self.dtype} {shape_text(self.shape)})"


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """Return what must be fed to ``model``: its graph inputs that are not initializers, in graph order.

    Raises:
        ModelError: An input is not a tensor, or declares no element type or no shape.
    """
    graph = model.graph
    initialised = {tensor.name for tensor in graph.initializer}
    initialised |= {tensor.values.name for tensor in graph.sparse_initializer}
    return tuple(_spec(value) for value in graph.input if value.name not in initialised)


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type == onnx.TensorProto.UNDEFINED:
        raise UnsupportedModelError(
            f"graph input '{value.name}' is not a tensor of a declared type, so it cannot be fed: change it."
        )
    if not tensor.HasField("shape"):
        raise UnsupportedModelError(
            f"graph input '{value.name}' declares no shape: give it one, symbolic dimensions included."
        )
    # Exporters write a dynamic dimension as a symbol, as nothing, or as -1 or 0.
    shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)
    with foreign(
        lambda error: UnsupportedModelError(
            f"graph input '{value.name}' has the element type {tensor.elem_type}, which onnx does not know: change it."
        )
    ):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return InputSpec(value.name, shape, dtype, tuple(dim.dim_param or None for dim in tensor.shape.dim))


def shape_text(shape: Sequence[int | None]) -> str:
    """Return ``shape`` for a message, dynamic dimensions as ``?``."""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Return whether an array of ``shape`` can be fed where ``wanted`` is declared."""
    return len(shape) == len(wanted) and all(want in (None, size) for size, want in zip(shape, wanted, strict=True))


def check_dtype(array: Typed, spec: InputSpec, item: str) -> None:
    """Raise InputDataError unless ``array``, found in ``item``, has the type that ``spec`` wants."""
    if array.dtype != spec.dtype:
        raise UnfitInputsError(
            f"{item}: the array for input '{spec.name}' is {array.dtype}, but the model wants {spec.dtype}: "
            f"convert it with astype('{spec.dtype}')."
        )


def check_feeds(feeds: object, specs: Sequence[InputSpec], item: str) -> Feeds:
    """Return ``feeds`` as a dict in the order of ``specs`` after checking names, types and shapes.

    Args:
        feeds: Mapping from input name to array, or the bare array of a model with one input.
        specs: The model's inputs.
        item: Where the feeds come from, for messages.

    Raises:
        InputDataError: They do not fit the model.
    """
    if isinstance(feeds, np.ndarray) and len(specs) == 1:
        feeds = {specs[0].name: feeds}
    names = ", ".join(f"'{spec.name}'" for spec in specs)
    if not isinstance(feeds, Mapping):
        raise UnfitInputsError(f"{item} is a {type(feeds).__name__}: give a dict of arrays with the names {names}.")
    if set(feeds) != {spec.name for spec in specs}:
        found = ", ".join(f"'{name}'" for name in feeds) or "nothing"
        raise UnfitInputsError(f"{item} has {found}, but the model's inputs are {names}: name the arrays like them.")
    return {spec.name: _check_array(feeds[spec.name], spec, item) for spec in specs}


def _check_array(array: object, spec: InputSpec, item: str) -> Array:
    if not isinstance(array, np.ndarray | np.generic):
        raise UnfitInputsError(f"{item}: input '{spec.name}' is a {type(array).__name__}: give a NumPy array.")
    array = np.asarray(array)
    check_dtype(array, spec, item)
    if not fits(array.shape, spec.shape) or array.size == 0:
        raise UnfitInputsError(
            f"{item}: the array for input '{spec.name}' has shape {shape_text(array.shape)}, but the model wants "
            f"{shape_text(spec.shape)}: reshape it, batch axis included."
        )
    return array


def check_finite(feeds: Feeds, item: str) -> Feeds:
    """Return ``feeds``, or raise InputDataError when a floating-point array of theirs has NaN or infinite values."""
    for name, array in feeds.items():
        if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            raise UnfitInputsError(
                f"{item}: the array for input '{name}' has NaN or infinite values: remove or repair it."
            )
    return feeds

"""Opening calibration and evaluation inputs, whatever they come in."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from onnxlowrank.errors import MissingInputsError, OptionError, UnfitInputsError
from onnxlowrank.inputs.arrays import npy_inputs, npz_inputs
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.images import folder_inputs, packed_inputs
from onnxlowrank.inputs.npy import Header, npz_headers
from onnxlowrank.inputs.preprocess import Preprocess, preprocess_from_options
from onnxlowrank.inputs.readers import (
    is_reference,
    module_inputs,
    object_inputs,
    onnx_test_inputs,
    onnx_test_sets,
)
from onnxlowrank.inputs.specs import Array, Feeds, InputSpec, fits, input_specs
from onnxlowrank.inputs.synthetic import synthetic_inputs

__all__ = ["Feeds", "InputSpec", "Inputs", "Reader", "Source", "input_specs", "open_inputs"]


class Reader(Protocol):
    """What onnxruntime calls a CalibrationDataReader."""

    def get_next(self) -> Feeds | None:
        """Return the next feed, or None after the last."""
        ...


Source = str | os.PathLike[str] | Inputs | Reader | Iterable[Feeds | Array] | Feeds | Array


def open_inputs(source: Source, specs: Sequence[InputSpec], preprocess: Preprocess) -> Inputs:
    """Return the sample inputs in ``source`` as a sequence of feeds for a model with the inputs ``specs``.

    The source is one of:

    * a folder of images, in class subfolders or not; or a ``.npz`` with uint8 ``images`` ``[N, H, W, C]`` and,
      optionally, integer ``labels`` ``[N]``: they go through ``preprocess``;
    * ready feeds, which do not: a ``.npy`` (models with one input), a ``.npz`` with an array for each input by its
      name (and, optionally, ``labels``), a folder of ONNX test data (``test_data_set_*/input_*.pb``, or one such);
    * ``module:attribute``: an object with ``get_next()``, an iterable of feeds, or a function or class returning one;
    * in Python, any of these objects itself, arrays, or an :class:`Inputs`, which is returned as it is.

    Images and arrays are fed in the model's batch size, a short last batch dropped, and one by one where that is
    dynamic. A source that can be read only once is run to its end here and kept in a temporary folder, which goes
    when the result does.

    Raises:
        InputDataError: The source is missing or damaged, or does not fit the model; damage to an image file and NaN
            or infinite values in stored arrays are found when the feed is read.
        OptionError: The preprocessing contradicts the model.
    """
    if isinstance(source, Inputs):
        return source
    if not specs:
        raise UnfitInputsError("the model has no inputs, so there is nothing to feed: give a model with at least one.")
    if isinstance(source, str | os.PathLike):
        return _from_name(os.fspath(source), specs, preprocess)
    return object_inputs(source, specs, f"the {type(source).__name__}")


def _from_name(name: str, specs: Sequence[InputSpec], preprocess: Preprocess) -> Inputs:
    path = Path(name)
    if os.path.isdir(path):
        sets = onnx_test_sets(path)
        return onnx_test_inputs(sets, specs, str(path)) if sets else folder_inputs(path, specs, preprocess)
    if os.path.isfile(path):
        match path.suffix.lower():
            case ".npy":
                return npy_inputs(path, specs)
            case ".npz":
                return _from_npz(path, specs, preprocess)
        raise MissingInputsError(
            f"{name} is a file of an unknown kind: give a folder of images, an .npy or an .npz file."
        )
    if os.path.exists(path):
        raise MissingInputsError(f"{name} is not a regular file: give a folder, or an .npy or .npz file.")
    if is_reference(name):
        return module_inputs(name, specs)
    raise MissingInputsError(f"{name} does not exist: give a folder, an .npy or .npz file, or module:attribute.")


def _from_npz(path: Path, specs: Sequence[InputSpec], preprocess: Preprocess) -> Inputs:
    headers = npz_headers(path)
    if all(spec.name in headers and not _is_pixels(headers, spec) for spec in specs):
        return npz_inputs(path, headers, specs)
    if "images" in headers:
        return packed_inputs(path, headers, specs, preprocess)
    names = ", ".join(f"'{spec.name}'" for spec in specs)
    found = ", ".join(f"'{name}'" for name in headers) or "none"
    raise UnfitInputsError(
        f"{path} has the arrays {found}, but the model's inputs are {names}: name the arrays like them, or 'images'."
    )


def holds_images(source: Source, specs: Sequence[InputSpec]) -> bool:
    """Return whether a source, one that :func:`open_inputs` takes, holds images that are preprocessed."""
    if not isinstance(source, str | os.PathLike):
        return False
    path = Path(os.fspath(source))
    if os.path.isdir(path):
        return not onnx_test_sets(path)
    if not os.path.isfile(path) or path.suffix.lower() != ".npz":
        return False
    headers = npz_headers(path)
    return "images" in headers and not all(spec.name in headers and not _is_pixels(headers, spec) for spec in specs)


def _is_pixels(headers: dict[str, Header], spec: InputSpec) -> bool:
    """Return whether the array for ``spec`` holds images to be preprocessed: bytes, for an input that takes others."""
    return spec.name == "images" and headers["images"][1] == np.uint8 != spec.dtype


def open_or_synthesise(
    specs: Sequence[InputSpec],
    source: Source | None,
    shapes: Mapping[str, Sequence[int]],
    preprocess: Preprocess | None,
    count: int,
    seed: int,
) -> Inputs:
    """Return the inputs in ``source``, or ``count`` random ones.

    Raises:
        OptionError: If a shape is for no input, or contradicts what the network declares.
    """
    how = preprocess_from_options("imagenet") if preprocess is None else preprocess
    if source is not None:
        if shapes:
            raise OptionError("--shape is about random inputs; leave it out, or the inputs")
        return open_inputs(source, specs, how)
    known = {spec.name: spec for spec in specs}
    for name, shape in shapes.items():
        shown = f"--shape {name}={'x'.join(map(str, shape))}"
        if name not in known:
            raise OptionError(f"{shown}: there is no such input; inputs are {', '.join(known)}")
        if not fits(shape, known[name].shape):
            raise OptionError(f"{shown} contradicts the network, which has {known[name]}")
        known[name] = replace(known[name], shape=tuple(shape))
    return synthetic_inputs(list(known.values()), how, count, seed)

"""Ready feeds from Python objects, from ``module:attribute`` and from ONNX test data."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import onnx

from onnxlowrank.boundary import foreign, reason, typed_reason
from onnxlowrank.errors import (
    DamagedInputsError,
    MissingInputsError,
    ReaderError,
    ScratchError,
    UnfitInputsError,
)
from onnxlowrank.inputs.arrays import array_inputs
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.specs import Array, Feeds, InputSpec, check_feeds, check_finite
from onnxlowrank.temporary import Scratch

_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def object_inputs(source: object, specs: Sequence[InputSpec], where: str) -> Inputs:
    """Return the feeds of a Python object.

    Lists and tuples of feeds are read in place, and arrays cut along axis 0. Everything else is assumed to be
    readable only once: it is run to its end here, and the feeds are kept in a temporary folder.

    Args:
        source: Array or dict of arrays, object with ``get_next()``, or iterable of feeds.
        specs: The model's inputs.
        where: What to call it in messages.

    Raises:
        InputDataError: It is nothing of these, it fails, or its feeds do not fit the model.
    """
    if isinstance(source, Inputs):
        return source
    with users_code(where, "when it was read"):
        return _object_inputs(source, specs, where)


def _object_inputs(source: object, specs: Sequence[InputSpec], where: str) -> Inputs:
    if isinstance(source, np.ndarray) and len(specs) == 1:
        return array_inputs({specs[0].name: source}, specs, where)
    if isinstance(source, Mapping):
        return array_inputs(source, specs, where)
    if isinstance(source, list | tuple):
        return _listed(source, specs, where)
    if isinstance(source, Iterable) or hasattr(source, "get_next"):
        return _kept_feeds(source, specs, where)
    raise UnfitInputsError(
        f"{where} cannot be read for inputs: give a folder, a file, arrays, an iterable of feeds or an object with "
        "get_next()."
    )


def _listed(source: Sequence[object], specs: Sequence[InputSpec], where: str) -> Inputs:
    feeds = [check_feeds(item, specs, f"{where}, item {index}") for index, item in enumerate(source)]
    if not feeds:
        raise _nothing(where)
    return Inputs(
        lambda index: check_finite(feeds[index], f"{where}, item {index}"),
        len(feeds),
        _batch_of(feeds[0], specs),
        f"{len(feeds)} feeds from {where}",
    )


def _kept_feeds(source: object, specs: Sequence[InputSpec], where: str) -> Inputs:
    scratch = Scratch()
    count, batch = 0, 1
    try:
        for item in _items(source, where):
            name = f"{where}, item {count}"
            feeds = check_finite(check_feeds(item, specs, name), name)
            batch = batch if count else _batch_of(feeds, specs)
            for number, array in enumerate(feeds.values()):
                _save(scratch, _file_name(count, number), array)
            count += 1
        if not count:
            raise _nothing(where)
    except BaseException:
        scratch.remove()
        raise

    def read(index: int) -> Feeds:
        return {
            spec.name: np.load(scratch.folder / _file_name(index, number), allow_pickle=False)
            for number, spec in enumerate(specs)
        }

    return Inputs(read, count, batch, f"{count} feeds from {where}")


def _file_name(index: int, number: int) -> str:
    return f"feed_{index}_{number}.npy"


def _save(scratch: Scratch, name: str, array: Array) -> None:
    try:
        np.save(scratch.folder / name, array, allow_pickle=False)
    except OSError as error:
        raise ScratchError(
            f"the feeds cannot be kept in {scratch.folder} ({error.strerror}): "
            "make room or set TMPDIR to a larger disk."
        ) from error


def _items(source: object, where: str) -> Iterator[object]:
    """Yield the feeds of a reader or an iterable; whatever goes wrong in it becomes a ReaderError."""
    with users_code(where, "when it was begun"):
        pull, end = _pull(source)
    for count in itertools.count():
        with users_code(where, f"at item {count}"):
            item = pull()
        if item is end:
            return
        yield item


def _pull(source: object) -> tuple[Callable[[], object], object]:
    """Return what gives the next item, and what it gives after the last."""
    if hasattr(source, "get_next"):
        return source.get_next, None
    end = object()
    return partial(next, iter(cast("Iterable[object]", source)), end), end


def _batch_of(feeds: Feeds, specs: Sequence[InputSpec]) -> int:
    shape = feeds[specs[0].name].shape
    return int(shape[0]) if shape else 1


def _nothing(where: str) -> MissingInputsError:
    return MissingInputsError(
        f"{where} gave no feeds: give at least one, and a fresh reader or generator if it was used up."
    )


def users_code(where: str, when: str) -> AbstractContextManager[None]:
    """Return a boundary around code of the user's: whatever it raises, the sentence says where, and we go on."""
    return foreign(
        lambda error: ReaderError(f"{where} failed {when} ({typed_reason(error)}): correct it."), BaseException
    )


def is_reference(source: str) -> bool:
    """Return whether ``source`` reads like ``module:attribute``."""
    return _REFERENCE.fullmatch(source) is not None


def module_inputs(reference: str, specs: Sequence[InputSpec]) -> Inputs:
    """Return the feeds of the object that ``module:attribute`` names, called first if it is a function or a class.

    Modules in the current directory are found, too.

    Raises:
        InputDataError: The module or the attribute is missing or fails, or the feeds do not fit the model.
    """
    with current_directory_importable():
        found = resolve(reference)
        with users_code(reference, "when it was called without arguments"):
            is_source = hasattr(found, "get_next") or isinstance(found, Iterable)
            if isinstance(found, type) or (callable(found) and not is_source):
                found = found()
        return object_inputs(found, specs, reference)


@contextlib.contextmanager
def current_directory_importable() -> Iterator[None]:
    """Let modules in the current directory be imported inside."""
    added = str(Path.cwd())
    sys.path.insert(0, added)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(added)


def resolve(reference: str) -> object:
    """Return what ``module:attribute`` names.

    Raises:
        InputDataError: There is no such module or attribute, or its import fails.
    """
    module_name, _, attribute = reference.partition(":")
    with users_code(reference, "when its module was imported"):
        try:
            found: object = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if f"{module_name}.".startswith(f"{error.name}."):
                raise MissingInputsError(
                    f"the module '{module_name}' of {reference} was not found: install it or run in its folder."
                ) from error
            raise
        for name in attribute.split("."):
            if not hasattr(found, name):
                raise MissingInputsError(
                    f"the module '{module_name}' has no attribute '{attribute}': give a name that it defines."
                )
            found = getattr(found, name)
    return found


def onnx_test_sets(folder: Path) -> list[Path]:
    """Return the ONNX test data sets in ``folder``, in the order of their numbers, or itself if it is one."""
    if any(folder.glob("input_*.pb")):
        return [folder]
    sets = [inside for inside in folder.glob("test_data_set_*") if any(inside.glob("input_*.pb"))]
    return sorted(sets, key=_number)


def onnx_test_inputs(sets: Sequence[Path], specs: Sequence[InputSpec], where: str) -> Inputs:
    """Return the feeds of ONNX test data sets: ``input_k.pb`` holds the tensor of the model's k-th input.

    Raises:
        InputDataError: A set has another number of inputs than the model; a file is damaged or does not fit.
    """
    for inside in sets:
        found = {path.name for path in inside.glob("input_*.pb")}
        missing = {f"input_{number}.pb" for number in range(len(specs))} ^ found
        if missing:
            raise UnfitInputsError(
                f"{inside} has {', '.join(sorted(found))}, but the model has {len(specs)} inputs: give input_0.pb to "
                f"input_{len(specs) - 1}.pb."
            )

    def read(index: int) -> Feeds:
        tensors = {spec.name: _tensor(sets[index] / f"input_{number}.pb") for number, spec in enumerate(specs)}
        return check_finite(check_feeds(tensors, specs, str(sets[index])), str(sets[index]))

    return Inputs(read, len(sets), _batch_of(read(0), specs), f"{len(sets)} test data sets in {where}")


def _number(path: Path) -> tuple[int, str]:
    digits = path.name.rpartition("_")[2]
    return (int(digits) if digits.isdecimal() else sys.maxsize, path.name)


def _tensor(path: Path) -> Array:
    if not path.is_file():
        raise DamagedInputsError(f"{path} is not a regular file: write a serialised TensorProto.")
    with foreign(
        lambda error: DamagedInputsError(
            f"{path} cannot be read as an ONNX tensor ({reason(error)}): write a serialised TensorProto."
        )
    ):
        tensor = onnx.TensorProto()
        tensor.ParseFromString(path.read_bytes())
        return onnx.numpy_helper.to_array(tensor, base_dir=str(path.parent))

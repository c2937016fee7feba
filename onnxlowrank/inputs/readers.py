"""Ready feeds from Python objects, from ``module:attribute`` and from ONNX test data."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from onnxlowrank.errors import InputDataError
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
    if isinstance(source, np.ndarray) and len(specs) == 1:
        return array_inputs({specs[0].name: source}, specs, where)
    if isinstance(source, Mapping):
        return array_inputs(source, specs, where)
    if isinstance(source, list | tuple):
        return _listed(source, specs, where)
    if isinstance(source, Iterable) or hasattr(source, "get_next"):
        return _kept_feeds(source, specs, where)
    raise InputDataError(
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
        raise InputDataError(
            f"the feeds cannot be kept in {scratch.folder} ({error.strerror}): "
            "make room or set TMPDIR to a larger disk."
        ) from error


def _items(source: object, where: str) -> Iterator[object]:
    """Yield the feeds of a reader or an iterable; whatever goes wrong in it becomes an InputDataError."""
    count = 0
    try:
        for item in _pulled(source):
            yield item
            count += 1
    except InputDataError:
        raise
    except Exception as error:
        raise _failed(where, f"at item {count}", error) from error


def _pulled(source: object) -> Iterator[object]:
    if hasattr(source, "get_next"):
        while (item := source.get_next()) is not None:
            yield item
    elif isinstance(source, Iterable):
        yield from source


def _batch_of(feeds: Feeds, specs: Sequence[InputSpec]) -> int:
    shape = feeds[specs[0].name].shape
    return int(shape[0]) if shape else 1


def _nothing(where: str) -> InputDataError:
    return InputDataError(
        f"{where} gave no feeds: give at least one, and a fresh reader or generator if it was used up."
    )


def _failed(where: str, when: str, error: BaseException) -> InputDataError:
    reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")
    return InputDataError(f"{where} failed {when} ({reason}): correct it.")


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
        is_source = hasattr(found, "get_next") or isinstance(found, Iterable)
        if isinstance(found, type) or (callable(found) and not is_source):
            try:
                found = found()
            except Exception as error:
                raise _failed(reference, "when it was called without arguments", error) from error
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
    try:
        found: object = importlib.import_module(module_name)
    except Exception as error:
        missing = f"{error.name}." if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(missing):
            raise InputDataError(
                f"the module '{module_name}' of {reference} was not found: install it or run in its folder."
            ) from error
        raise _failed(reference, "when its module was imported", error) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise InputDataError(
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
            raise InputDataError(
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
        raise InputDataError(f"{path} is not a regular file: write a serialised TensorProto.")
    try:
        tensor = onnx.TensorProto()
        tensor.ParseFromString(path.read_bytes())
        return onnx.numpy_helper.to_array(tensor, base_dir=str(path.parent))
    except Exception as error:  # protobuf and onnx raise many kinds on damaged files
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputDataError(
            f"{path} cannot be read as an ONNX tensor ({reason}): write a serialised TensorProto."
        ) from error

"""Nothing that is written may take the place of anything that is read, or of anything else that is written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from onnxlowrank.errors import DestinationError
from onnxlowrank.graph.external import external_files
from onnxlowrank.graph.load import Source, destination, weights_file
from onnxlowrank.inputs.files import files_of

Place = str | os.PathLike[str]

OUTPUT = "OUTPUT"
"""What messages call the network that is written; one that is very large has its weights in a file beside it."""


def check_destinations(
    destinations: Mapping[str, Place | None], models: Sequence[Source], data: Mapping[str, object]
) -> None:
    """Check, before long work starts, that results can be written and that nothing is lost by that.

    Files are the same if links of any kind make them so.

    Args:
        destinations: Where results are to be written, by the option that says so; None for what is not wanted.
        models: The networks that are read.
        data: The sources of inputs, likewise by option; what comes from no file is not looked at.

    Raises:
        DestinationError: A destination is a model, a file of its weights, or a file that inputs are read from; two are
            the same; or nothing can be written there.
    """
    wanted = {label: Path(path) for label, path in destinations.items() if path is not None}
    for path in wanted.values():
        destination(path)
    if OUTPUT in wanted:
        wanted[f"the file of weights beside {OUTPUT}"] = weights_file(wanted[OUTPUT])
    _check_apart(wanted)
    _check_unread(wanted, models, data)


def _check_apart(wanted: Mapping[str, Path]) -> None:
    """Raise DestinationError where two destinations are the same file."""
    taken: dict[object, str] = {}
    for label, path in wanted.items():
        for identity in filter(None, (os.path.realpath(path), _identity(path))):
            other = taken.setdefault(identity, label)
            if other != label:
                raise DestinationError(f"{label} {path} is what {other} names too; choose another path")


def _check_unread(wanted: Mapping[str, Path], models: Sequence[Source], data: Mapping[str, object]) -> None:
    """Raise DestinationError where a destination is an input; what is not there yet is none."""
    existing = {_identity(path): (label, path) for label, path in wanted.items()}
    existing.pop(None, None)
    if not existing:
        return
    for file, what in _read(models, data):
        found = _identity(file)
        if found in existing:
            label, path = existing[found]
            raise DestinationError(f"{label} {path} is {what}, which would be lost; choose another path")


def _read(models: Sequence[Source], data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
    """Yield the files that are read, and what they are."""
    for model in models:
        if not isinstance(model, onnx.ModelProto):
            yield Path(model), "the input model itself"
            for file in external_files(Path(model)):
                yield file, f"a file of the input model's weights, of {model}"
    for option, source in data.items():
        for file in files_of(source):
            yield file, f"what {option} reads"


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what is the same for all names of a file, or None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino

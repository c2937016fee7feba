"""The files that sample inputs are read from."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from onnxlowrank.inputs.images import image_paths
from onnxlowrank.inputs.readers import is_reference, onnx_test_sets


def files_of(source: object) -> Iterator[Path]:
    """Yield the files that a source of :func:`onnxlowrank.inputs.sources.open_inputs` is read from.

    Of a folder these are the images or test data in it, of ``module:attribute`` the module's own. What is no name has
    none.
    """
    if not isinstance(source, str | os.PathLike):
        return
    path = Path(source)
    if os.path.isdir(path):
        sets = onnx_test_sets(path)
        yield from (file for inside in sets for file in inside.glob("input_*.pb"))
        if not sets:
            yield from (path / file for file in image_paths(path))
    elif os.path.exists(path):
        yield path
    elif is_reference(name := os.fspath(source)):
        yield from _modules(name.partition(":")[0].partition(".")[0])


def _modules(name: str) -> Iterator[Path]:
    """Yield the files of a module in the current folder or where Python finds it, or all of a package."""
    spec = PathFinder.find_spec(name, [str(Path.cwd()), *sys.path])
    if spec is None:
        return
    if spec.origin is not None:
        yield Path(spec.origin)
    for place in spec.submodule_search_locations or ():
        yield from Path(place).rglob("*.py")

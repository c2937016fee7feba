"""Opening ``.npy`` and ``.npz`` files as memory maps, never unpickling."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxlowrank.errors import InputDataError
from onnxlowrank.inputs.specs import Array
from onnxlowrank.temporary import Scratch

Header = tuple[tuple[int, ...], np.dtype[Any]]
_DAMAGE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def open_npy(path: Path) -> Array:
    """Return the array of a ``.npy`` file as a read-only memory map.

    Raises:
        InputDataError: The file is damaged, empty, or holds Python objects.
    """
    try:
        with path.open("rb") as stream:
            header = _read_header(stream)
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    _check_header(header, str(path))
    try:
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def npz_headers(path: Path) -> dict[str, Header]:
    """Return shape and type of each array in a ``.npz`` file, by name.

    Raises:
        InputDataError: The file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {}
            for member in archive.namelist():
                if member.endswith(".npy"):
                    with archive.open(member) as stream:
                        headers[member.removesuffix(".npy")] = _read_header(stream)
            return headers
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def open_npz(path: Path, names: Iterable[str], headers: dict[str, Header], scratch: Scratch) -> dict[str, Array]:
    """Return the arrays ``names`` of a ``.npz`` file as read-only memory maps of copies unpacked into ``scratch``.

    Raises:
        InputDataError: An array is damaged, empty, or holds Python objects, or there is no room to unpack it.
    """
    arrays: dict[str, Array] = {}
    for number, name in enumerate(names):
        _check_header(headers[name], f"{path}, array '{name}'")
        target = scratch.folder / f"array_{number}.npy"
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        except _DAMAGE as error:
            raise _damaged(path, error) from error
        arrays[name] = open_npy(target)
    return arrays


def _read_header(stream: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _check_header(header: Header, where: str) -> None:
    shape, dtype = header
    if dtype.hasobject:
        raise InputDataError(
            f"{where} holds Python objects, which are never unpickled (allow_pickle=False): save a plain numeric array."
        )
    if not shape or 0 in shape:
        raise InputDataError(f"{where} has shape {list(shape)} and so no samples: the first axis must count them.")


def _damaged(path: Path, error: BaseException) -> InputDataError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return InputDataError(f"{path} cannot be read as NumPy arrays ({reason}): save it again with numpy.")

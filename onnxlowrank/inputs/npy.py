"""Reading ``.npy`` and ``.npz`` files piece by piece, never unpickling.

Nothing is memory-mapped: a file that is cut short while it is mapped ends the process without a word.
"""

from __future__ import annotations

import math
import shutil
import zipfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxlowrank.boundary import foreign, reason
from onnxlowrank.errors import DamagedInputsError
from onnxlowrank.inputs.specs import Array
from onnxlowrank.temporary import Scratch

Header = tuple[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True)
class StoredArray:
    """An array in a ``.npy`` file, of which indexing along axis 0 reads what is asked for.

    Attributes:
        path: The file.
        where: What to call it in messages.
        shape: Of the array.
        dtype: Likewise.
        start: Of its data in the file, in bytes.
    """

    path: Path
    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> Array:
        if isinstance(index, slice):
            first, last, _ = index.indices(len(self))
            return self._read(first, max(last - first, 0))
        return np.asarray(self._read(index, 1)[0])

    def _read(self, first: int, rows: int) -> Array:
        row = math.prod(self.shape[1:])
        with _reading(self.where), self.path.open("rb") as stream:
            stream.seek(self.start + first * row * self.dtype.itemsize)
            values = np.frombuffer(bytearray(stream.read(rows * row * self.dtype.itemsize)), self.dtype)
            return values.reshape(rows, *self.shape[1:])


def in_memory(array: Array | StoredArray) -> Array:
    """Return an array, read whole if it lies in a file."""
    return array[:] if isinstance(array, StoredArray) else np.asarray(array)


def open_npy(path: Path, where: str | None = None) -> Array | StoredArray:
    """Return the array of a ``.npy`` file, which stays there; one in Fortran order is read whole.

    Args:
        path: The file.
        where: What to call it in messages, if not by its path.

    Raises:
        DamagedInputsError: The file is damaged, empty, or holds Python objects.
    """
    where = where or str(path)
    with _reading(where), path.open("rb") as stream:
        shape, fortran, dtype = _read_header(stream)
        start = stream.tell()
        there = stream.seek(0, 2) - start
    _check_header((shape, dtype), where)
    promised = math.prod(shape) * dtype.itemsize
    if there < promised:
        raise DamagedInputsError(
            f"{where} cannot be read as NumPy arrays (it has {there} bytes of the {promised} that its header "
            "promises): save it again with numpy."
        )
    if fortran and len(shape) > 1:
        with _reading(where):
            return np.asarray(np.load(path, allow_pickle=False))
    return StoredArray(path, where, shape, dtype, start)


def npz_headers(path: Path) -> dict[str, Header]:
    """Return shape and type of each array in a ``.npz`` file, by name.

    Raises:
        DamagedInputsError: The file is damaged.
    """
    headers = {}
    with _reading(str(path)), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as stream:
                    shape, _, dtype = _read_header(stream)
                    headers[member.removesuffix(".npy")] = shape, dtype
    return headers


def open_npz(
    path: Path, names: Iterable[str], headers: dict[str, Header], scratch: Scratch
) -> dict[str, Array | StoredArray]:
    """Return the arrays ``names`` of a ``.npz`` file, unpacked into ``scratch``.

    Raises:
        DamagedInputsError: An array is damaged, empty, or holds Python objects, or there is no room to unpack it.
    """
    arrays = {}
    for number, name in enumerate(names):
        where = f"{path}, array '{name}'"
        _check_header(headers[name], where)
        target = scratch.folder / f"array_{number}.npy"
        with (
            _reading(str(path)),
            zipfile.ZipFile(path) as archive,
            archive.open(f"{name}.npy") as packed,
            target.open("wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked)
        arrays[name] = open_npy(target, where)
    return arrays


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return the shape, whether it is in Fortran order, and the type of the array that begins here."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if any(size < 0 for size in shape):
        raise ValueError(f"its header says shape {list(shape)}")
    return shape, fortran, dtype


def _check_header(header: Header, where: str) -> None:
    shape, dtype = header
    if dtype.hasobject:
        raise DamagedInputsError(
            f"{where} holds Python objects, which are never unpickled (allow_pickle=False): save a plain numeric array."
        )
    if not shape or 0 in shape:
        raise DamagedInputsError(f"{where} has shape {list(shape)} and so no samples: the first axis must count them.")


def _reading(where: str) -> AbstractContextManager[None]:
    return foreign(
        lambda error: DamagedInputsError(
            f"{where} cannot be read as NumPy arrays ({reason(error)}): save it again with numpy."
        )
    )

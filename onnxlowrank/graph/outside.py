"""Weights outside a model: those of a network beyond protobuf's 2 GiB stay in the file they came in.

Copies of such a model are small, as the tensors in it only say where their values are: in which file (its absolute
path), from which byte on. They are read, and given to onnxruntime, as memory maps of that file, of which there is one.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, set_external_data, uses_external_data

from onnxlowrank.graph.walk import copy_fields

LARGEST_PROTOBUF = 2**31 - 2**20
"""Bytes of weights a single file can hold; protobuf stops at 2 GiB, and the nodes need some room."""
_SMALL = 1024
"""Bytes of a tensor that is never worth to be kept outside: shapes and other constants that decide about a graph."""


def is_large(model: ModelProto) -> bool:
    """Return whether ``model`` exceeds what one protobuf file can hold."""
    return sum(map(_byte_count, model.graph.initializer)) > LARGEST_PROTOBUF


def byte_count(model: ModelProto) -> int:
    """Return how many bytes ``model`` takes in files."""
    return int(model.ByteSize()) + sum(map(_outside_bytes, model.graph.initializer))


def keep_outside(model: ModelProto, folder: Path) -> bool:
    """Let the tensors of a large model, just read from ``folder``, refer to absolute paths; small ones are read.

    Returns:
        Whether the model is large; if it is not, nothing was changed.

    Raises:
        ValueError: The file of a tensor is shorter than that, or the tensor has no such size.
        OSError: There is no such file.
    """
    outside = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    sizes = [math.prod(tensor.dims) * _dtype(tensor).itemsize for tensor in outside]
    if sum(sizes) + model.ByteSize() <= LARGEST_PROTOBUF:
        return False
    for tensor, size in zip(outside, sizes, strict=True):
        info = ExternalDataInfo(tensor)
        path, offset = folder.resolve() / info.location, info.offset or 0
        if info.length not in (None, size) or offset < 0 or path.stat().st_size < offset + size:
            raise ValueError(f"tensor '{tensor.name}' is not whole in {info.location}")
        _refer(tensor, path, offset, size)
        if size <= _SMALL:
            tensor.CopyFrom(numpy_helper.from_array(np.array(values(tensor)), tensor.name))
    return True


def refers_elsewhere(tensor: TensorProto) -> bool:
    """Return whether the values of ``tensor`` are outside, but not as :func:`keep_outside` leaves them."""
    return uses_external_data(tensor) and not Path(ExternalDataInfo(tensor).location).is_absolute()


def values(tensor: TensorProto) -> NDArray[Any]:
    """Return the values of a tensor; those outside as a read-only memory map."""
    if not uses_external_data(tensor):
        return numpy_helper.to_array(tensor)
    info = ExternalDataInfo(tensor)
    mapped = np.frombuffer(_mapped(info.location), _dtype(tensor), math.prod(tensor.dims), info.offset or 0)
    return mapped.reshape(tuple(tensor.dims)) if mapped.flags.aligned else np.array(mapped).reshape(tuple(tensor.dims))


def apart(model: ModelProto) -> tuple[ModelProto, dict[str, NDArray[Any]]]:
    """Return ``model`` with tensors that refer to nothing, and the values of these: what onnxruntime can be given.

    Only what is outside is parted, and of a model that would be too large without that, all that is not small.
    """
    outside = {tensor.name for tensor in model.graph.initializer if uses_external_data(tensor)}
    if model.ByteSize() > LARGEST_PROTOBUF:
        outside |= {tensor.name for tensor in model.graph.initializer if tensor.ByteSize() > _SMALL}
    if not outside:
        return model, {}
    found = {tensor.name: values(tensor) for tensor in model.graph.initializer if tensor.name in outside}
    hollow = []
    for name, array in found.items():
        tensor = TensorProto(name=name, dims=array.shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
        _refer(tensor, Path("given"), 0, array.nbytes)
        hollow.append(tensor)
    return _with(model, {tensor.name: [tensor] for tensor in hollow}), found


def checkable(model: ModelProto) -> ModelProto:
    """Return ``model`` with inputs in place of the tensors outside, which onnx's checker would look for."""
    skeleton, found = apart(model)
    if not found:
        return model
    checked = _with(skeleton, dict.fromkeys(found, ()))
    for name, array in found.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        checked.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    return checked


def write(model: ModelProto, path: Path, data: Path) -> None:
    """Write a large model to the file ``path`` and the values of its tensors, one after the other, to ``data``."""
    skeleton, found = apart(model)
    with data.open("wb") as stream:
        for tensor in skeleton.graph.initializer:
            if tensor.name in found:
                stream.write(bytes(-stream.tell() % mmap.ALLOCATIONGRANULARITY))  # so that they can be mapped
                _refer(tensor, Path(data.name), stream.tell(), found[tensor.name].nbytes)
                np.ascontiguousarray(found[tensor.name]).tofile(stream)
    path.write_bytes(skeleton.SerializeToString(deterministic=True))


def digest(model: ModelProto) -> str:
    """Return what tells the network from any other, wherever its weights are."""
    skeleton, found = apart(model)
    hashed = hashlib.sha256(skeleton.SerializeToString(deterministic=True))
    for array in found.values():
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()


def _with(model: ModelProto, others: Mapping[str, Sequence[TensorProto]]) -> ModelProto:
    """Return a copy of ``model`` with others in place of some initializers, the values of which are never copied."""
    copy = ModelProto()
    copy_fields(model, copy, {"graph"})
    copy_fields(model.graph, copy.graph, {"initializer"})
    for tensor in model.graph.initializer:
        copy.graph.initializer.extend(others.get(tensor.name, [tensor]))
    return copy


def _dtype(tensor: TensorProto) -> np.dtype[Any]:
    return onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)


def _refer(tensor: TensorProto, path: Path, offset: int, size: int) -> None:
    """Let ``tensor`` refer to bytes of a file."""
    tensor.raw_data = b""
    set_external_data(tensor, str(path), offset, size)
    tensor.ClearField("raw_data")


def _byte_count(tensor: TensorProto) -> int:
    return int(tensor.ByteSize()) + _outside_bytes(tensor)


def _outside_bytes(tensor: TensorProto) -> int:
    return int(ExternalDataInfo(tensor).length or 0) if uses_external_data(tensor) else 0


def _mapped(path: str) -> mmap.mmap:
    """Return the memory map of a file."""
    found = Path(path).stat()
    return _map(path, found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=8)
def _map(path: str, *_: int) -> mmap.mmap:
    with open(path, "rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

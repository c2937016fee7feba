"""Reads models from files, refuses what cannot be decomposed, and writes models so that no half-written file stays."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto
from onnx.external_data_helper import load_external_data_for_model

from onnxlowrank.boundary import foreign, reason
from onnxlowrank.errors import (
    DamagedModelError,
    DestinationError,
    DiskFullError,
    ModelFileError,
    UnsupportedModelError,
)
from onnxlowrank.graph.dequantise import dequantised
from onnxlowrank.graph.encoding import check_text
from onnxlowrank.graph.outside import is_large, keep_outside, refers_elsewhere, write
from onnxlowrank.graph.walk import subgraphs, walk
from onnxlowrank.temporary import Scratch, place_for

Source = str | os.PathLike[str] | ModelProto
"""What a model can be given as: the path of a file, or the model itself."""

_PAIR = {"QuantizeLinear", "DequantizeLinear"}
_QUANTISED = _PAIR | {"ConvInteger", "MatMulInteger", "MatMulNBits"}


def load(
    source: Source, any_precision: bool = False, dequantize: bool = False, half: bool = False, qdq: bool = False
) -> ModelProto:
    """Return the model in a file, external data pulled into memory, or a copy of a model.

    What is beyond protobuf's 2 GiB stays in its file, see :mod:`onnxlowrank.graph.outside`.

    Args:
        source: The file, or the model.
        any_precision: Whether it may be quantised or have half-precision weights: to be run, not to be decomposed.
        dequantize: Whether to return the float32 network of a QDQ one.
        half: Whether layers may have float16 weights.
        qdq: Whether it may be quantised by QuantizeLinear and DequantizeLinear pairs: to be trained.

    Raises:
        ModelError: The file is missing, a directory, not ONNX, truncated or without its external data; or the
            model has no nodes or is invalid; or, unless that is allowed, is quantised or has half-precision weights.
    """
    label = describe(source)
    if isinstance(source, ModelProto):
        model = ModelProto()
        model.CopyFrom(source)
        if any(map(refers_elsewhere, model.graph.initializer)):
            raise UnsupportedModelError(
                f"{label} refers to external data that is not loaded; pass the path of its file instead."
            )
    else:
        model = _read(Path(source))
    if not model.graph.node:
        raise UnsupportedModelError(f"{label} has an empty graph, without a single node; export the network again.")
    _check_text(model, label)
    if dequantize:
        _check(model, source, label)
        model = dequantised(model, label)
    if not any_precision:
        _refuse_low_precision(model, label, half, qdq)
    _check(model, source, label)
    return model


def describe(source: Source) -> str:
    """Return what messages call the model: its path, or its graph's name."""
    return f"the model '{source.graph.name}'" if isinstance(source, ModelProto) else os.fspath(source)


def save(model: ModelProto, path: str | os.PathLike[str]) -> None:
    """Write ``model`` to ``path``, atomically: whatever fails, an earlier file there stays as it was.

    Weights beyond protobuf's 2 GiB limit go to ``<name>.data`` beside the file.

    Raises:
        DestinationError: The directory is missing or cannot be written to, the path is not that of a regular file, or
            the disk is full.
    """
    with _replacing(path) as file:
        if is_large(model):
            write(model, file, weights_file(file))
        else:
            file.write_bytes(model.SerializeToString(deterministic=True))


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to the file ``path`` as :func:`save` writes a model.

    Raises:
        DestinationError: As for :func:`save`.
    """
    with _replacing(path) as file:
        file.write_bytes(content)


def weights_file(path: Path) -> Path:
    """Return where :func:`save` puts the weights of a model that is too large for the one file ``path``."""
    return path.with_name(f"{path.name}.data")


def _read(path: Path) -> ModelProto:
    """Return the model in the file ``path`` with all its external data."""
    if os.path.isdir(path):
        raise UnsupportedModelError(f"{path} is a directory; name the .onnx file in it.")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ModelFileError(f"{path} is not a regular file; save the model in one.")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist; check the path.") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    with foreign(
        lambda error: DamagedModelError(f"{path} is not an ONNX model or is truncated; export or download it again.")
    ):
        model = onnx.load_model_from_string(content, format="protobuf")
    if not model.HasField("graph"):
        raise DamagedModelError(f"{path} is not an ONNX model or is truncated; export or download it again.")
    with foreign(
        lambda error: DamagedModelError(
            f"{path} keeps weights in a separate file that is missing or damaged ({_first_line(error)}); "
            "put that file beside the model."
        )
    ):
        if not keep_outside(model, path.parent):
            load_external_data_for_model(model, str(path.parent))
    return model


def _refuse_low_precision(model: ModelProto, label: str, float16: bool, qdq: bool) -> None:
    """Raise ModelError for a quantised or half-precision model; it may be ``float16`` or ``qdq`` where that is said."""
    nodes = list(walk(model.graph.node)) + [node for function in model.functions for node in walk(function.node)]
    quantised = _QUANTISED - (_PAIR if qdq else set())
    instead = "give the float32 network, or --dequantize to make one of it, and quantise it with --precision int8."
    if qdq:
        instead = (
            "give a float32 network, or one that --precision int8 made (QuantizeLinear and DequantizeLinear pairs)."
        )
    for node in nodes:
        if node.op_type in quantised or node.op_type.startswith(("QLinear", "DynamicQuantize")):
            raise UnsupportedModelError(
                f"{label} is already quantised (node '{node.name}' is a {node.op_type}); {instead}"
            )
    kinds = {TensorProto.BFLOAT16} if float16 else {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    graphs = [model.graph, *(graph for node in nodes for graph in subgraphs(node))]
    half = {tensor.name for graph in graphs for tensor in graph.initializer if tensor.data_type in kinds}
    half |= {node.output[0] for node in nodes if _is_constant_of(node, kinds)}
    for node in nodes:
        if node.op_type == "Identity" and half.intersection(node.input):
            half.update(node.output)
        if node.op_type in ("Conv", "Gemm", "MatMul") and half.intersection(node.input):
            kind = "bfloat16" if float16 else "half-precision"
            raise UnsupportedModelError(f"{label} has {kind} weights (node '{node.name}'); convert to float32 first.")


def _is_constant_of(node: NodeProto, kinds: Collection[int]) -> bool:
    """Return whether ``node`` is a Constant of one of these types."""
    return node.op_type == "Constant" and any(attribute.t.data_type in kinds for attribute in node.attribute)


def _check(model: ModelProto, source: Source, label: str) -> None:
    """Raise ModelError unless the ONNX checker accepts ``model``; a model beyond 2 GiB it accepts only as a file."""
    with foreign(
        lambda error: DamagedModelError(f"{label} is not a valid ONNX model ({_first_line(error)}); export it again.")
    ):
        if not is_large(model):
            onnx.checker.check_model(model)
        elif not isinstance(source, ModelProto):
            onnx.checker.check_model(source)


def _check_text(model: ModelProto, label: str) -> None:
    """Raise DamagedModelError unless all names and other texts of ``model`` can be read."""
    with foreign(
        lambda error: DamagedModelError(f"{label} is damaged ({_first_line(error)}); export or download it again.")
    ):
        check_text(model)


def destination(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` with links followed.

    Raises:
        DestinationError: No file can be written there: the directory is missing or not writable, the name is too
            long, or it is that of a directory, a device or a pipe.
    """
    target = Path(os.path.realpath(path))
    if not os.path.isdir(target.parent):
        raise DestinationError(f"The directory {target.parent} of the output does not exist; create it first.")
    if _mode(target, path) is not None and not os.path.isfile(target):
        raise DestinationError(f"The output {path} is not a regular file; name a file to write.")
    _mode(place_for(target) / target.name, path)
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise DestinationError(f"The directory {target.parent} of the output is not writable; choose another one.")
    return target


def _mode(target: Path, path: str | os.PathLike[str]) -> int | None:
    """Return the permissions of the file ``target``, or None where there is none; ``path`` is its name in messages.

    Raises:
        DestinationError: There can be none.
    """
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DestinationError(
            f"The output {path} cannot be written ({error.strerror}); choose another path."
        ) from error


@contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a file to write in a temporary directory beside ``path``; in the end all files there move to their place.

    What is replaced leaves its permissions. On any error nothing moves and the directory is removed; an OSError is
    raised as DestinationError.
    """
    target = destination(path)
    try:
        with Scratch(beside=target) as scratch:
            file = scratch / target.name
            yield file
            written = sorted(scratch.iterdir(), key=file.__eq__)  # the file itself last: it may refer to others
            for part in written:
                _flush_to_disk(part)
                mode = _mode(target.parent / part.name, path)
                if mode is not None:
                    part.chmod(mode)
            for part in written:
                os.replace(part, target.parent / part.name)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFullError(f"The disk is full and {path} was not written; free some space first.") from error
        raise DestinationError(
            f"Cannot write {path} ({error.strerror or error}); choose another output path."
        ) from error


def _flush_to_disk(path: Path) -> None:
    """Make sure that the file ``path`` is on the disk and not only on its way there."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without its full stop."""
    return next(iter(str(error).splitlines()), "").rstrip(". ") or reason(error)

"""Valid small files of every kind that is read, and ways to damage them."""

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from onnxlowrank.errors import OnnxLowRankError
from onnxlowrank.graph.load import load
from onnxlowrank.inputs.preprocess import preprocess_from_options
from onnxlowrank.inputs.sources import open_inputs
from onnxlowrank.inputs.specs import InputSpec, input_specs

_SPECS = (InputSpec("x", (None, 3, 4, 4), np.dtype("float32")),)
_IMAGES = preprocess_from_options("unit", resize=4)
_TELLING = (b"\x00" * 4, b"\xff" * 4, b"\xff" * 9 + b"\x01", b"\x80", b"\xc3\x28", b"(", b"'", b"\x7f\xff\xff\xff")


def _model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "w"),
        helper.make_tensor("b", TensorProto.FLOAT, [4], [0.5, 1, 2, 3]),
    ]
    branch = helper.make_graph(
        [helper.make_node("Relu", ["c"], ["r"])],
        "then",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", doc_string="first", pads=[1, 1, 1, 1]),
        helper.make_node("Constant", [], ["t"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["t"], ["y"], then_branch=branch, else_branch=branch),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", maps, 4, 4]) for name, maps in (("x", 3), ("y", 4))
    )
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="classes", value="a,b")
    return model


def _outside() -> bytes:
    """Return a model whose weight lies in the file ``weights``."""
    model = _model()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "weights", offset=0, length=432)
    model.graph.initializer[0].ClearField("raw_data")
    return model.SerializeToString()


def _npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version, allow_pickle=False)
    return stream.getvalue()


def _npz(name: str, content: bytes, packing: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as archive:
        archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def _picture(kind: str) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


_X = np.random.default_rng(0).standard_normal((4, 3, 4, 4)).astype(np.float32)
_PIXELS = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), np.uint8)

VALID: dict[str, bytes] = {
    "net.onnx": _model().SerializeToString(),
    "outside.onnx": _outside(),
    "x.npy": _npy(_X),
    "fortran.npy": _npy(np.asfortranarray(_X)),
    "new.npy": _npy(_X, (3, 0)),
    "stored.npz": _npz("x", _npy(_X)),
    "deflated.npz": _npz("x", _npy(_X), zipfile.ZIP_DEFLATED),
    "bzip2.npz": _npz("x", _npy(_X), zipfile.ZIP_BZIP2),
    "lzma.npz": _npz("x", _npy(_X), zipfile.ZIP_LZMA),
    "images.npz": _npz("images", _npy(_PIXELS)),
    "input_0.pb": numpy_helper.from_array(_X[:1], "x").SerializeToString(),
    "image.png": _picture("PNG"),
    "image.jpg": _picture("JPEG"),
    "image.bmp": _picture("BMP"),
    "image.tif": _picture("TIFF"),
    "image.webp": _picture("WEBP"),
}
"""By the names they are to have: those say how they are read."""


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """Return ``content`` with a few bytes flipped, overwritten, left out, repeated, put in or cut off."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(data) + 1) if rng.random() < 0.5 else rng.integers(min(len(data), 160) + 1))
        length = int(rng.integers(1, 17))
        telling = _TELLING[rng.integers(len(_TELLING))]
        match rng.integers(6):
            case 0 if place < len(data):
                data[place] ^= 1 << int(rng.integers(8))
            case 1:
                data[place : place + len(telling)] = telling
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = data[place : place + length]
            case 4:
                data[place:place] = rng.bytes(length)
            case _:
                del data[place:]
    return bytes(data)


def rewrapped(rng: np.random.Generator, name: str) -> tuple[str, bytes]:
    """Return a damaged file; every other archive is a sound one of a damaged array."""
    if name.endswith(".npz") and rng.random() < 0.5:
        inner, array = ("images", _PIXELS) if name == "images.npz" else ("x", _X)
        return name, _npz(inner, damaged(rng, _npy(array)))
    return name, damaged(rng, VALID[name])


def read(folder: Path, name: str, content: bytes) -> OnnxLowRankError | None:
    """Read a file as the product does, to its end; return the error of its own that it raises, if any."""
    path = folder / name
    path.write_bytes(content)
    if name == "outside.onnx":
        (folder / "weights").write_bytes(bytes(432))
    try:
        with warnings.catch_warnings(action="ignore"):
            if name.endswith(".onnx"):
                input_specs(load(path))
            else:
                in_folder = name.startswith(("image.", "input_"))
                list(open_inputs(folder if in_folder else path, _SPECS, _IMAGES))
    except OnnxLowRankError as error:
        return error
    finally:
        path.unlink()
    return None

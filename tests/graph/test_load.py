import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.models import conv_model, normal, parse, residual_block
from onnx import TensorProto, helper, numpy_helper

from onnxlowrank.errors import ModelError, OptionError
from onnxlowrank.graph.load import destination, load, save, write_atomically
from onnxlowrank.graph.outside import LARGEST_PROTOBUF, values

MODEL = residual_block()


def contents(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    save(MODEL, path)
    return path


def fails_with(code: int) -> Callable[..., None]:
    def fail(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_saved_model_is_loaded_as_it_was(saved: Path) -> None:
    assert load(saved) == load(str(saved)) == MODEL
    assert contents(saved.parent) == ["model.onnx"]


def test_loading_a_model_copies_it() -> None:
    copy = load(MODEL)
    assert copy == MODEL
    copy.graph.node[0].name = "other"
    assert copy != MODEL


def test_external_data_is_pulled_into_memory(tmp_path: Path) -> None:
    model = load(MODEL)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    loaded = load(tmp_path / "m.onnx")
    assert [node.name for node in loaded.graph.node] == [node.name for node in MODEL.graph.node]
    for tensor, original in zip(loaded.graph.initializer, MODEL.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(original))


def damaged(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "in.onnx"
    if kind == "directory":
        path.mkdir()
    elif kind == "text":
        path.write_text("this is not a network\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(MODEL.SerializeToString()[:-200])
    elif kind == "no data":
        model = load(MODEL)
        onnx.save_model(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
        (tmp_path / "w.bin").unlink()
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("directory", "is a directory"),
        ("text", "not an ONNX model or is truncated"),
        ("empty", "not an ONNX model or is truncated"),
        ("truncated", "not an ONNX model or is truncated"),
        ("no data", "separate file that is missing"),
    ],
)
def test_unreadable_file(tmp_path: Path, kind: str, message: str) -> None:
    path = damaged(tmp_path, kind)
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_model_with_unloaded_external_data(tmp_path: Path) -> None:
    model = load(MODEL)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(ModelError, match="external data that is not loaded"):
        load(onnx.load(tmp_path / "m.onnx", load_external_data=False))


def test_empty_graph() -> None:
    model = load(MODEL)
    del model.graph.node[:]
    with pytest.raises(ModelError, match="empty graph"):
        load(model)


def test_invalid_model() -> None:
    model = load(MODEL)
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        load(model)


@pytest.mark.parametrize(
    "line",
    [
        "q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, s, z)",
        "q, s1, z1 = DynamicQuantizeLinear (x)  y = Relu (x)",
        "q = Cast <to = 2> (x)  i = MatMulInteger (q, w8)  y = Cast <to = 1> (i)",
    ],
)
def test_quantised_model(line: str) -> None:
    model = parse(
        f"g (float[1, 4] x) => (float[1, 4] y) {{ {line} }}",
        s=np.float32(1),
        z=np.uint8(0),
        w8=np.ones((4, 4), np.uint8),
    )
    with pytest.raises(ModelError, match="already quantised"):
        load(model)


@pytest.mark.parametrize("where", ["initializer", "constant", "identity"])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_weights(where: str, kind: int) -> None:
    weight = helper.make_tensor("w", kind, [4, 4], [1.0] * 16)
    nodes = []
    name = "w"
    if where == "constant":
        nodes.append(helper.make_node("Constant", [], ["w"], value=weight))
    if where == "identity":
        nodes.append(helper.make_node("Identity", ["w"], ["v"]))
        name = "v"
    nodes.append(helper.make_node("MatMul", ["x", name], ["y"]))
    infos = [helper.make_tensor_value_info(n, kind, [1, 4]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [] if where == "constant" else [weight])
    with pytest.raises(ModelError, match="convert to float32 first"):
        load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_half_precision_elsewhere_is_fine() -> None:
    model = parse("g (float[1, 4] x) => (float[1, 4] y) { c = Cast <to = 1> (h)  y = Add (x, c) }", h=np.float16([1]))
    assert load(model) == model


def test_save_is_deterministic_and_respects_the_umask(tmp_path: Path) -> None:
    save(MODEL, tmp_path / "a.onnx")
    save(MODEL, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "a.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_any_content_is_written_as_a_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, b"{}")
    monkeypatch.setattr(Path, "write_bytes", fails_with(errno.ENOSPC))
    with pytest.raises(OptionError, match="disk is full"):
        write_atomically(path, b"[]")
    assert path.read_bytes() == b"{}"
    assert contents(tmp_path) == ["report.json"]


def test_save_writes_through_a_link(tmp_path: Path, saved: Path) -> None:
    link = tmp_path / "link.onnx"
    link.symlink_to(saved)
    other = conv_model(normal(np.random.default_rng(0), 2, 2, 1, 1))
    save(other, link)
    assert link.is_symlink()
    assert load(saved) == other


def test_large_model_keeps_its_weights_in_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = conv_model(normal(np.random.default_rng(0), 16, 16, 3, 3))
    assert LARGEST_PROTOBUF < 2**31
    monkeypatch.setattr("onnxlowrank.graph.outside.LARGEST_PROTOBUF", 1000)
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (moved.append(target.name), replace(source, target)))
    save(model, tmp_path / "m.onnx")
    assert moved == ["m.onnx.data", "m.onnx"]  # at no time does a model refer to data that are not there
    assert contents(tmp_path) == ["m.onnx", "m.onnx.data"]
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
    assert (tmp_path / "m.onnx").stat().st_size < 1000
    loaded = load(tmp_path / "m.onnx")
    weight = values(loaded.graph.initializer[0])
    np.testing.assert_array_equal(weight, numpy_helper.to_array(model.graph.initializer[0]))
    assert not model.graph.initializer[0].external_data


@pytest.mark.parametrize(("code", "message"), [(errno.ENOSPC, "disk is full"), (errno.EIO, "Cannot write")])
@pytest.mark.parametrize("limit", [LARGEST_PROTOBUF, 100])
def test_failed_write_leaves_the_earlier_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str, limit: int
) -> None:
    before = saved.read_bytes()

    monkeypatch.setattr(os, "fsync", fails_with(code))
    monkeypatch.setattr("onnxlowrank.graph.outside.LARGEST_PROTOBUF", limit)
    with pytest.raises(OptionError, match=message) as caught:
        save(conv_model(np.ones((2, 2, 1, 1), np.float32)), saved)
    assert str(saved) in str(caught.value)
    assert saved.read_bytes() == before
    assert contents(saved.parent) == ["model.onnx"]


@pytest.mark.parametrize("check", [lambda path: save(MODEL, path), destination])
def test_impossible_destinations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check) -> None:
    with pytest.raises(OptionError, match="does not exist"):
        check(tmp_path / "nowhere" / "out.onnx")
    with pytest.raises(OptionError, match="not a regular file"):
        check(tmp_path)
    with pytest.raises(OptionError, match="not a regular file"):
        check(os.devnull)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OptionError, match="not writable"):
        check(tmp_path / "out.onnx")
    assert contents(tmp_path) == []

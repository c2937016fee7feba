"""Where files are written: what is there already keeps its mode, what cannot be written to is refused at once."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from helpers.models import conv_model, normal

from onnxlowrank.errors import ModelError, OptionError
from onnxlowrank.graph.load import destination, load, save, write_atomically

MODEL = conv_model(normal(np.random.default_rng(0), 16, 16, 3, 3))


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_the_mode_of_what_is_replaced_is_kept(tmp_path: Path, mode: int) -> None:
    for name in ("out.onnx", "report.json"):
        (tmp_path / name).write_bytes(b"earlier")
        (tmp_path / name).chmod(mode)
    save(MODEL, tmp_path / "out.onnx")
    write_atomically(tmp_path / "report.json", b"{}")
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}
    assert load(tmp_path / "out.onnx") == MODEL


def test_so_is_that_of_weights_in_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxlowrank.graph.outside.LARGEST_PROTOBUF", 1000)
    save(MODEL, tmp_path / "m.onnx")
    (tmp_path / "m.onnx").chmod(0o640)
    (tmp_path / "m.onnx.data").chmod(0o600)
    save(MODEL, tmp_path / "m.onnx")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"m.onnx": 0o640, "m.onnx.data": 0o600}


def test_a_mode_is_kept_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"earlier")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", b"{}")
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o600


def test_names_too_long_are_refused_at_once(tmp_path: Path) -> None:
    longest = "x" * os.pathconf(tmp_path, "PC_NAME_MAX")
    destination(tmp_path / longest)
    write_atomically(tmp_path / longest, b"{}")
    with pytest.raises(OptionError, match="too long"):
        destination(tmp_path / f"{longest}x")


def test_a_path_too_long_for_the_folder_it_is_written_in_first_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path
    while len(str(deep)) < 3800:
        deep /= "d" * 200
        try:
            deep.mkdir()
        except OSError:
            pytest.skip("no such deep folders here")
    name = "n" * (os.pathconf(tmp_path, "PC_PATH_MAX") - len(str(deep)) - 10)
    with pytest.raises(OptionError, match="too long"):
        destination(deep / name)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, make) -> None:
    make(tmp_path / "x")
    with pytest.raises(OptionError, match="not a regular file"):
        destination(tmp_path / "x")


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OptionError, match=r"a cannot be written"):
        destination(tmp_path / "a")


def test_a_model_that_is_no_regular_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="not a regular file"):
        load(tmp_path / "m.onnx")


def test_weights_that_are_no_regular_file_do_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxlowrank.graph.outside.LARGEST_PROTOBUF", 1000)
    save(MODEL, tmp_path / "m.onnx")
    (tmp_path / "m.onnx.data").unlink()
    os.mkfifo(tmp_path / "m.onnx.data")
    with pytest.raises(ModelError, match="separate file"):
        load(tmp_path / "m.onnx")

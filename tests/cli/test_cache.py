"""The cache command, run as a user runs it."""

import json
import os
import subprocess
from pathlib import Path

import onnxruntime
from helpers.forked import run_command

from onnxlowrank.measure.cache import Cache, Timing, timing_key
from onnxlowrank.measure.sessions import Target


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command(["cache", *arguments], folder.parent, {**os.environ, "ONNXLOWRANK_CACHE": str(folder)})


def fill(folder: Path) -> Cache:
    filled = Cache(folder)
    for i in range(5):
        filled.put(timing_key({"n": i}, Target(threads=2 if i < 3 else 1)), Timing(1.0, 0.5))
    return filled


def test_shows_what_is_remembered(tmp_path: Path) -> None:
    path = fill(tmp_path).path
    shown = call(tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    file, size, total, one, two = shown.stdout.splitlines()
    assert file.split() == ["file", str(path)]
    assert size.split() == ["size", f"{path.stat().st_size / 1e3:.1f}", "kB"]
    assert total.split() == ["timings", "5"]
    assert one.startswith(f"      2  cpu, 1 thread, onnxruntime {onnxruntime.__version__}, ")
    assert two.startswith(f"      3  cpu, 2 threads, onnxruntime {onnxruntime.__version__}, ")

    given = json.loads(call(tmp_path, "--json").stdout)
    parts = given.pop("by_conditions")
    assert given == {"path": str(path), "size": path.stat().st_size, "timings": 5}
    assert [(part["provider"], part["threads"], part["timings"]) for part in parts] == [("cpu", 1, 2), ("cpu", 2, 3)]
    assert {part["onnxruntime"] for part in parts} == {onnxruntime.__version__}
    processor = json.loads(timing_key({}, Target()))["processor"]
    assert {part["processor"] for part in parts} == {processor}


def test_clear(tmp_path: Path) -> None:
    path = fill(tmp_path).path
    cleared = call(tmp_path, "--clear")
    assert (cleared.returncode, cleared.stdout, cleared.stderr) == (0, "forgotten: 5 timings\n", "")
    assert Cache(tmp_path).entries() == {}
    fill(tmp_path)
    assert json.loads(call(tmp_path, "--clear", "--json").stdout) == {"path": str(path), "removed": 5}
    assert json.loads(call(tmp_path, "--json").stdout)["timings"] == 0


def test_no_cache_yet(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    shown, given, cleared = call(folder), call(folder, "--json"), call(folder, "--clear")
    assert [ended.returncode for ended in (shown, given, cleared)] == [0, 0, 0]
    assert [ended.stderr for ended in (shown, given, cleared)] == ["", "", ""]
    assert shown.stdout.splitlines()[1:] == ["size     0.0 kB", "timings  0"]
    assert json.loads(given.stdout)["by_conditions"] == []
    assert cleared.stdout == "forgotten: 0 timings\n"
    assert list(tmp_path.iterdir()) == []


def test_damaged_file(tmp_path: Path) -> None:
    Cache(tmp_path).path.write_bytes(b"not a database at all, " * 99)
    shown = call(tmp_path)
    assert shown.returncode == 0
    assert "timings  0" in shown.stdout
    assert len(shown.stderr.splitlines()) == 1
    assert "is damaged and starts anew" in shown.stderr


def test_file_that_cannot_be_used(tmp_path: Path) -> None:
    Cache(tmp_path).path.mkdir()
    for arguments, words in ((), "timings  0"), (("--clear",), "forgotten: 0 timings"):
        ended = call(tmp_path, *arguments)
        assert ended.returncode == 0
        assert words in ended.stdout
        assert len(ended.stderr.splitlines()) == 1
        assert "cannot be kept in" in ended.stderr


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = call(tmp_path / "file")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "timings  0" in ended.stdout


def test_help_has_an_example(tmp_path: Path) -> None:
    described = call(tmp_path, "--help")
    assert described.returncode == 0
    assert "  onnxlowrank cache --clear\n" in described.stdout

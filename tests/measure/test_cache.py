import json
import logging
import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from onnxlowrank.measure import cache, hardware
from onnxlowrank.measure.cache import Cache, Timing, timing_key
from onnxlowrank.measure.sessions import Target

ONE, TWO = Timing(1.5, 0.25), Timing(2.5, 0.125)


def test_remembers_across_instances(tmp_path: Path) -> None:
    first = Cache(tmp_path / "new" / "folder")
    assert first.get("a") is None
    first.put("a", ONE)
    first.put("b", ONE)
    first.put("b", TWO)
    second = Cache(tmp_path / "new" / "folder")
    assert (second.get("a"), second.get("b"), second.get("c")) == (ONE, TWO, None)
    assert second.entries() == first.entries() == {"a": ONE, "b": TWO}
    with sqlite3.connect(second.path) as database:
        created = database.execute("SELECT created FROM timings").fetchall()
    database.close()
    assert all(1.7e9 < when < 1e11 for (when,) in created)
    second.clear()
    assert second.get("a") is None
    assert second.entries() == Cache(tmp_path / "new" / "folder").entries() == {}


def test_what_others_wrote_since(tmp_path: Path) -> None:
    mine, other = Cache(tmp_path), Cache(tmp_path)
    assert mine.get("a") is None
    other.put("a", ONE)
    assert mine.get("a") == ONE


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXLOWRANK_CACHE", str(tmp_path))
    assert Cache().path.parent == tmp_path
    assert Cache(tmp_path / "own").path.parent == tmp_path / "own"
    for value in ("", None):
        monkeypatch.delenv("ONNXLOWRANK_CACHE")
        if value is not None:
            monkeypatch.setenv("ONNXLOWRANK_CACHE", value)
        assert Cache().path.parent == platformdirs.user_cache_path("onnxlowrank")
    assert not list(tmp_path.iterdir())


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    program = """
import sys
from onnxlowrank.measure.cache import Cache, Timing
print("ready", flush=True)
input()
for i in range(300):
    Cache().put(f"{sys.argv[1]} {i}", Timing(i + 1.0, 0.5))
    Cache().put(f"both {i}", Timing(i + 1.0, 0.5))
"""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, name],
            env={**os.environ, "ONNXLOWRANK_CACHE": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert (writer.returncode, errors) == (0, "")
    entries = Cache(tmp_path).entries()
    assert entries == {f"{name} {i}": Timing(i + 1.0, 0.5) for name in ("one", "two", "both") for i in range(300)}


def test_damaged_file_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = Cache(tmp_path).path
    path.write_bytes(b"not a database at all, " * 99)
    damaged = Cache(tmp_path)
    assert damaged.get("a") is None
    damaged.put("a", ONE)
    assert Cache(tmp_path).entries() == {"a": ONE}
    assert path.with_suffix(".damaged").read_bytes().startswith(b"not a database")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "starts anew" in caplog.text


def test_partly_damaged_file_is_moved_aside(tmp_path: Path) -> None:
    full = Cache(tmp_path)
    for i in range(200):
        full.put(f"{i} {'x' * 200}", ONE)
    content = bytearray(full.path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    full.path.write_bytes(content)
    after = Cache(tmp_path)
    assert after.entries() == {}
    after.put("a", ONE)
    assert Cache(tmp_path).entries() == {"a": ONE}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["timings-1.damaged", "timings-1.sqlite"]


@pytest.mark.parametrize("column", ["ms", "spread"])
@pytest.mark.parametrize("value", [0, None, -1.5, "fast", b"\xff", math.nan, math.inf, 1e300])
def test_times_that_nobody_measured_are_ignored_and_overwritten(tmp_path: Path, column: str, value: object) -> None:
    if (column, value) == ("spread", 0):
        return  # all measurements alike
    key, good = timing_key({"n": 1}, Target()), timing_key({"n": 2}, Target())
    first = Cache(tmp_path)
    first.put(key, ONE)
    first.put(good, TWO)
    with sqlite3.connect(first.path) as database:
        database.execute(f"UPDATE timings SET {column} = ? WHERE key = ?", (value, key))
    database.close()
    again = Cache(tmp_path)
    assert again.get(key) is None
    assert again.entries() == {good: TWO}
    assert again.summary().timings == 1
    again.put(key, ONE)
    assert Cache(tmp_path).get(key) == ONE


@pytest.mark.parametrize("key", [None, "", "no JSON", "[]", "{}", b"\xff", '{"provider": 1}'])
def test_keys_that_nobody_wrote_are_no_timings(tmp_path: Path, key: object) -> None:
    first = Cache(tmp_path)
    first.put(timing_key({}, Target()), ONE)
    with sqlite3.connect(first.path) as database:
        database.execute("INSERT INTO timings VALUES (?, 1.0, 1.0, 1.0)", (key,))
    database.close()
    assert Cache(tmp_path).summary().timings == 1
    assert Cache(tmp_path).clear() == 2


def assert_in_memory(broken: Cache, caplog: pytest.LogCaptureFixture) -> None:
    """Check that ``broken`` remembers, if only by itself, and says so once."""
    assert broken.get("a") is None
    broken.put("a", ONE)
    broken.put("b", TWO)
    assert (broken.get("a"), broken.get("b")) == (ONE, TWO)
    assert broken.entries() == {"a": ONE, "b": TWO}
    broken.clear()
    assert broken.entries() == {}
    assert broken.get("a") is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(broken.path) in caplog.text


def test_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert_in_memory(Cache(tmp_path / "file"), caplog)


def test_path_that_is_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Cache(tmp_path).path.mkdir()
    assert_in_memory(Cache(tmp_path), caplog)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user")
def test_read_only_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o500)
    assert_in_memory(Cache(tmp_path), caplog)


def test_file_of_another_make(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with sqlite3.connect(Cache(tmp_path).path) as database:
        database.execute("CREATE TABLE timings (something TEXT)")
    database.close()
    assert_in_memory(Cache(tmp_path), caplog)
    assert [file.suffix for file in tmp_path.iterdir()] == [".sqlite"]


def test_file_that_stays_locked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_LOCKED_S", 0.01)
    locker = sqlite3.connect(Cache(tmp_path).path, isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    assert_in_memory(Cache(tmp_path), caplog)
    locker.close()
    assert [file.suffix for file in tmp_path.iterdir()] == [".sqlite"]


def test_keys_name_all_that_times_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = {"shapes": [1, 3], "name": "ä"}
    key = timing_key(subject, Target())
    assert key == timing_key(dict(reversed(subject.items())), Target("cpu", 1))
    assert key.isascii()
    decoded = json.loads(key)
    assert {name: decoded.pop(name) for name in subject} == subject
    assert set(decoded) == {"provider", "provider_options", "threads", "precision", "onnxruntime", "processor"}
    assert decoded["processor"]

    answers = [subprocess.CompletedProcess([], 0, stdout="NVIDIA X\nNVIDIA Y\n")]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answers.pop())
    hardware._gpu.cache_clear()
    on_gpu = timing_key(subject, Target("cuda"))
    assert json.loads(on_gpu)["processor"] == "NVIDIA X"
    assert timing_key(subject, Target("cuda")) == on_gpu  # asked once
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    hardware._gpu.cache_clear()
    assert json.loads(timing_key(subject, Target("cuda")))["processor"] == "GPU"

    monkeypatch.setattr(cache.ort, "__version__", "0.0")
    tuned = json.loads(timing_key(subject, Target("cuda:use_tf32=0:cudnn_conv_algo_search=HEURISTIC")))
    assert (tuned["provider"], tuned["processor"]) == ("cuda", "GPU")
    assert tuned["provider_options"] == {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}

    others = [on_gpu, timing_key(subject, Target(threads=2)), timing_key({}, Target()), timing_key(subject, Target())]
    assert len({key, *others}) == 5


def test_processor_without_a_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(hardware.platform, "processor", lambda: "some CPU")
    hardware._cpu.cache_clear()
    assert json.loads(timing_key({}, Target()))["processor"] == "some CPU"
    hardware._cpu.cache_clear()

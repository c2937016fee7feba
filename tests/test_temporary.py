"""Temporary folders go with their owners, and those of killed owners with the next one; nothing else is touched."""

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from onnxlowrank import temporary
from onnxlowrank.errors import ScratchError
from onnxlowrank.temporary import Scratch, remove_abandoned

OWNER = """
import sys, time, pathlib
from onnxlowrank.temporary import Scratch
kept = [Scratch(), Scratch(pathlib.Path(sys.argv[1]))]
for scratch in kept:
    (scratch.folder / "rows.f32").write_bytes(bytes(1000))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def owner(place: Path) -> subprocess.Popen[str]:
    """Start a process that has two folders in ``place``."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, place / "out.onnx"],
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.name != ".ses")  # onnxruntime's own


def test_goes_with_the_object(place: Path) -> None:
    scratch = Scratch()
    assert scratch.folder.is_dir()
    assert scratch.folder.stat().st_mode & 0o777 == 0o700
    assert len(names(place)) == 2
    del scratch
    gc.collect()
    assert names(place) == []
    with Scratch(place / "out.onnx") as folder:
        assert folder.parent == place
        assert folder.name.startswith(".")
    assert names(place) == []
    removed = Scratch()
    removed.remove()
    removed.remove()
    assert names(place) == []


def test_what_a_killed_process_left_goes_with_the_next_folder(place: Path) -> None:
    process = owner(place)
    assert len(names(place)) == 4
    process.kill()
    process.wait()
    assert len(names(place)) == 4
    kept = Scratch()
    assert names(place) == sorted([kept.folder.name, f"{kept.folder.name}.lock"])
    kept.remove()


def test_what_a_living_process_has_stays(place: Path) -> None:
    process = owner(place)
    before = names(place)
    mine = Scratch()
    for name in before:
        os.utime(place / name, (0, 0))  # however old
    remove_abandoned(place)
    assert names(place) == sorted([*before, mine.folder.name, f"{mine.folder.name}.lock"])
    assert all((place / name / "rows.f32").stat().st_size for name in before if not name.endswith(".lock"))
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_nothing_else_is_touched(place: Path) -> None:
    for name in ("onnxlowrank-results", "onnxlowrank-abcdefgh", "onnxlowrank-1234567.lock", "other-abcdefgh.lock"):
        (place / name).mkdir()
        (place / name / "mine").touch()
    target = place / "precious"
    target.touch()
    (place / "onnxlowrank-linklink.lock").symlink_to(target)
    (place / "onnxlowrank-linklink").symlink_to(place / "onnxlowrank-results")
    (place / "onnxlowrank-onlylock.lock").touch()
    before = names(place)
    remove_abandoned(place)
    assert names(place) == [name for name in before if name != "onnxlowrank-onlylock.lock"]
    assert (place / "onnxlowrank-results" / "mine").exists()


def test_a_link_in_place_of_a_folder_is_not_followed(place: Path) -> None:
    (place / "results").mkdir()
    (place / "results" / "mine").touch()
    (place / "onnxlowrank-linklink").symlink_to(place / "results")
    (place / "onnxlowrank-linklink.lock").touch()
    remove_abandoned(place)
    assert (place / "results" / "mine").exists()


def test_what_another_machine_left_waits_for_a_day(place: Path) -> None:
    folder, lock = place / "onnxlowrank-abcdefgh", place / "onnxlowrank-abcdefgh.lock"
    folder.mkdir()
    lock.write_text("another machine")
    remove_abandoned(place)
    assert folder.exists()
    os.utime(lock, (time.time() - 90_000,) * 2)
    remove_abandoned(place)
    assert names(place) == []


def test_a_fork_leaves_its_parents_folder_alone(place: Path) -> None:
    scratch = Scratch()
    child = os.fork()
    if child == 0:
        scratch.remove()
        os._exit(0)
    os.waitpid(child, 0)
    assert scratch.folder.is_dir()
    scratch.remove()
    assert names(place) == []


def test_folders_made_while_others_are_removed(place: Path) -> None:
    """Makers and removers in several processes at once: no living folder is lost."""
    program = """
from pathlib import Path
from onnxlowrank.temporary import Scratch
for _ in range(200):
    with Scratch() as folder:
        (folder / "x").touch()
        assert list(folder.iterdir()) == [folder / "x"]
"""
    environment = {**os.environ, "TMPDIR": str(place)}
    makers = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(3)]
    assert [maker.wait() for maker in makers] == [0, 0, 0]
    assert names(place) == []


def test_without_locks_nothing_is_removed_but_ones_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(file: object) -> bool:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(temporary, "_lock", unknown)
    scratch = Scratch()
    remove_abandoned(place)
    assert names(place) == [scratch.folder.name]
    scratch.remove()
    assert names(place) == []


def test_no_place_for_temporary_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ScratchError, match="set TMPDIR"):
        Scratch()

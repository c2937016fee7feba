"""The command is stopped at a hundred random moments: what is there is whole, and nothing else stays.

Writing is slowed down, so that many of the moments lie in it.
"""

import collections
import json
import random
import signal
import time
from pathlib import Path

import pytest
from helpers.processes import EARLIER, Ended, finish, folders, images, network, start

MOMENTS = 102
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
RUN = ("optimize", "../in/net.onnx", "out.onnx", "--calibration", "../in/images", "--preprocess", "unit")
FAST = (*RUN, "--target", "macs", "--selection", "energy", "--passes", "channel", "--report", "r.json")
SLOWLY = """
import os, pathlib, time
def slow(work):
    def slowly(*arguments, **options):
        time.sleep(0.15)
        found = work(*arguments, **options)
        time.sleep(0.15)
        return found
    return slowly
os.replace, os.fsync = slow(os.replace), slow(os.fsync)
import onnxlowrank.cli
pathlib.Path("begun").touch()"""


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "begun"}


def stopped(arguments: tuple[str, ...], place: tuple[Path, Path], number: int, after: float) -> Ended:
    process = start(arguments, *place, SLOWLY)
    time.sleep(after)
    process.send_signal(number)
    return finish(process, *place)


def left_beside(ended: Ended) -> list[str]:
    return [name for name in ended.files if name not in ("out.onnx", "r.json", "begun")]


@pytest.mark.slow
def test_random_moments(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "net.onnx").write_bytes(network().SerializeToString())
    images(tmp_path / "in" / "images")
    place = folders(tmp_path, "work")
    folder = place[0]
    begin = time.monotonic()
    whole = finish(start(FAST, *place, SLOWLY), *place)
    duration = time.monotonic() - begin
    assert whole.code in (0, 3), whole.err
    new = (folder / "out.onnx").read_bytes()
    draw = random.Random(0)
    counts: collections.Counter[str] = collections.Counter()
    for moment in range(MOMENTS):
        number = SIGNALS[moment % len(SIGNALS)]
        for path in folder.iterdir():
            path.unlink()
        if draw.random() < 0.5:
            (folder / "out.onnx").write_bytes(EARLIER)
        before = state(folder)
        ended = stopped(FAST, place, number, draw.uniform(0, 1.05 * duration))
        after = state(folder)
        has_begun = (folder / "begun").exists()

        is_written = after.get("out.onnx") == new
        assert is_written or after.get("out.onnx") == before.get("out.onnx")
        assert "r.json" not in after or json.loads(after["r.json"])["schema"]
        assert "r.json" not in after or is_written  # in this order
        if number == signal.SIGKILL:
            assert ended.code in (-number, whole.code)
            again = finish(start(FAST, *place), *place)
            assert (again.code, left_beside(again), again.temporary) == (whole.code, [], [])
        elif has_begun:
            assert left_beside(ended) == []
            assert ended.temporary == []
            assert "Traceback" not in ended.err
            if ended.code == 128 + number:
                assert ("already written: out.onnx" in ended.err) == is_written
                assert ("nothing was written" in ended.err) == (not is_written)
                assert ("already written: out.onnx, r.json" in ended.err) == ("r.json" in after)
            else:  # it came too late, or before the command listened
                assert ended.code == (whole.code if is_written else -number)
        else:
            assert not is_written
            assert ended.temporary == []
        when = "while writing" if is_written and "r.json" not in after else "at the end" if is_written else "working"
        counts[f"{number.name:8} {when if has_begun else 'starting'}"] += 1
    print(
        f"\n{MOMENTS} moments within {duration:.1f} s:",
        *(f"{n:4} {what}" for what, n in sorted(counts.items())),
        sep="\n",
    )

"""How commands end: nothing that is read is lost, printing stops nothing, last words follow what was written."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.processes import (
    EARLIER,
    Command,
    Ended,
    environment,
    finish,
    folders,
    images,
    network,
    start,
    without_stages,
)

RUN = ("optimize", "../in/net.onnx", "out.onnx", "--calibration", "../in/images", "--preprocess", "unit")
FAST = (*RUN, "--target", "macs", "--speedup", "1.5", "--selection", "energy", "--passes", "channel")
WRITTEN = ("--report", "r.json", "--html", "r.html")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("ending")
    (parent / "in").mkdir()
    (parent / "in" / "net.onnx").write_bytes(network().SerializeToString())
    images(parent / "in" / "images")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    np.savez(parent / "in" / "cal.npz", images=pixels, labels=np.arange(16) % 10)
    return parent


CAL = "../in/cal.npz"
INPUTS_AS_DESTINATIONS = [
    ("optimize", "../in/net.onnx", "out.onnx", "--calibration", CAL, "--report", CAL),
    ("optimize", "../in/net.onnx", CAL, "--calibration", CAL),
    ("optimize", "../in/net.onnx", "out.onnx", "--evaluate", CAL, "--html", "../in/../in/cal.npz"),
    ("optimize", "../in/net.onnx", "out.onnx", "--calibration", "../in/images", "--html", "../in/images/a/0.png"),
    ("compare", "../in/net.onnx", "../in/net.onnx", "--inputs", CAL, "--html", CAL),
    ("compare", "../in/net.onnx", "../in/net.onnx", "--html", "../in/net.onnx"),
    ("profile", "../in/net.onnx", "--inputs", CAL, "--html", CAL),
    ("analyze", "../in/net.onnx", "--calibration", CAL, "--html", CAL),
    ("sweep", "../in/net.onnx", "--calibration", CAL, "--html", CAL),
    ("finetune", "../in/net.onnx", "../in/net.onnx", CAL, "--data", CAL),
    ("sweep", "../in/net.onnx", "--evaluate", "2x.json", "--folder", ".", "--speedup", "2"),
    ("sweep", "../in/net.onnx", "--folder", ".", "--speedup", "2", "--html", "2x.onnx"),
]


@pytest.mark.parametrize("arguments", INPUTS_AS_DESTINATIONS)
def test_no_destination_is_an_input(command: Command, place: Path, arguments: tuple[str, ...]) -> None:
    before = {path: path.read_bytes() for path in (place / "in").rglob("*") if path.is_file()}
    ended = command(*arguments, before="import pathlib; pathlib.Path('2x.json').write_text('[]')")
    assert ended.code == 2
    assert re.fullmatch(r"error\[E500\]: [^\n]+ is (what|the) [^\n]+; choose another path\.\n", ended.err)
    assert {path: path.read_bytes() for path in before} == before
    assert ended.files == ["2x.json", "out.onnx"]
    assert (ended.folder / "out.onnx").read_bytes() == EARLIER


def test_names_too_long_are_refused_at_once(command: Command) -> None:
    for option in ("--report", "--html"):
        ended = command(*FAST, option, "x" * 300)
        assert (ended.code, ended.files) == (2, ["out.onnx"])
        assert "too long" in ended.err


@pytest.mark.parametrize("name", ["images/a/x.png", "x.npz", "x.npy", "x.onnx", "sets/test_data_set_0/input_0.pb"])
def test_pipes_do_not_block(command: Command, place: Path, name: str) -> None:
    pipe = place / "in" / name
    pipe.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(pipe)
    source = f"../in/{name.split('/')[0]}"
    if name.endswith(".onnx"):
        ended = command("optimize", source, "out.onnx")
    else:
        ended = command(*FAST, "--calibration", source)
    pipe.unlink()
    assert ended.code == (0 if name.endswith(".png") else 2), ended.err
    assert ("not a regular file" in ended.err) == (ended.code == 2)
    assert "Traceback" not in ended.err


class TestPrinting:
    """Nothing that happens to standard output or error stops the work."""

    def shown(self, arguments: str, place: Path, name: str, **variables: str) -> tuple[int, str, Path]:
        """Return exit code, standard error and folder of a shell command, in which ``$RUN`` is the command."""
        folder, temporary = folders(place, name)
        run = f'"{sys.executable}" -m onnxlowrank {" ".join(FAST)} {" ".join(WRITTEN)}'
        ended = subprocess.run(
            ["bash", "-o", "pipefail", "-c", arguments.replace("RUN", run)],
            cwd=folder,
            env={**environment(temporary), **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return ended.returncode, without_stages(ended.stderr), folder

    @pytest.mark.parametrize(
        ("how", "says"),
        [
            ("RUN | true", ""),
            ("RUN >&-", ""),
            ("RUN > /dev/full", "onnxlowrank: not all could be printed (No space left on device).\n"),
            ("RUN > /dev/full 2> /dev/full", ""),
            ("RUN 2>&-", ""),
            ("RUN -v > /dev/null 2> /dev/full", ""),
            ("RUN --exclude 'nothing' > /dev/full", None),
        ],
    )
    def test_streams(self, place: Path, how: str, says: str | None) -> None:
        code, errors, folder = self.shown(how, place, re.sub(r"\W", "_", how))
        assert code == (0 if says is not None else 2)
        assert says is None or errors == says
        if code == 0:
            onnx.load(folder / "out.onnx")
        assert sorted(path.name for path in folder.iterdir()) == (
            ["out.onnx", "r.html", "r.json"] if code == 0 else ["out.onnx"]
        )

    @pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
    def test_ascii(self, place: Path, variables: dict[str, str]) -> None:
        variables = {**variables, "PYTHONCOERCECLOCALE": "0"}
        name = f"ascii {len(variables)}"
        code, errors, folder = self.shown("RUN --report grün.json > printed", place, name, **variables)
        assert (code, errors) == (0, "")
        assert (folder / "printed").read_bytes().isascii()
        assert (folder / "grün.json").exists()

    def test_a_slow_reader(self, place: Path) -> None:
        """A stream that does not wait for its reader."""
        folder, temporary = folders(place, "slow")
        program = "import os, sys; os.set_blocking(1, False); from onnxlowrank.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", program, *(f"--{'x' * 50000}",) * 3],
            cwd=folder,
            env=environment(temporary),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        time.sleep(2)
        process.communicate(timeout=60)
        assert process.returncode == 2

    def test_what_is_only_printed_is_lost(self, place: Path) -> None:
        """Where nothing is written, a full disk behind standard output is a failure."""
        for arguments in ("--version", "schema compare", "cache"):
            command = f'"{sys.executable}" -m onnxlowrank {arguments} > /dev/full'
            ended = subprocess.run(command, shell=True, capture_output=True, text=True)
            assert (ended.returncode, ended.stderr) == (
                4,
                "onnxlowrank: not all could be printed (No space left on device).\n",
            )
            ended = subprocess.run(f"{command[:-12]} | true", shell=True, capture_output=True, text=True)
            assert (ended.returncode, ended.stderr) == (0, "")


FULL_AT = """
import errno, os
real, count = os.fsync, iter(range(100))
def fsync(file):
    if next(count) == {}:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real(file)
os.fsync = fsync"""


@pytest.mark.parametrize(
    ("at", "code", "files", "says"),
    [
        (0, 2, ["out.onnx"], ""),
        (1, 4, ["out.onnx", "r.html"], "already written: out.onnx, r.html; not written: r.json"),
        (2, 4, ["out.onnx", "r.json"], "already written: out.onnx, r.json; not written: r.html"),
    ],
)
def test_full_disk(command: Command, at: int, code: int, files: list[str], says: str) -> None:
    ended = command(*FAST, *WRITTEN, before=FULL_AT.format(at))
    lost = ["out.onnx", "r.json", "r.html"][at]
    assert ended.code == code
    first, *rest = ended.err.splitlines()
    assert first == f"error[E501]: The disk is full and {lost} was not written; free some space first."
    assert rest == ([f"onnxlowrank: {says}."] if says else [])
    assert ended.files == files
    assert ended.temporary == []
    assert ((ended.folder / "out.onnx").read_bytes() == EARLIER) == (at == 0)
    assert ("written: out.onnx" in ended.out) == (at > 0)


STOPPED_AT = """
import os, signal, time
real, count = os.replace, iter(range(100))
def replace(source, target):
    real(source, target)
    if next(count) == {}:
        os.kill(os.getpid(), signal.{})
        time.sleep(60)
os.replace = replace"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize(("at", "written"), [(0, ["out.onnx"]), (2, ["out.onnx", "r.json", "r.html"])])
def test_a_signal_when_something_is_written(command: Command, name: str, at: int, written: list[str]) -> None:
    ended = command(*FAST, *WRITTEN, before=STOPPED_AT.format(at, name))
    assert ended.code == 128 + getattr(signal, name)
    by = "" if name == "SIGINT" else f" by {name}"
    rest = "" if at else "; not written: r.json, r.html"
    assert ended.err == f"onnxlowrank: interrupted{by}; already written: {', '.join(written)}{rest}.\n"
    assert ended.files == sorted(written)
    assert ended.temporary == []
    onnx.load(ended.folder / "out.onnx")


def interrupted(place: Path, name: str, number: int, before: str = "") -> Ended:
    """Return how a run ends that gets a signal while it works."""
    folder, temporary = folders(place, name)
    process = start(("optimize", "../in/net.onnx", "out.onnx"), folder, temporary, before)
    patience = time.monotonic() + 60
    while not any(temporary.glob("*/*.f32")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < patience
        time.sleep(0.02)
    process.send_signal(number)
    return finish(process, folder, temporary)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_it_works(place: Path, name: str) -> None:
    ended = interrupted(place, f"working {name}", getattr(signal, name))
    assert ended.code == 128 + getattr(signal, name)
    by = "" if name == "SIGINT" else f" by {name}"
    assert ended.err == f"onnxlowrank: interrupted{by}, nothing was written.\n"
    assert (ended.files, ended.temporary) == (["out.onnx"], [])
    assert (ended.folder / "out.onnx").read_bytes() == EARLIER


def test_signals_that_were_ignored_still_are(command: Command) -> None:
    """As nohup has it."""
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + STOPPED_AT.format(0, "SIGHUP").replace(
        "sleep(60)", "sleep(1)"
    )
    assert (command(*FAST, before=before).code) == 0


def test_what_a_killed_run_left_goes_with_the_next(place: Path) -> None:
    killed = interrupted(place, "killed", signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    assert killed.temporary != []
    temporary = killed.folder.with_name("killed temporary")
    again = finish(start(FAST, killed.folder, temporary), killed.folder, temporary)
    assert (again.code, again.temporary, again.files) == (0, [], ["out.onnx"])

"""The command as a process, in a folder of its own; and small networks and images for it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto
from PIL import Image

from helpers.forked import run_command
from helpers.models import normal, parse

EARLIER = b"what an earlier run wrote"


@dataclass
class Ended:
    """A process that has ended, and what lies in its two folders."""

    code: int
    out: str
    err: str
    folder: Path
    temporary: list[str]

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


Command = Callable[..., Ended]
"""Runs the command with the arguments it is given."""


def environment(temporary: Path) -> dict[str, str]:
    hidden = ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CUDA_VISIBLE_DEVICES")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "TMPDIR": str(temporary), "CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "random"}


def folders(parent: Path, name: str) -> tuple[Path, Path]:
    """Return a folder to work in, with an earlier output, and one for temporary files."""
    folder, temporary = parent / name, parent / f"{name} temporary"
    folder.mkdir()
    temporary.mkdir()
    (folder / "out.onnx").write_bytes(EARLIER)
    return folder, temporary


def run_to_end(arguments: tuple[str, ...], folder: Path, temporary: Path, before: str = "") -> Ended:
    """Run the command in ``folder``; ``before`` is Python to run in the process ahead of it."""
    if before:
        return finish(start(arguments, folder, temporary, before), folder, temporary)
    process = run_command(arguments, folder, environment(temporary))
    return _ended(process.returncode, process.stdout, process.stderr, folder, temporary)


def start(arguments: tuple[str, ...], folder: Path, temporary: Path, before: str = "") -> subprocess.Popen[str]:
    """Start the command in ``folder``; ``before`` is Python to run in the process ahead of it."""
    module = ["-m", "onnxlowrank"] if not before else ["-c", f"{before}\nfrom onnxlowrank.cli import main\nmain()"]
    return subprocess.Popen(
        [sys.executable, *module, *arguments],
        cwd=folder,
        env=environment(temporary),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear,
    )


def _hear() -> None:
    """Heed signals that the tests were told to ignore, as what runs in the background is, or under nohup."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def finish(process: subprocess.Popen[str], folder: Path, temporary: Path) -> Ended:
    out, err = process.communicate(timeout=300)
    return _ended(process.returncode, out, err, folder, temporary)


def _ended(code: int, out: str, err: str, folder: Path, temporary: Path) -> Ended:
    left = sorted(name for name in os.listdir(temporary) if name != ".ses")  # onnxruntime's own
    return Ended(code, out, without_stages(err), folder, left)


def without_stages(errors: str) -> str:
    """Return what is on standard error but for the lines that tell how far the work is."""
    return re.sub(r"^ *\d+ s  \w+\n", "", errors, flags=re.MULTILINE)


def network(channels: int = 3, size: int | str = 8) -> ModelProto:
    """Return Conv-ReLU-Conv-ReLU-Conv-ReLU-pool-Gemm with weights of low rank and a little noise."""
    rng = np.random.default_rng(0)

    def kernel(outputs: int, inputs: int, side: int) -> np.ndarray:
        low = normal(rng, outputs, 6) @ normal(rng, 6, inputs * side**2)
        noisy = low / np.sqrt(6) + 0.1 * normal(rng, outputs, inputs * side**2)
        return (noisy / np.sqrt(inputs * side**2)).reshape(outputs, inputs, side, side)

    weights = {
        "w1": kernel(48, channels, 3),
        "b1": normal(rng, 48),
        "w2": kernel(48, 48, 3),
        "b2": normal(rng, 48),
        "w3": kernel(48, 48, 3),
        "b3": normal(rng, 48),
        "wf": normal(rng, 10, 48),
    }
    return parse(
        f"""g (float[N, {channels}, {size}, {size}] x) => (float[N, 10] y) {{
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            b = Relu (a)
            c = Conv <pads = [1, 1, 1, 1]> (b, w2, b2)
            d = Relu (c)
            e = Conv <pads = [1, 1, 1, 1]> (d, w3, b3)
            f = Relu (e)
            p = GlobalAveragePool (f)
            q = Flatten (p)
            y = Gemm <transB = 1> (q, wf)
        }}""",
        **{name: values.astype(np.float32) for name, values in weights.items()},
    )


def images(folder: Path, count: int = 16) -> Path:
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder

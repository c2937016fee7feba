"""Load time and memory of a network, in a process of its own: in this one others have left their traces.

Run as a program, this file loads a network, runs it and prints what that took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

from onnxlowrank.errors import ModelError
from onnxlowrank.graph.load import save
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.sessions import Target, open_session
from onnxlowrank.temporary import Scratch

_RUNS = 3


@dataclass(frozen=True)
class Footprint:
    """What it takes to have a network ready.

    Attributes:
        load_ms: Milliseconds to make a session of the file, in which onnxruntime optimises the graph.
        memory: Most bytes the process grew by while it loaded and ran the network; None where the system does not say.
    """

    load_ms: float
    memory: int | None


def footprint(model: onnx.ModelProto, feeds: Feeds, target: Target) -> Footprint:
    """Load and run a network in a new process.

    Raises:
        ModelError: If that process fails, e.g. for want of memory.
    """
    with Scratch() as folder:
        path, inputs = folder / "model.onnx", folder / "inputs.npz"
        save(model, path)
        np.savez(inputs, *feeds.values())
        names = json.dumps(list(feeds))
        command = [sys.executable, "-m", __name__, str(path), str(inputs), names, target.provider, str(target.threads)]
        ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise ModelError(f"the network cannot be run in a process of its own ({reason}): is there enough memory?")
    return Footprint(**json.loads(ended.stdout))


def _main(path: str, inputs: str, names: str, provider: str, threads: str) -> None:
    with np.load(inputs, allow_pickle=False) as arrays:
        feeds = {name: arrays[f"arr_{index}"] for index, name in enumerate(json.loads(names))}
    before = _peak()
    os.chdir(Path(path).parent)  # whose name need not be text, which onnxruntime takes
    start = time.perf_counter()
    session = open_session(Path(path).name, Target(provider, int(threads)))
    load_ms = 1e3 * (time.perf_counter() - start)
    for _ in range(_RUNS):
        session.run(None, feeds)
    after = _peak()
    memory = None if before is None or after is None else after - before
    print(json.dumps(asdict(Footprint(load_ms, memory))))


def _peak() -> int | None:
    """Return the most bytes this process has had in memory, itself alone: what started it does not count."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), None)


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""What the machine computes with, by name."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path


def processor(provider: str) -> str:
    """Return the model of what computes for ``provider``."""
    return _gpu() if provider == "cuda" else _cpu()


@cache
def _cpu() -> str:
    """Return what tells models of CPUs apart: the name, and its numbers since virtual machines shorten the name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    listed = dict(line.split("\t", 1) for line in reversed(text.splitlines()) if "\t" in line)
    known = [listed[name].strip("\t :") for name in ("model name", "cpu family", "model") if name in listed]
    return " / ".join(known) or platform.processor() or platform.machine()


@cache
def _gpu() -> str:
    """Return the name of the first GPU, as its driver's tool gives it."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        answer = ""
    return answer.partition("\n")[0].strip() or "GPU"

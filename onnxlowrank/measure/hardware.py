"""What the machine computes with, by name."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path


def processor(provider: str) -> str:
    """Return the model of what computes for ``provider``."""
    return _gpu() if provider == "cuda" else _cpu()


def adds_int8_exactly() -> bool:
    """Return whether onnxruntime's int8 code on this CPU adds products of 8 bits in 32 bits, as far as is known.

    x86 without VNNI adds pairs of them in 16 bits first, which may not hold them.
    """
    if platform.machine().lower() in ("aarch64", "arm64"):
        return True
    flags = next((line for line in _cpuinfo().splitlines() if line.startswith("flags")), "").split()
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags)


def _cpuinfo() -> str:
    """Return what Linux says of the CPU."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


@cache
def _cpu() -> str:
    """Return what tells models of CPUs apart: the name, and its numbers since virtual machines shorten the name."""
    listed = dict(line.split("\t", 1) for line in reversed(_cpuinfo().splitlines()) if "\t" in line)
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

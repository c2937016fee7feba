"""Where figures were measured, for people."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform

import onnxruntime as ort

from onnxlowrank.measure.hardware import processor
from onnxlowrank.parallel import available_cores


def environment(providers: tuple[str, ...], threads: tuple[int, ...]) -> list[tuple[str, str]]:
    """Return what the reader of a measurement should know about the machine and its software."""
    return [
        ("processor", f"{processor('cpu')}, {available_cores()} cores"),
        *([("GPU", processor("cuda"))] if any(one.startswith("cuda") for one in providers) else []),
        ("providers", ", ".join(providers)),
        ("threads", ", ".join(map(str, threads))),
        ("onnxruntime", ort.__version__),
        ("onnxlowrank", importlib.metadata.version("onnxlowrank")),
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("date", datetime.datetime.now().astimezone().isoformat(timespec="minutes")),
    ]

"""The command line: options become one call of the Python API, its result a report and an exit code.

One file a command; what commands share is in :mod:`.app`, :mod:`.groups`, :mod:`.options` and :mod:`.parsing`, what
they write in :mod:`.writing`, how they end in :mod:`.ending`. No logic is here: what the command line can do, Python
can.
"""

from __future__ import annotations

import sys

from onnxlowrank.cli import analyze, cache, compare, optimize, profile, schema, sweep
from onnxlowrank.cli.app import app
from onnxlowrank.cli.ending import BAD_INPUT, Ending
from onnxlowrank.errors import OnnxLowRankError
from onnxlowrank.text import printable

__all__ = ["analyze", "app", "cache", "compare", "main", "optimize", "profile", "schema", "sweep"]


def main() -> None:
    """Run the command line; bad input ends in a code, one sentence on standard error, and exit code 2."""
    with Ending() as ending:
        _run(ending)


def _run(ending: Ending) -> None:
    try:
        app(obj=ending)
    except OnnxLowRankError as error:
        sentence = printable(" ".join(str(error).split()))
        print(f"error[{error.code}]: {sentence}{'' if sentence.endswith('.') else '.'}", file=sys.stderr)
        sys.exit(BAD_INPUT)

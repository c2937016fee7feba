"""The command line: options become one call of the Python API, its result a report and an exit code.

One file a command; what commands share is in :mod:`.app`, :mod:`.options` and :mod:`.parsing`. No logic is here: what
the command line can do, Python can.
"""

from __future__ import annotations

import os
import sys

from onnxlowrank.cli import analyze, cache, compare, optimize, profile, schema, sweep
from onnxlowrank.cli.app import BAD_INPUT, INTERRUPTED, app
from onnxlowrank.errors import OnnxLowRankError
from onnxlowrank.text import printable

__all__ = ["analyze", "app", "cache", "compare", "main", "optimize", "profile", "schema", "sweep"]


def main() -> None:
    """Run the command line; bad input ends in a code, one sentence on standard error, and exit code 2."""
    _own_stdout()
    try:
        app()
    except OnnxLowRankError as error:
        sentence = printable(" ".join(str(error).split()))
        print(f"error[{error.code}]: {sentence}{'' if sentence.endswith('.') else '.'}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # so typer ends on Ctrl-C, without a word
            print("onnxlowrank: interrupted, nothing was written.", file=sys.stderr)
        raise


def _own_stdout() -> None:
    """Leave standard output to Python, for machines to read: what libraries print past it goes to standard error.

    HiGHS prints a line now and then though it is told to be silent (jump-dev/HiGHS.jl, issue 312). Characters that its
    encoding lacks are printed as escapes.
    """
    out = sys.stdout
    if out is not None:  # it may be closed
        own = os.dup(1)
        os.dup2(2, 1)
        sys.stdout = os.fdopen(own, "w", 1 if out.isatty() else -1, encoding=out.encoding, errors="backslashreplace")

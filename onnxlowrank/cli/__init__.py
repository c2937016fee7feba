"""The command line: options become one call of the Python API, its result a report and an exit code.

One file a command; what commands share is in :mod:`.app`, :mod:`.groups`, :mod:`.options` and :mod:`.parsing`, what
they write in :mod:`.writing`, how they end in :mod:`.ending`. No logic is here: what the command line can do, Python
can.
"""

from __future__ import annotations

import sys
from typing import Any

import typer

from onnxlowrank.cli import analyze, cache, compare, finetune, optimize, profile, schema, sweep
from onnxlowrank.cli.app import app
from onnxlowrank.cli.ending import BAD_INPUT, Ending
from onnxlowrank.errors import OnnxLowRankError, UsageError
from onnxlowrank.text import printable

__all__ = ["analyze", "app", "cache", "compare", "finetune", "main", "optimize", "profile", "schema", "sweep"]


_Misuse: Any = typer.BadParameter.__base__
"""What typer raises for wrong usage, which it takes from click or, in newer versions, from its own copy of that."""


def main() -> None:
    """Run the command line; bad input ends in a code, one sentence on standard error, and exit code 2."""
    with Ending() as ending:
        _run(ending)


def _run(ending: Ending) -> None:
    try:
        sys.exit(call(ending))
    except OnnxLowRankError as error:
        sentence = printable(" ".join(str(error).split()))
        print(f"error[{error.code}]: {sentence}{'' if sentence.endswith('.') else '.'}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def call(ending: Ending) -> int | None:
    """Call the command that the arguments name, and return its exit code.

    Raises:
        UsageError: If they name none, or are none of its.
    """
    try:
        code: int | None = app(obj=ending, standalone_mode=False)
    except _Misuse as error:
        context, said = error.ctx, error.format_message()
        if context is None:  # an option without its value
            print("Try 'onnxlowrank -h' for help.\n", file=sys.stderr)
        elif said == context.get_help():  # there were no arguments
            error.show()
            return BAD_INPUT
        else:
            hint = f"Try '{context.command_path} {context.help_option_names[0]}' for help."
            print(f"{context.get_usage()}\n{hint}\n", file=sys.stderr)
        raise UsageError(said) from error
    return code

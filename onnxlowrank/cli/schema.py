"""``onnxlowrank schema``."""

from __future__ import annotations

from importlib import resources
from typing import Annotated

import typer

from onnxlowrank.cli.app import app
from onnxlowrank.errors import OptionError

EXAMPLE = """
Example:

\b
  onnxlowrank schema compare
"""


@app.command(epilog=EXAMPLE)
def schema(
    kind: Annotated[
        str, typer.Argument(help="optimize, compare, profile, analyze, sweep or finetune.", metavar="COMMAND")
    ] = "optimize",
) -> None:
    """Print the JSON Schema of a command's JSON; its version is the field 'schema' of both."""
    folder = resources.files("onnxlowrank.report").joinpath("schema")
    known = {path.name.removesuffix(".json"): path for path in folder.iterdir()}
    if kind not in known:
        raise OptionError(f"schema {kind} is unknown; choose from {', '.join(sorted(known))}")
    print(known[kind].read_text(encoding="utf-8"), end="")

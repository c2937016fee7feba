"""What the commands share: the application, exit codes and the console."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    help="Makes trained ONNX networks faster in onnxruntime by low-rank decomposition, without training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"onnxlowrank {importlib.metadata.version('onnxlowrank')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def console() -> Console:
    """Return a console as wide as the terminal, or wide enough for the tables where there is none."""
    return Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=140)

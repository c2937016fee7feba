"""What the commands share: the application, exit codes, progress bars and the console."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from onnxlowrank.progress import Advance

_LOG = logging.getLogger(__name__)

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


class _Bars:
    """Progress bars on standard error, and a line of the log for every stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def stage(self, title: str, total: float) -> Advance:
        _LOG.info("%s", title)
        task = self._progress.add_task(title, total=total)
        return lambda amount: self._progress.advance(task, amount)


@contextmanager
def bars(verbose: bool) -> Iterator[_Bars]:
    """Yield bars that are gone when the work is done; there are none beside a log or where there is no terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description:10}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    hidden = verbose or not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as progress:
        yield _Bars(progress)


def console() -> Console:
    """Return a console as wide as the terminal, or wide enough for the tables where there is none."""
    return Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=140)

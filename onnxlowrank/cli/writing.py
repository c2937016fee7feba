"""The files that commands write: announced before the work, written before anything is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import typer

from onnxlowrank.cli.ending import Ending
from onnxlowrank.destinations import check_destinations
from onnxlowrank.errors import OptionError
from onnxlowrank.graph.load import write_atomically
from onnxlowrank.report.content import Report
from onnxlowrank.report.html import html as to_html


def begin_writing(
    context: typer.Context,
    destinations: Mapping[str, Path | None],
    models: Sequence[Path],
    data: Mapping[str, str | None],
) -> None:
    """Refuse destinations that cannot be written to, or not without loss; what is written in the end follows from them.

    Args:
        context: Of the command.
        destinations: By option, what the command is to write.
        models: The networks that are read.
        data: By option, from where else the command reads.
    """
    check_destinations(destinations, models, data)
    expect(context, destinations.values())


def expect(context: typer.Context, files: Iterable[Path | None]) -> None:
    """Say which files the command is to write."""
    ending = context.find_object(Ending)
    if ending is not None:
        ending.expect(files)


def write_and_show(files: Sequence[tuple[Path | None, Callable[[], bytes]]], show: Callable[[], None]) -> None:
    """Write files, those that have a name, and then show what is in them, even if they could not be written.

    Raises:
        OptionError: One could not.
    """
    failures = []
    for path, content in files:
        try:
            if path is not None:
                write_atomically(path, content())
        except OptionError as error:
            failures.append(error)
    show()
    if failures:
        raise failures[0]


def as_html(report: Report) -> bytes:
    """Return a report as an HTML file; of names that are no text, what is none stands there as escapes."""
    return to_html(report).encode(errors="backslashreplace")

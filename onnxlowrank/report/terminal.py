"""Reports in the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.table import Table as RichTable
from rich.text import Text

from onnxlowrank.report.content import Report, Table


def print_report(report: Report, console: Console) -> None:
    """Print the tables, the notes and the headline."""
    report = report.printable()
    for table in report.tables:
        console.print(_rich(table))
        console.print()
    for note in report.notes:
        console.print(Text(f"note: {note}"))
    console.print(Text(report.headline, style="bold"))


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=Text(table.title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, column in enumerate(table.columns):
        is_words = index in table.words
        justify: JustifyMethod = "left" if is_words else "right"
        shown.add_column(Text(column, "bold"), justify=justify, overflow="fold", no_wrap=not is_words)
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown

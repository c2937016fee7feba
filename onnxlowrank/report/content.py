"""What a report consists of, however it is shown: in the terminal, as Markdown, as HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from onnxlowrank.text import printable


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: What it shows.
        columns: Their heads, with units.
        rows: One text a column.
        words: Which columns hold words; the others hold numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Figure:
    """A picture, for HTML only.

    Attributes:
        title: What it shows.
        svg: The picture, whose black is the colour of the page's text.
    """

    title: str
    svg: str


@dataclass(frozen=True)
class Report:
    """A report.

    Attributes:
        title: What was done.
        headline: What came of it, in one sentence.
        tables: What the terminal and Markdown show, and HTML too.
        figures: Draws the pictures for HTML.
        notes: What the reader should know.
        environment: Where it was measured.
        command: How to repeat it.
    """

    title: str
    headline: str
    tables: Sequence[Table]
    figures: Callable[[], Sequence[Figure]] = tuple
    notes: Sequence[str] = ()
    environment: Sequence[tuple[str, str]] = ()
    command: str = ""

    def printable(self) -> Report:
        """Return the report as it may be shown: names in it cannot steer a terminal."""
        return replace(
            self,
            title=printable(self.title),
            headline=printable(self.headline),
            tables=[_printable_table(table) for table in self.tables],
            notes=[printable(note) for note in self.notes],
            environment=[(printable(name), printable(value)) for name, value in self.environment],
            command=printable(self.command),
        )


def _printable_table(table: Table) -> Table:
    rows = [[printable(cell) for cell in row] for row in table.rows]
    return replace(
        table, title=printable(table.title), columns=[printable(column) for column in table.columns], rows=rows
    )

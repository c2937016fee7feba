"""What a report consists of, however it is shown: in the terminal, as Markdown, as HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


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

"""How far the work is, on standard error: bars in a terminal, lines elsewhere, a table of seconds in the log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from onnxlowrank.progress import Advance

_LOG = logging.getLogger(__name__)
_PREPARATION = "preparation"


class Stages:
    """Shows stages as they start, and knows how long each took.

    Attributes:
        seconds: Of every kind of stage, in the order of the first of each. One may begin within another.
    """

    def __init__(self, progress: Progress, by_line: bool) -> None:
        """Begin.

        Args:
            progress: Draws the bars.
            by_line: Whether every stage gets a line on standard error.
        """
        self._progress, self._by_line = progress, by_line
        self.seconds: dict[str, float] = {}
        self._begin = self._since = time.perf_counter()
        self._title = _PREPARATION

    def stage(self, title: str, total: float) -> Advance:
        """Start a stage; see :class:`onnxlowrank.progress.Progress`."""
        self.count(self._title)
        self._title = title
        _LOG.info("%s", title)
        if self._by_line:
            print(f"{self._since - self._begin:6.0f} s  {title}", file=sys.stderr, flush=True)
        task = self._progress.add_task(title, total=total)

        def advance(amount: float) -> None:
            self.count(title)
            self._title = title
            self._progress.advance(task, amount)

        return advance

    def count(self, title: str | None = None) -> None:
        """Count the time since it was counted last to a stage; to the one that is on, where none is named."""
        title, now = title or self._title, time.perf_counter()
        self.seconds[title] = self.seconds.get(title, 0.0) + now - self._since
        self._since = now


@contextmanager
def stages(verbose: bool) -> Iterator[Stages]:
    """Yield what shows the stages: by the log, where it is on, by bars that go with the work, or by lines."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description:10}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    by_line = not (verbose or console.is_terminal)
    hidden = not console.is_terminal or verbose
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as progress:
        shown = Stages(progress, by_line)
        yield shown
    shown.count()
    whole = sum(shown.seconds.values())
    for title, seconds in shown.seconds.items():
        _LOG.info("%-12s %6.1f s  %3.0f %%", title, seconds, 100 * seconds / whole)
    _LOG.info("%-12s %6.1f s", "in all", whole)

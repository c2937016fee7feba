"""How far the work is, on standard error: bars in a terminal, lines elsewhere, a table of seconds in the log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from onnxlowrank.progress import Advance

_LOG = logging.getLogger(__name__)
_PREPARATION = "preparation"
_TELL_EVERY = 30.0
"""Seconds between lines of how a stage stands."""

_INT8_ALONE = "int8 alone"
_OF_INT8_ALONE = "quantise", "measure", "compare"
"""Stages that come before the first fit where int8 alone is made."""

SHARES = {
    _PREPARATION: 0.01,
    "gradients": 0.0,
    "statistics": 0.11,
    "candidates": 0.13,
    "sensitivity": 0.2,
    "plan": 0.33,
    "fit": 0.12,
    "tune": 0.0,
    "measure": 0.06,
    "compare": 0.04,
}
"""About what every stage takes of a whole run of ``optimize``, in their order; some may come again."""
INT8_SHARES = {
    _PREPARATION: 0.01,
    "gradients": 0.0,
    "statistics": 0.05,
    "candidates": 0.06,
    "sensitivity": 0.05,
    "ranges": 0.01,
    _INT8_ALONE: 0.09,
    "plan": 0.48,
    "fit": 0.13,
    "tune": 0.0,
    "quantise": 0.04,
    "measure": 0.03,
    "compare": 0.05,
}
"""The same where the network becomes int8, as ``models/vgg_cifar10.onnx`` did at 6x, planned and fitted twice."""


class Stages:
    """Shows stages as they start, and knows how long each took.

    Attributes:
        seconds: Of every kind of stage, in the order of the first of each. One may begin within another.
    """

    def __init__(self, progress: Progress, by_line: bool, shares: Mapping[str, float] | None = None) -> None:
        """Begin.

        Args:
            progress: Draws the bars.
            by_line: Whether every stage gets a line on standard error.
            shares: What stages take of one run of ``optimize``: a bar more then shows how far that is.
        """
        self._progress, self._by_line = progress, by_line
        self._shares = shares or {}
        self._whole = progress.add_task("in all", total=1.0, left="") if shares else None
        self.seconds: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._told = -_TELL_EVERY
        self._begin = self._since = time.perf_counter()
        self._title = _PREPARATION

    def stage(self, title: str, total: float) -> Advance:
        """Start a stage; see :class:`onnxlowrank.progress.Progress`."""
        self.count(self._title)
        self._title = title
        _LOG.info("%s", title)
        if self._by_line:
            print(f"{self._since - self._begin:6.0f} s  {title}", file=sys.stderr, flush=True)
        task = self._tasks[title] = self._progress.add_task(title, total=total, left="")
        self._show(title, 0.0)
        done = 0.0

        def advance(amount: float) -> None:
            nonlocal done
            done += amount
            self.count(title)
            self._title = title
            self._progress.advance(task, amount)
            self._show(title, done / total if total else 1.0)

        return advance

    def tell(self, standing: str) -> None:
        """Say how the stage that is on stands: beside its bar, in the log, or in a line now and then."""
        _LOG.info("%s: %s", self._title, standing)
        self._progress.update(self._tasks[self._title], left=standing)
        now = time.perf_counter()
        if self._by_line and now - self._told >= _TELL_EVERY:
            self._told = now
            print(f"{now - self._begin:6.0f} s  {self._title}: {standing}", file=sys.stderr, flush=True)

    def _show(self, title: str, share: float) -> None:
        """Show how far the whole run is, and what is left if the rest goes on as so far; it never goes back."""
        if title in _OF_INT8_ALONE and "fit" not in self._tasks:
            title = _INT8_ALONE
        if self._whole is None or title not in self._shares:
            return
        before = list(self._shares).index(title)
        reached = sum(list(self._shares.values())[:before]) + min(share, 1.0) * self._shares[title]
        done = max(reached, self._progress.tasks[self._whole].completed)
        left = (self._since - self._begin) * (1 - done) / done if done else 0.0
        self._progress.update(self._whole, completed=done, left=f"about {left:.0f} s left")

    def count(self, title: str | None = None) -> None:
        """Count the time since it was counted last to a stage; to the one that is on, where none is named."""
        title, now = title or self._title, time.perf_counter()
        self.seconds[title] = self.seconds.get(title, 0.0) + now - self._since
        self._since = now


@contextmanager
def stages(verbose: bool, shares: Mapping[str, float] | None = None) -> Iterator[Stages]:
    """Yield what shows the stages: by the log, where it is on, by bars that go with the work, or by lines.

    Args:
        verbose: Whether the log is on.
        shares: See :class:`Stages`.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:11}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    by_line = not (verbose or console.is_terminal)
    hidden = not console.is_terminal or verbose
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        shown = Stages(progress, by_line, shares)
        yield shown
    shown.count()
    total = sum(shown.seconds.values())
    for title, seconds in shown.seconds.items():
        _LOG.info("%-12s %6.1f s  %3.0f %%", title, seconds, 100 * seconds / total)
    _LOG.info("%-12s %6.1f s", "in all", total)

"""How a command ends, by itself or by a signal: its last words and its exit code follow what was written.

What was written is read off the files: one that is written is always a new one under its name.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import FrameType, TracebackType

from onnxlowrank.cli.streams import Streams
from onnxlowrank.temporary import remove_abandoned

BAD_INPUT, NOT_REACHED, NOT_ALL_WRITTEN = 2, 3, 4
_SIGNALLED = 128
INTERRUPTED = _SIGNALLED + signal.SIGINT
"""What typer makes of Ctrl-C."""

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Ending:
    """The time from the start of a command to its end, as a context.

    Signals that ask it to end are raised as KeyboardInterrupt, so that all is cleared away; those that were ignored
    from the start, as by nohup, still are.
    """

    def __init__(self) -> None:
        self._streams = Streams()
        self._signal = signal.SIGINT
        self._before: dict[Path, object] = {}

    def expect(self, files: Iterable[Path | None]) -> None:
        """Be told, before the work, which files it is to write."""
        self._before |= {file: _state(file) for file in files if file is not None}

    def __enter__(self) -> Ending:
        for number in _signals():
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number in _signals():
            signal.signal(number, signal.SIG_IGN)  # there is nothing left to stop
        if error is not None and not isinstance(error, SystemExit | KeyboardInterrupt):
            return  # a fault of the program's own, which Python tells
        code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else error.code if error is not None else 0
        written = self._written()
        if code == INTERRUPTED:
            by = "" if self._signal == signal.SIGINT else f" by {self._signal.name}"
            _say(f"interrupted{by}{f'; {written}' if written else ', nothing was written'}")
            self._clear_away()
            code = _SIGNALLED + self._signal
        elif code == BAD_INPUT and written:
            _say(written)
            code = NOT_ALL_WRITTEN
        lost = self._streams.lost()
        if lost:
            _say(f"not all could be printed ({lost})")
            code = code or (0 if written else NOT_ALL_WRITTEN)
        sys.exit(code)

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        raise KeyboardInterrupt

    def _written(self) -> str:
        """Return which files were written and which not; nothing if none were."""
        there = {file: _state(file) not in (None, before) for file, before in self._before.items()}
        written, missing = ([str(file) for file in there if there[file] is wanted] for wanted in (True, False))
        if not written:
            return ""
        return f"already written: {', '.join(written)}" + (f"; not written: {', '.join(missing)}" if missing else "")

    def _clear_away(self) -> None:
        """Have removed, at the very end, what processes have left that were started here and ended with this one."""
        for place in {Path(tempfile.gettempdir()), *(Path(os.path.realpath(file)).parent for file in self._before)}:
            atexit.register(remove_abandoned, place)


def _signals() -> list[signal.Signals]:
    """Return the signals that ask a process to end, those there are here."""
    return [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]


def _state(file: Path) -> object:
    """Return what is another once a file has been replaced; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _say(sentence: str) -> None:
    print(f"onnxlowrank: {sentence}.", file=sys.stderr)

"""Standard output and error as the commands use them: what cannot be printed does not stop the work."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, TextIO


class _Forgiving(io.FileIO):
    """A stream that goes on where it cannot be written to: the reader is gone, or the disk is full.

    Attributes:
        error: The first thing that went wrong; None if nothing did.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write bytes, waiting where a reader is slow and the stream would not; return how many are done with."""
        try:
            while (count := super().write(data)) is None:
                select.select([], [self], [])
            return count
        except OSError as error:
            self.error = self.error or error
            return len(data)


class Streams:
    """The standard streams, which from here on are Python's alone."""

    def __init__(self) -> None:
        """Take standard output, for machines to read, from all else: what libraries print past Python goes to error.

        HiGHS prints a line now and then though it is told to be silent (jump-dev/HiGHS.jl, issue 312).
        """
        out, errors = sys.stdout, sys.stderr
        self._out = _forgiving(out, -1 if out is None else os.dup(1))
        self._errors = _forgiving(errors, -1 if errors is None else os.dup(2))
        sys.stdout, sys.stderr = _text(out, self._out), _text(errors, self._errors, always_by_line=True)
        if out is not None:
            os.dup2(self._errors.fileno(), 1)

    def lost(self) -> str:
        """Write out what is waiting, and return why standard output did not take it all; nothing if it did.

        A reader that went away had enough, and is no reason.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        error = self._out.error
        return "" if error is None or error.errno == errno.EPIPE else error.strerror or str(error)


def _forgiving(stream: TextIO | None, descriptor: int) -> _Forgiving:
    """Return what ``stream`` writes to, or nowhere if it is closed."""
    return _Forgiving(os.devnull if stream is None else descriptor, "w")


def _text(stream: TextIO | None, raw: _Forgiving, always_by_line: bool = False) -> TextIO:
    """Return a stream of text in the encoding of ``stream``; characters that it lacks are written as escapes."""
    encoding = "utf-8" if stream is None else stream.encoding
    by_line = always_by_line or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=by_line)

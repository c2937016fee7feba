"""The boundary to code that is not ours: parsers of files and what users bring raise anything, we raise our errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from onnxlowrank.errors import OnnxLowRankError

_LONGEST_REASON = 1000


@contextmanager
def foreign(
    explain: Callable[[BaseException], OnnxLowRankError], caught: type[BaseException] = Exception
) -> Iterator[None]:
    """Raise what ``explain`` makes of an exception in place of whatever is raised inside.

    Errors of our own pass, and so does ``KeyboardInterrupt``, which is the user at the keyboard.

    Args:
        explain: Makes an error of ours of what was raised.
        caught: ``BaseException`` where code of the user's runs, which may also try to end the process.
    """
    try:
        yield
    except (OnnxLowRankError, KeyboardInterrupt):
        raise
    except caught as error:
        raise explain(error) from error


def reason(error: BaseException) -> str:
    """Return what an exception says, on one line and without its full stop; its type where it says nothing."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join(said.split()).rstrip(".: ") or type(error).__name__
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}..."


def typed_reason(error: BaseException) -> str:
    """Return the type of an exception and what it says: for code of the user's, who will look for it there."""
    said = reason(error)
    return said if said == type(error).__name__ else f"{type(error).__name__}: {said}"

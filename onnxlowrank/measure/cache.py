"""Remembers measured milliseconds from one run to the next, in a small SQLite file that processes can share.

Nothing depends on the file: where it cannot be read or written, times are remembered until the process ends.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import onnxruntime as ort
import platformdirs

from onnxlowrank.measure.hardware import processor
from onnxlowrank.measure.sessions import Target

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

FOLDER_VARIABLE = "ONNXLOWRANK_CACHE"
"""Environment variable that names the folder of the cache."""

_LOCKED_S = 10.0  # how long to wait for another process
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_TABLE = "CREATE TABLE IF NOT EXISTS timings (key TEXT PRIMARY KEY, ms REAL, spread REAL, created REAL)"
_LONGEST_MS = 1e9
_SOUND = f"""typeof(key) = 'text' AND typeof(ms) = 'real' AND typeof(spread) = 'real'
    AND ms > 0 AND ms < {_LONGEST_MS} AND spread >= 0 AND spread < {_LONGEST_MS}"""
"""Which rows hold what can have been measured; others are as good as absent, and overwritten."""


@dataclass(frozen=True)
class Timing:
    """A measured time.

    Attributes:
        ms: Milliseconds.
        spread: Half the distance between the 10th and the 90th percentile of the single measurements, in milliseconds.
    """

    ms: float
    spread: float


@dataclass(frozen=True, order=True)
class Conditions:
    """Where a time was measured."""

    provider: str
    threads: int
    onnxruntime: str
    processor: str

    @staticmethod
    def of(key: str) -> Conditions | None:
        """Return the conditions that :func:`timing_key` wrote into ``key``; None where something else wrote it."""
        try:
            known = json.loads(key)
            found = Conditions(*(known[field.name] for field in fields(Conditions)))
        except (ValueError, TypeError, KeyError):
            return None
        texts = (found.provider, found.onnxruntime, found.processor)
        return found if isinstance(found.threads, int) and all(isinstance(text, str) for text in texts) else None


@dataclass(frozen=True)
class Summary:
    """How much a cache remembers.

    Attributes:
        path: The file.
        size: Its bytes; 0 if there is none.
        timings: Number of timings.
        by_conditions: The conditions they were measured under, with the number of each.
    """

    path: str
    size: int
    timings: int
    by_conditions: tuple[tuple[Conditions, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        parts = [{**asdict(conditions), "timings": count} for conditions, count in self.by_conditions]
        return {"path": self.path, "size": self.size, "timings": self.timings, "by_conditions": parts}


class Cache:
    """Timings by key.

    Attributes:
        path: The file they are kept in.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Use the file in ``folder``: if None, that in ``$ONNXLOWRANK_CACHE``, or else in the user's cache folder."""
        named = os.environ.get(FOLDER_VARIABLE)
        folder = folder or (Path(named) if named else platformdirs.user_cache_path("onnxlowrank"))
        self.path = folder / "timings-1.sqlite"
        self._memory: dict[str, Timing] = {}
        self._is_usable = True

    def get(self, key: str) -> Timing | None:
        """Return what was remembered under ``key``, or None."""
        if key not in self._memory:
            query = f"SELECT ms, spread FROM timings WHERE key = ? AND {_SOUND}"
            row = self._run(lambda database: database.execute(query, (key,)).fetchone())
            if row is None:
                return None
            self._memory[key] = Timing(*row)
        return self._memory[key]

    def put(self, key: str, timing: Timing) -> None:
        """Remember ``timing`` under ``key``, in place of what was there."""
        self._memory[key] = timing
        row = (key, timing.ms, timing.spread, time.time())
        self._run(lambda database: database.execute("INSERT OR REPLACE INTO timings VALUES (?, ?, ?, ?)", row))

    def entries(self) -> dict[str, Timing]:
        """Return all that is remembered."""
        query = f"SELECT key, ms, spread FROM timings WHERE {_SOUND}"
        rows = self._run(lambda database: database.execute(query).fetchall()) if self._exists() else None
        return {key: Timing(*values) for key, *values in rows or ()} | self._memory

    def summary(self) -> Summary:
        """Return how much is remembered, and from where."""
        counts = Counter(where for key in self.entries() if (where := Conditions.of(key)) is not None)
        size = self.path.stat().st_size if self._exists() else 0
        return Summary(str(self.path), size, sum(counts.values()), tuple(sorted(counts.items())))

    def clear(self) -> int:
        """Forget everything; return how many timings the file held."""
        self._memory.clear()
        if not self._exists():
            return 0
        return self._run(lambda database: database.execute("DELETE FROM timings").rowcount) or 0

    def _exists(self) -> bool:
        """Return whether there is a file: what only reads or removes shall not make one."""
        return os.path.exists(self.path)

    def _run(self, work: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """Return what ``work`` does to the file; None where there is none to be had."""
        if not self._is_usable:
            return None
        try:
            try:
                return self._transact(work)
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", None) not in _DAMAGED:
                    raise
                _LOG.warning("the cache of measured times, %s, is damaged and starts anew", self.path)
                self.path.replace(self.path.with_suffix(".damaged"))
                return self._transact(work)
        except (OSError, sqlite3.Error) as error:
            _LOG.warning("measured times cannot be kept in %s (%s)", self.path, error)
            self._is_usable = False
            return None

    def _transact(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Return what ``work`` does to the file, all of it or nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=_LOCKED_S)) as database, database:
            database.execute("PRAGMA synchronous = OFF")  # what a power failure damages starts anew
            database.execute(_TABLE)
            return work(database)


def timing_key(subject: Mapping[str, Any], target: Target) -> str:
    """Return the key of a time on ``target`` and on this machine.

    Args:
        subject: What was timed and on what input, as JSON values; equal subjects take equally long.
        target: Where it was timed.
    """
    conditions = {
        "provider": target.kind,
        "provider_options": target.options,
        "threads": target.threads,
        "precision": "float32",
        "onnxruntime": ort.__version__,
        "processor": processor(target.kind),
    }
    return json.dumps({**conditions, **subject}, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

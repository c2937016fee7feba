"""Work on all cores at once, in threads: NumPy and SciPy let go of the interpreter's lock while they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

import joblib
from threadpoolctl import threadpool_limits

One = TypeVar("One")
Result = TypeVar("Result")


def one_blas_thread() -> AbstractContextManager[object]:
    """Return a context in which BLAS uses one thread.

    Small matrices, which most are here, take two to three times as long on several; work goes in parallel instead.
    """
    limits: AbstractContextManager[object] = threadpool_limits(1, "blas")
    return limits


def available_cores() -> int:
    """Return how many cores this process may keep busy, by its affinity and the quota of its container.

    joblib tells; the environment variable LOKY_MAX_CPU_COUNT lowers it.
    """
    return int(joblib.cpu_count())


def in_parallel(work: Callable[[One], Result], items: Sequence[One]) -> Iterator[Result]:
    """Yield ``work(item)`` of every item, in their order; an exception ends it, and what has not begun is dropped."""
    pool = ThreadPoolExecutor(available_cores())
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)

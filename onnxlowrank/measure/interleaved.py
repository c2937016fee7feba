"""Which of several networks is faster, by how much, and how sure that is.

What disturbs a measurement comes in two sizes. Within a session rounds differ, and taking turns cancels most of it.
But each time a session is opened its weights and buffers come to lie elsewhere in memory, and keep the speed they have
there. So networks are timed in several sessions each, and the interval resamples sessions first, rounds within them
second: a hierarchical bootstrap (Davison & Hinkley 1997, Sec. 3.8).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import scipy
from numpy.typing import NDArray

from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.latency import Latency, measure, speedup_noise
from onnxlowrank.measure.sessions import Target

SESSIONS = 8
_LEAST_SESSIONS = 3  # that tell how much they differ
_RESAMPLES = 1000
_COVERAGE = 95.0  # per cent

_Times = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A ratio of times, and between which bounds it lies with 95 % confidence."""

    ratio: float
    low: float
    high: float


def time_in_sessions(
    models: Sequence[onnx.ModelProto],
    feeds: Feeds,
    target: Target,
    seconds: float,
    advance: Callable[[float], None] = lambda share: None,
    fewest: int = SESSIONS,
    enough: float = 0.0,
) -> list[list[_Times]]:
    """Time networks in turns, each in several sessions.

    Args:
        models: The networks; all take ``feeds``.
        feeds: One input.
        target: Provider and threads.
        seconds: About how long to measure.
        advance: Called with the share of the work just done.
        fewest: How many sessions there have to be; up to ``SESSIONS`` are opened as long as time is left.
        enough: Of three sessions and more no further one is opened once the ratio of the first network's time to the
            last one's is known with this standard error, as a share.

    Returns:
        For each network the milliseconds of its rounds, session by session.
    """
    times: list[list[_Times]] = [[] for _ in models]
    order = list(range(len(models)))
    start = time.perf_counter()
    for count in range(SESSIONS):
        if count >= fewest and (time.perf_counter() - start >= seconds or _is_known(times, enough)):
            break
        taken = measure([models[index] for index in order], feeds, target, seconds / SESSIONS)
        for index, latency in zip(order, taken, strict=True):
            times[index].append(np.array(latency.milliseconds))
        order.append(order.pop(0))  # none always runs behind the same other
        advance(1 / SESSIONS)
    return times


def _is_known(times: Sequence[Sequence[_Times]], enough: float) -> bool:
    """Return whether sessions tell the ratio of the first network's time to the last one's well enough."""
    return len(times[0]) >= _LEAST_SESSIONS and speedup_noise(_latency(times[0]), _latency(times[-1])) < enough


def _latency(sessions: Sequence[_Times]) -> Latency:
    return Latency(tuple(np.concatenate(sessions).tolist()), tuple(map(len, sessions)))


def measure_in_sessions(
    models: Sequence[onnx.ModelProto],
    feeds: Feeds,
    target: Target,
    seconds: float,
    fewest: int = 1,
    enough: float = 0.0,
) -> list[Latency]:
    """Time networks in turns, in as many sessions as there is time for.

    The arguments are those of :func:`time_in_sessions`. One session alone would measure the luck of its
    memory layout as well.
    """
    times = time_in_sessions(models, feeds, target, seconds, fewest=fewest, enough=enough)
    return [_latency(mine) for mine in times]


def speedup_interval(before: Sequence[_Times], after: Sequence[_Times], seed: int = 0) -> Interval:
    """Return time before / time after: the median over rounds, with its bootstrap interval.

    Args:
        before: Milliseconds of the rounds, session by session.
        after: Likewise, taken in turns with these.
        seed: Of the resampling.
    """
    logs = [np.log(one / other) for one, other in zip(before, after, strict=True)]
    rounds = min(map(len, logs))
    sessions = np.array([one[:rounds] for one in logs])
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(sessions), size=(_RESAMPLES, len(sessions), 1))
    drawn = sessions[chosen, rng.integers(rounds, size=(_RESAMPLES, len(sessions), rounds))]
    medians = np.median(drawn.reshape(_RESAMPLES, -1), axis=1)
    middle, tail = float(np.median(sessions)), (100 - _COVERAGE) / 2
    low, high = middle + _expansion(len(sessions)) * (np.percentile(medians, [tail, 100 - tail]) - middle)
    return Interval(float(np.exp(middle)), float(np.exp(low)), float(np.exp(high)))


def _expansion(sessions: int) -> float:
    """Return by how much percentiles of few sessions fall short (Hesterberg 2015, "expanded percentile interval")."""
    quantile = (100 + _COVERAGE) / 200
    return float(
        scipy.special.stdtrit(sessions - 1, quantile)
        / scipy.special.ndtri(quantile)
        * np.sqrt(sessions / (sessions - 1))
    )

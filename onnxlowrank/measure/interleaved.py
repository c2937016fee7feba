"""Which of several networks is faster, by how much, and how sure that is.

What disturbs a measurement comes in two sizes. Within a session rounds differ, and taking turns cancels most of it.
But each time a session is opened its weights and buffers come to lie elsewhere in memory, and keep the speed they have
there. So networks are timed in several sessions each, and the interval resamples sessions first, rounds within them
second: a hierarchical bootstrap (Davison & Hinkley 1997, Sec. 3.8).

And other work comes and goes, for seconds. It slows large layers and small ones down by different factors, so that the
ratio itself is another one, which no turns cancel. How long the original takes tells it apart: sessions in which that
is more than it was before are waited out (:class:`onnxlowrank.measure.calm.Calm`).
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
from onnxlowrank.measure.calm import Calm
from onnxlowrank.measure.latency import LEAST_SESSIONS, Latency, measure, speedup_noise
from onnxlowrank.measure.sessions import Target

SESSIONS = 8
_RESAMPLES = 1000
_COVERAGE = 95.0  # per cent
_PATIENCE_S = 3.0
"""How long it is waited for that work to end."""

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
    calm: Calm | None = None,
) -> list[list[_Times]]:
    """Time networks in turns, each in several sessions.

    Args:
        models: The networks; all take ``feeds``.
        feeds: One input.
        target: Provider and threads.
        seconds: About how long to measure.
        advance: Called with the share of the work just done.
        fewest: How many sessions there have to be, 1 at least; up to ``SESSIONS`` are opened as long as time is left.
        enough: Of three sessions and more no further one is opened once the ratio of the first network's time to the
            last one's is known with this standard error, as a share.
        calm: Of the first network. Sessions in which that is disturbed are waited out and left out of what is
            returned, as long as there are ``fewest`` others; if there are not in time, all count.

    Returns:
        For each network the milliseconds of its rounds, session by session.
    """
    sessions: list[list[_Times]] = []
    quiet: list[list[_Times]] = []
    order = list(range(len(models)))
    start = time.perf_counter()
    while len(quiet) < SESSIONS:
        elapsed = time.perf_counter() - start if sessions else 0.0
        if len(quiet) >= fewest and (elapsed >= seconds or _is_known(quiet, enough)):
            break
        if len(sessions) >= fewest and elapsed >= seconds + _PATIENCE_S:
            break
        taken = measure([models[index] for index in order], feeds, target, seconds / SESSIONS)
        times = {index: np.array(latency.milliseconds) for index, latency in zip(order, taken, strict=True)}
        sessions.append([times[index] for index in range(len(models))])
        order.append(order.pop(0))  # none always runs behind the same other
        medians = [float(np.median(first)) for first, *_ in sessions]
        quiet = sessions if calm is None else [sessions[index] for index in calm.quiet(medians)]
        advance(1 / SESSIONS)
    if calm is not None and len(quiet) < fewest:
        calm.settle(medians)
    return [list(mine) for mine in zip(*(quiet if len(quiet) >= fewest else sessions), strict=True)]


def _is_known(sessions: Sequence[Sequence[_Times]], enough: float) -> bool:
    """Return whether sessions tell the ratio of the first network's time to the last one's well enough."""
    if len(sessions) < LEAST_SESSIONS:
        return False
    first, last = ([one[index] for one in sessions] for index in (0, -1))
    return speedup_noise(_latency(first), _latency(last)) < enough


def _latency(sessions: Sequence[_Times]) -> Latency:
    return Latency(tuple(np.concatenate(sessions).tolist()), tuple(map(len, sessions)))


def measure_in_sessions(
    models: Sequence[onnx.ModelProto],
    feeds: Feeds,
    target: Target,
    seconds: float,
    fewest: int = 1,
    enough: float = 0.0,
    calm: Calm | None = None,
) -> list[Latency]:
    """Time networks in turns, in as many sessions as there is time for.

    The arguments are those of :func:`time_in_sessions`. One session alone would measure the luck of its
    memory layout as well.
    """
    times = time_in_sessions(models, feeds, target, seconds, fewest=fewest, enough=enough, calm=calm)
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

"""Milliseconds of networks on an execution provider, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort

from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.sessions import Target, open_session, running

_WARM_UP = 3
LEAST_SESSIONS = 3
"""So many tell how much they differ."""
_SHORTEST_S = 0.004  # runs shorter than this are timed several at once


@dataclass(frozen=True)
class Latency:
    """Times of one network.

    Attributes:
        milliseconds: One entry a round.
        sessions: How many of the rounds were run in each of the sessions, where that is known.
    """

    milliseconds: tuple[float, ...]
    sessions: tuple[int, ...] = ()

    @property
    def median(self) -> float:
        """Median in milliseconds."""
        return float(np.median(self.milliseconds))

    @property
    def spread(self) -> tuple[float, float]:
        """The 10th and the 90th percentile in milliseconds."""
        low, high = np.percentile(self.milliseconds, [10, 90])
        return float(low), float(high)

    def with_those(self, later: Latency) -> Latency:
        """Return these times and later ones of the same network."""
        return Latency(self.milliseconds + later.milliseconds, self.sessions + later.sessions)


def measure(
    models: Sequence[onnx.ModelProto],
    feeds: Feeds,
    target: Target,
    seconds: float,
) -> list[Latency]:
    """Time models on one input in interleaved rounds A B A B, so that what disturbs the machine disturbs all alike.

    Each has one session: where its buffers come to lie in memory is left to chance.

    Args:
        models: The networks; all take ``feeds``.
        feeds: One input.
        target: Provider and threads.
        seconds: About how long to measure; at least 7 and at most 200 rounds are run.

    Returns:
        One :class:`Latency` a model.
    """
    sessions = [open_session(model, target) for model in models]
    repeats = []
    with running(feeds):
        runs = [bound(session, feeds) for session in sessions]
        for run in runs:
            once = min(_timed(run, 1) for _ in range(_WARM_UP))
            repeats.append(max(1, round(_SHORTEST_S / once)))
    times: list[list[float]] = [[] for _ in models]
    start = time.perf_counter()
    while len(times[0]) < 7 or (len(times[0]) < 200 and time.perf_counter() - start < seconds):
        for run, count, collected in zip(runs, repeats, times, strict=True):
            collected.append(1e3 * _timed(run, count) / count)
    return [Latency(tuple(collected)) for collected in times]


def median_speedup(before: Latency, after: Latency) -> float:
    """Return the speed-up: the median over the interleaved rounds of time before / time after."""
    return float(np.median(np.divide(before.milliseconds, after.milliseconds)))


def speedup_noise(before: Latency, after: Latency) -> float:
    """Return the standard error of the speed-up, as a share: by how much it differs from session to session.

    It is 0 where fewer than three sessions are known, which do not tell.
    """
    if len(before.sessions) < LEAST_SESSIONS:
        return 0.0
    logs = np.log(np.divide(before.milliseconds, after.milliseconds))
    medians = [float(np.median(one)) for one in np.split(logs, np.cumsum(before.sessions)[:-1])]
    return float(np.std(medians, ddof=1) / np.sqrt(len(medians)))


def bound(session: ort.InferenceSession, feeds: Feeds) -> Callable[[], object]:
    """Return what runs a session, inputs and outputs bound once; copies to and from a device stay out of the timing.

    Outputs are written where those of the first run lie. Where they do not fit in there, their sizes being those of
    chance or their ranks not those that are declared, they are bound anew for every run.
    """
    binding = session.io_binding()
    device = "cuda" if session.get_providers()[0].startswith("CUDA") else "cpu"
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, device, 0))
    names = [output.name for output in session.get_outputs()]
    for name in names:
        binding.bind_output(name, device)
    fit = True

    def run() -> None:
        nonlocal fit
        if fit:
            try:
                session.run_with_iobinding(binding)
                return
            except Exception:  # onnxruntime's errors share no base class; if it is another one, it comes again
                fit = False
        binding.clear_binding_outputs()
        for name in names:
            binding.bind_output(name, device)
        session.run_with_iobinding(binding)

    return run


def _timed(run: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    return time.perf_counter() - start

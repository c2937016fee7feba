"""Milliseconds of every node of a network inside that network, by the names the network itself gives its nodes.

onnxruntime's profiler times the nodes of the graph it has optimised. There a Conv and what it fuses with it are one
node, named after one of them or after a tensor, and nodes of onnxruntime's own bring tensors into the layout it likes.

The profiler itself takes some microseconds a node, to put down shapes and what every thread did: as much as a small
layer. So the network also runs without it, and what the nodes take longer in all is taken off them in equal parts, of
shorter ones nearly all they took; no more than the profiler may take, since other work slows either run down, too.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxlowrank.graph.walk import named, names
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.latency import bound
from onnxlowrank.measure.sessions import Target, open_session, running
from onnxlowrank.temporary import Scratch

_MOST, _MOST_IN_A_ROW = 100, 8  # runs
_IN_A_ROW_MS = 4.0
_MOST_OVERHEAD_MS = 0.01  # of the profiler, a node
_LEAST_LEFT = 0.1  # of the time of a node
_EVENT = "_kernel_time"
_LAYOUTS = "ReorderInput", "ReorderOutput"
# Names onnxruntime makes up: of what works on blocks of channels, after a tensor; of other fused nodes, after a node,
# numbered where they are int8.
_BLOCKED = re.compile(r"(?P<tensor>.+)_nchwc(_token_\d+)?")
_BLOCKED_BATCH_NORM = re.compile(r"(?P<tensor>.+)_bn_nchwc(_token_\d+)?")
_FUSED = re.compile(r"(fused )?(?P<node>.+?)(/\w+Fusion/*)*(_token_\d+)?")


@dataclass(frozen=True)
class NodeTime:
    """Times of one node of the graph that onnxruntime makes of a network, one entry a run, in milliseconds.

    Attributes:
        name: Its name in that graph.
        op: Its operator there, e.g. ``Conv``, ``FusedConv`` or ``ReorderInput``.
        node: The node of the network that it computes: of several fused into one, the Conv, Gemm or MatMul among them.
            None for nodes of onnxruntime's own, and where its name does not tell.
        milliseconds: The times.
    """

    name: str
    op: str
    node: str | None
    milliseconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median in milliseconds."""
        return float(np.median(self.milliseconds))

    @property
    def lays_out(self) -> bool:
        """Whether it is a node of onnxruntime's own that brings a tensor into or out of blocks of channels."""
        return self.node is None and self.op in _LAYOUTS


def profile(model: onnx.ModelProto, feeds: Feeds, target: Target, seconds: float = 2.0) -> list[NodeTime]:
    """Return the times of all the nodes onnxruntime runs for ``model``, in the order it runs them.

    Nodes inside subgraphs count to the node that carries the subgraph. On CUDA a node's time is that to queue its
    work, unless the environment has had ``CUDA_LAUNCH_BLOCKING=1`` since the process started.

    Args:
        model: The network. A node without a name goes by ``<operator>/<first output>``, as in normalised models.
        feeds: One input.
        target: Provider and threads.
        seconds: About how long to run it; at least 7 and at most 100 runs are timed.
    """
    (times,) = profile_interleaved([model], feeds, target, seconds)
    return times


def profile_interleaved(
    models: Sequence[onnx.ModelProto], feeds: Feeds, target: Target, seconds: float = 2.0
) -> list[list[NodeTime]]:
    """Return for every network what :func:`profile` does; run in turns, what disturbs one disturbs the others.

    Args:
        models: The networks.
        feeds: One input of them all.
        target: Provider and threads.
        seconds: About how long to run each.
    """
    return _profiled(models, [], feeds, target, seconds * len(models))[0]


def profile_beside(
    models: Sequence[onnx.ModelProto], other: ort.InferenceSession, feeds: Feeds, target: Target, seconds: float
) -> tuple[list[list[NodeTime]], float]:
    """Return what :func:`profile_interleaved` does, briefly, and the milliseconds of another network, run in turns too.

    Short networks are run several times at their turn, as they are when they are timed as a whole: the first run finds
    its weights in no cache.

    Args:
        models: The networks.
        other: Of the other one.
        feeds: One input of them all.
        target: Provider and threads.
        seconds: About how long to run each with the other one; at least 3 and at most 100 runs are timed.
    """
    times, (taken,) = _profiled(models, [other], feeds, target, seconds * len(models), 3, 1, in_a_row_ms=_IN_A_ROW_MS)
    return times, float(np.median(taken))


def _profiled(
    models: Sequence[onnx.ModelProto],
    others: Sequence[ort.InferenceSession],
    feeds: Feeds,
    target: Target,
    seconds: float,
    fewest: int = 7,
    warm_up: int = 3,
    in_a_row_ms: float = 0.0,
) -> tuple[list[list[NodeTime]], list[list[float]]]:
    """Return the times of the nodes of ``models``, and the milliseconds of ``others``, all run in turns."""
    models = [_with_names(model) for model in models]
    sessions: list[ort.InferenceSession] = []
    with Scratch() as folder:
        try:
            for index, model in enumerate(models):
                sessions.append(open_session(model, target, trace=folder / str(index)))
            plain = [*(open_session(model, target) for model in models), *others]
            whole: list[list[float]] = [[] for _ in plain]  # milliseconds, without the profiler
            with running(feeds):
                runs = [bound(session, feeds) for session in plain]
                start, count, in_a_row = math.inf, -warm_up, [1] * len(plain)
                while count < fewest or (count * max(in_a_row) < _MOST and time.perf_counter() - start < seconds):
                    if count == 0:
                        start = time.perf_counter()
                        in_a_row = [_repeats(in_a_row_ms, milliseconds) for milliseconds in whole]
                    for session, repeats in zip(sessions, in_a_row, strict=False):
                        for _ in range(repeats):
                            session.run(None, feeds)
                    for run, repeats, milliseconds in zip(runs, in_a_row, whole, strict=True):
                        for _ in range(repeats):
                            begin = time.perf_counter()
                            run()
                            milliseconds.append(1e3 * (time.perf_counter() - begin))
                    count += 1
        finally:
            for session in sessions:
                with suppress(UnicodeDecodeError):  # of the trace's name, which need not be text
                    session.end_profiling()
        traces = [next(folder.glob(f"{index}_*")) for index in range(len(models))]
        timed = [milliseconds[warm_up:] for milliseconds in whole]
        times = [_node_times(*one) for one in zip(models, traces, timed[: len(models)], strict=True)]
    return times, timed[len(models) :]


def _repeats(wanted_ms: float, taken: Sequence[float]) -> int:
    """Return how many runs, of which some have been timed, take so many milliseconds."""
    return min(max(round(wanted_ms / min(taken, default=math.inf)), 1), _MOST_IN_A_ROW)


def _node_times(model: onnx.ModelProto, trace: Path, whole: Sequence[float]) -> list[NodeTime]:
    """Return the times of the nodes in the last runs, given as many of the network without the profiler."""
    runs = _runs(json.loads(trace.read_text(encoding="utf-8")))
    taken = np.array([[event["dur"] / 1e3 for event in events] for events in runs])[-len(whole) :]
    if taken.size:
        medians, too_long = np.median(taken, axis=0), float(np.median(taken.sum(axis=1) - whole))
        part = min(_equal_parts(medians, too_long), _MOST_OVERHEAD_MS)
        taken -= np.minimum((1 - _LEAST_LEFT) * medians, part)
    known = _Names(model)
    times = []
    for event, milliseconds in zip(runs[0], np.maximum(taken, 0).T.tolist(), strict=True):
        name, op = event["name"].removesuffix(_EVENT), event["args"]["op_name"]
        times.append(NodeTime(name, op, known.node(name, op), tuple(milliseconds)))
    return times


def _equal_parts(values: NDArray[np.float64], amount: float) -> float:
    """Return how much to take off each of some values, of smaller ones all of them, to take off so much in all."""
    ascending = np.sort(values)
    for number, value in enumerate(ascending):
        part = amount / (len(ascending) - number)
        if part <= value:
            return max(part, 0.0)
        amount -= value
    return float(ascending[-1])


class _Names:
    """Finds the node of a network that a node of onnxruntime's graph stems from."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._names = {node.name for node in model.graph.node}
        self._writers = {name: node for node in model.graph.node for name in node.output if name}

    def node(self, name: str, op: str) -> str | None:
        """Return the name of the node that the one called ``name``, an ``op``, stems from; None if there is none."""
        if name in self._names:
            return name
        for pattern in (_BLOCKED, _BLOCKED_BATCH_NORM):
            blocked = pattern.fullmatch(name)
            if blocked and blocked["tensor"] in self._writers:
                node = self._writers[blocked["tensor"]]
                is_conv = pattern is _BLOCKED and op == "Conv"
                return str(self._convolution(node).name if is_conv else node.name)
        fused = _FUSED.fullmatch(name)
        return fused["node"] if fused and fused["node"] in self._names else None

    def _convolution(self, last: onnx.NodeProto) -> onnx.NodeProto:
        """Return the Conv that was fused with all up to the node ``last``: the nearest in front of it."""
        found = [last]
        for node in found:
            if node.op_type == "Conv":
                return node
            found += [self._writers[name] for name in node.input if name in self._writers]
        return last


def _with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of ``model`` in which every node has a name of its own."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    copy.graph.node.extend(named(model.graph.node, names(model)))
    return copy


def _runs(trace: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the events of the main graph's nodes, run by run, in the order they ended."""
    runs: list[list[dict[str, Any]]] = [[]]
    for event in trace:
        if event.get("cat") == "Node" and event["name"].endswith(_EVENT):
            runs[-1].append(event)
        elif event["name"] == "model_run":
            runs.append([])
    return [_outermost(run) for run in runs[:-1]]


def _outermost(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events that are no part of another: one that ends before another but starts after it is."""
    kept, start = [], math.inf
    for event in reversed(events):
        if event["ts"] <= start:
            kept.append(event)
            start = event["ts"]
    return kept[::-1]

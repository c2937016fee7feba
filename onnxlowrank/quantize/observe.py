"""Observes activations: a network runs over inputs with tensors inside it as outputs, one input after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxlowrank.graph.probe import expose
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.sessions import all_threads, open_session, running
from onnxlowrank.progress import Advance
from onnxlowrank.quantize.ranges import Histogram

_MOST_COUNTED = 2**16
"""Numbers of a tensor that its histogram takes from one input; all of them count for its ends."""


def activations(
    model: onnx.ModelProto, tensors: Sequence[str], inputs: Inputs, advance: Advance
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield the tensors' values, those that are float32, for one feed after the other; only these are in memory.

    Args:
        model: A network.
        tensors: Names of tensors in it, computed ones and inputs.
        inputs: Sample inputs.
        advance: Told of every feed.
    """
    fed = {info.name for info in model.graph.input}
    computed = [name for name in tensors if name not in fed]
    session = open_session(expose(model, computed), all_threads()) if computed else None
    for feeds in inputs:
        found = [] if session is None else _run(session, computed, feeds)
        values = dict(zip(computed, found, strict=True)) | {name: feeds[name] for name in tensors if name in feeds}
        yield {name: value for name, value in values.items() if getattr(value, "dtype", None) == np.float32}
        advance(1)


def _run(session: ort.InferenceSession, tensors: Sequence[str], feeds: Feeds) -> Sequence[NDArray[np.float32]]:
    wanted = {value.name for value in session.get_inputs()}
    with running(feeds):
        values: Sequence[NDArray[np.float32]] = session.run(
            tensors, {name: value for name, value in feeds.items() if name in wanted}
        )
    return values


def observe(model: onnx.ModelProto, tensors: Sequence[str], inputs: Inputs, advance: Advance) -> dict[str, Histogram]:
    """Return what numbers tensors hold, of those that are float32; the arguments are those of :func:`activations`."""
    seen: dict[str, Histogram] = {}
    for values in activations(model, tensors, inputs, advance):
        for name, value in values.items():
            every = -(-value.size // _MOST_COUNTED)
            seen.setdefault(name, Histogram()).add(value, every + (every > 1 and every % 2 == 0))  # sizes are even
    return seen

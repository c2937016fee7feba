"""What a function of the user's makes of the outputs of a network: ``--metric module:function``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxlowrank.boundary import foreign, typed_reason
from onnxlowrank.errors import OptionError, UserFunctionError
from onnxlowrank.evaluate.intervals import Interval, bootstrap_interval
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.readers import current_directory_importable, is_reference, resolve
from onnxlowrank.measure.sessions import all_threads, open_session, running

Outputs = Sequence[Mapping[str, NDArray[np.generic]]]
FigureOfMerit = Callable[[Outputs, NDArray[np.int64] | None], float]
"""From the outputs of a network by name, one mapping an input, and the labels if there are any, a figure of merit."""

_RESAMPLES = 200


@dataclass(frozen=True)
class Merit:
    """What a metric makes of two networks; more is better.

    Attributes:
        name: Of the metric.
        before: Of the first network.
        after: Of the second one.
        drop_interval: Of ``before - after``: 95 %, bootstrapped over the inputs; None of a single input.
    """

    name: str
    before: float
    after: float
    drop_interval: Interval | None


def load_metric(metric: str | FigureOfMerit | None) -> FigureOfMerit | None:
    """Return the function that ``module:function`` names, or the function given.

    Raises:
        OptionError: If it names none.
    """
    if not isinstance(metric, str):
        return metric
    if not is_reference(metric):
        raise OptionError(f"--metric {metric} is not understood; write module:function")
    with current_directory_importable():
        found = resolve(metric)
    if not callable(found):
        raise OptionError(f"--metric {metric} is a {type(found).__name__}, not a function of outputs and labels")
    return found


def metric_name(metric: str | FigureOfMerit | None) -> str:
    """Return what a metric is called."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")


def outputs_of(network: onnx.ModelProto, inputs: Inputs) -> Outputs:
    """Return all outputs of a network by their names, for every input."""
    session = open_session(network, all_threads())
    names = [value.name for value in session.get_outputs()]
    found = []
    for feeds in inputs:
        with running(feeds):
            found.append(dict(zip(names, session.run(names, feeds), strict=True)))
    return found


def merit_of(metric: FigureOfMerit, outputs: Outputs, labels: NDArray[np.int64] | None, name: str) -> float:
    """Return what a metric makes of outputs.

    Args:
        metric: The function.
        outputs: One mapping an input.
        labels: ``[inputs, batch]``, or None.
        name: Of the metric, for messages.

    Raises:
        UserFunctionError: If it fails.
    """
    with foreign(lambda error: UserFunctionError(f"--metric {name} failed ({typed_reason(error)})"), BaseException):
        return float(metric(outputs, None if labels is None else labels.ravel()))


def compare_merit(
    metric: str | FigureOfMerit, before: onnx.ModelProto, after: onnx.ModelProto, inputs: Inputs
) -> Merit:
    """Return what a metric makes of two networks on the same inputs."""
    function, name = load_metric(metric), metric_name(metric)
    assert function is not None
    one, other = outputs_of(before, inputs), outputs_of(after, inputs)

    def drop(chosen: NDArray[np.intp]) -> float:
        labels = None if inputs.labels is None else inputs.labels[chosen]
        values = (merit_of(function, [found[i] for i in chosen], labels, name) for found in (one, other))
        return next(values) - next(values)

    interval = bootstrap_interval(drop, len(inputs), _RESAMPLES) if len(inputs) > 1 else None
    values = [merit_of(function, found, inputs.labels, name) for found in (one, other)]
    return Merit(name, values[0], values[1], interval)

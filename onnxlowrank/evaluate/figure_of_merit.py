"""What a metric makes of the outputs of a network: ``--metric`` with a name, or with ``module:function``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxlowrank.boundary import foreign, typed_reason
from onnxlowrank.errors import OptionError, UserFunctionError
from onnxlowrank.evaluate.intervals import Interval, bootstrap_interval, paired_interval
from onnxlowrank.evaluate.measures import CLASSES, Measure
from onnxlowrank.evaluate.task_metrics import BUILT_IN, UNITS
from onnxlowrank.evaluate.task_metrics.base import Given, Outputs, Score
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.readers import current_directory_importable, is_reference, resolve
from onnxlowrank.measure.sessions import all_threads, open_session, running

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
        drop_interval: Of ``before - after``: 95 %, bootstrapped over the inputs, of counted samples the score interval;
            None of a single input.
    """

    name: str
    before: float
    after: float
    drop_interval: Interval | None


def check_metric(metric: str | FigureOfMerit | None) -> None:
    """Check that a metric is the name of one that is built in, names a function, or is one.

    Raises:
        OptionError: If it is none of these.
    """
    if isinstance(metric, str) and metric not in BUILT_IN:
        _load(metric)


def _load(metric: str) -> FigureOfMerit:
    """Return the function that ``module:function`` names."""
    if not is_reference(metric):
        raise OptionError(
            f"--metric {metric} is not understood; choose from {', '.join(BUILT_IN)}, or write module:function"
        )
    with current_directory_importable():
        found = resolve(metric)
    if not callable(found):
        raise OptionError(f"--metric {metric} is a {type(found).__name__}, not a function of outputs and labels")
    function: FigureOfMerit = found
    return function


def metric_name(metric: str | FigureOfMerit | None) -> str:
    """Return what a metric is called."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")


def metric_title(name: str) -> str:
    """Return what a metric of that name is called in tables, with its unit where that is known."""
    return f"{name} ({UNITS[name]})" if name in UNITS else name


def outputs_of(network: onnx.ModelProto, inputs: Inputs) -> Outputs:
    """Return all outputs of a network by their names, for every input."""
    session = open_session(network, all_threads())
    names = [value.name for value in session.get_outputs()]
    found = []
    for feeds in inputs:
        with running(feeds):
            found.append(dict(zip(names, session.run(names, feeds), strict=True)))
    return found


def scorer(
    metric: str | FigureOfMerit, original: Outputs, inputs: Inputs, measures: Sequence[Measure] = ()
) -> Callable[[Outputs], Score]:
    """Return what scores the outputs of networks.

    Args:
        metric: Name of a metric that is built in, ``module:function``, or a function.
        original: Outputs of the original network.
        inputs: On which these are computed, and their labels.
        measures: How the outputs of the original network are measured; those that are not are not read by what is
            built in.

    Raises:
        OptionError: If the outputs of the original network are not what the metric reads.
    """
    if isinstance(metric, str) and metric in BUILT_IN:
        judged = [name for one in measures for name in one.outputs]
        axes = {one.tensor: one.axis for one in measures if one.kind == CLASSES}
        names = [name for name in original[0] if name in judged] or list(original[0])
        given = Given(original, {name: axes.get(name) for name in names}, inputs.labels, inputs.batch)
        return BUILT_IN[metric](given)
    function, name = _load(metric) if isinstance(metric, str) else metric, metric_name(metric)

    def score(outputs: Outputs) -> Score:
        def of(chosen: NDArray[np.intp]) -> float:
            labels = None if inputs.labels is None else inputs.labels[chosen]
            return _called(function, [outputs[i] for i in chosen], labels, name)

        return Score(of)

    return score


def _called(metric: FigureOfMerit, outputs: Outputs, labels: NDArray[np.int64] | None, name: str) -> float:
    """Return what a function makes of outputs, or raise UserFunctionError if it fails."""
    with foreign(lambda error: UserFunctionError(f"--metric {name} failed ({typed_reason(error)})"), BaseException):
        return float(metric(outputs, None if labels is None else labels.ravel()))


def merits_of(
    metric: str | FigureOfMerit, networks: Sequence[onnx.ModelProto], inputs: Inputs, measures: Sequence[Measure] = ()
) -> tuple[float, ...]:
    """Return what a metric makes of networks, the first of which is the original; see :func:`scorer`."""
    original, every = outputs_of(networks[0], inputs), np.arange(len(inputs))
    score = scorer(metric, original, inputs, measures)
    others = (outputs_of(network, inputs) for network in networks[1:])
    return score(original).of(every), *(score(outputs).of(every) for outputs in others)


def check_outputs(
    metric: str | FigureOfMerit | None, original: onnx.ModelProto, inputs: Inputs, measures: Sequence[Measure]
) -> None:
    """Check, before any work, that a metric that is built in can read the outputs of a network; see :func:`scorer`."""
    if metric is not None and metric in BUILT_IN:
        scorer(metric, outputs_of(original, inputs), inputs, measures)


def compare_merit(
    metric: str | FigureOfMerit,
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    inputs: Inputs,
    measures: Sequence[Measure] = (),
) -> Merit:
    """Return what a metric makes of two networks on the same inputs, the first being the original; see :func:`scorer`.

    Raises:
        OptionError: If the outputs are not what the metric reads.
        UserFunctionError: If it is a function that fails.
    """
    original = outputs_of(before, inputs)
    score = scorer(metric, original, inputs, measures)
    one, other, every = score(original), score(outputs_of(after, inputs)), np.arange(len(inputs))
    interval = None
    if one.right is not None and other.right is not None:
        lost, won = (int((a & ~b).sum()) for a, b in ((one.right, other.right), (other.right, one.right)))
        low, high = paired_interval(lost, won, len(one.right))
        interval = 100 * low, 100 * high
    elif len(inputs) > 1:
        interval = bootstrap_interval(lambda chosen: one.of(chosen) - other.of(chosen), len(inputs), _RESAMPLES)
    return Merit(metric_name(metric), one.of(every), other.of(every), interval)

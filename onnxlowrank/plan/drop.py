"""The fastest network within a drop of accuracy: chosen on some inputs, confirmed on others.

A search looks at several networks, and the one that seems to lose least on the inputs it is chosen by loses more on
others. So a third of the inputs chooses, and the rest confirms. There the networks that were found are tested from the
slowest on, which loses least, each by the upper end of its interval, until the first that fails: a fixed sequence of
tests, which errs no more often than a single one (Maurer, Hothorn & Lehmacher 1995).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from onnxlowrank.errors import OptionError
from onnxlowrank.evaluate.agreement import Agreement
from onnxlowrank.evaluate.figure_of_merit import FigureOfMerit
from onnxlowrank.evaluate.intervals import samples_to_confirm
from onnxlowrank.evaluate.measures import CLASSES, Measure
from onnxlowrank.evaluate.task_metrics import COUNTED
from onnxlowrank.goal import DEFAULT_SPEEDUP
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.plan.builder import FittedNetwork, NetworkBuilder
from onnxlowrank.plan.counted import least_plan
from onnxlowrank.plan.latency_model import LatencyModel
from onnxlowrank.plan.search import search_plan

_FITS = 6
"""How many networks are fitted in search of the fastest one within the drop."""
_NEAR = 1.1
"""That search ends between two speed-ups whose ratio this is."""
_FURTHER = 1.5
"""By how much more than int8 alone the first network is to be faster."""
_NOTHING = "no faster network is confirmed to lose so little"
Quieter = Callable[[FittedNetwork], Iterator[FittedNetwork]]
"""Makes of an int8 network others that lose less and are slower."""
_CHOOSING = 3
"""Every third input chooses."""


def split_for_drop(
    unseen: Inputs, points: float, measures: Sequence[Measure], metric: str | FigureOfMerit | None
) -> tuple[Inputs, Inputs]:
    """Return the inputs to confirm a drop on, and those to choose networks by.

    Args:
        unseen: Inputs the fit does not see.
        points: Of the drop.
        measures: How outputs are measured.
        metric: The figure of merit that is to drop; None for that of the classes.

    Raises:
        OptionError: If there are no classes and no metric, or too few inputs to confirm any network.
    """
    if metric is None and not any(one.kind == CLASSES for one in measures):
        raise OptionError(
            "--max-drop counts classes, and nothing says that an output is class scores: give labels or "
            "--output NAME=classes, or --metric for what is to drop"
        )
    chosen = set(range(0, len(unseen), _CHOOSING))
    confirming = [index for index in range(len(unseen)) if index not in chosen]
    if metric is None or metric in COUNTED:
        needed, there = samples_to_confirm(points / 100) if points < 100 else 1, len(confirming) * unseen.batch
        if there < needed:
            whole = math.ceil(needed * _CHOOSING / (_CHOOSING - 1))
            raise OptionError(
                f"--max-drop {points:g}: {len(unseen) * unseen.batch} inputs are too few to know, even if nothing were "
                f"lost: it takes {whole} at least with --evaluate, or a larger drop"
            )
    elif len(confirming) < 2:
        raise OptionError(f"--max-drop {points:g}: {len(unseen)} inputs are too few; give more with --evaluate")
    return unseen.subset(confirming), unseen.subset(sorted(chosen))


def network_for_drop(
    builder: NetworkBuilder,
    latency_model: LatencyModel,
    confirming: Inputs,
    choosing: Inputs,
    points: float,
    alone: FittedNetwork | None = None,
    others: Callable[[], Sequence[FittedNetwork]] = tuple,
    quieter: Quieter | None = None,
) -> FittedNetwork:
    """Return the fastest network found that is confirmed to lose at most so much; the original one if there is none.

    Args:
        builder: Makes networks of plans.
        latency_model: What candidates cost.
        confirming: From :func:`split_for_drop`, likewise the next.
        choosing: To search by.
        points: Of accuracy, per cent of other classes, or units of the metric.
        alone: The network with all its layers kept, where that is not the original.
        others: Finds networks by another search, to be confirmed likewise.
        quieter: Of an int8 network that loses too much, others that lose less.
    """
    if builder.is_free:
        best = builder.original(_NOTHING)
    else:
        best, alone = builder.build(least_plan(builder.candidates), reason=_NOTHING), None
    found = [*search_for_drop(builder, latency_model, choosing, points, len(confirming), alone, quieter), *others()]
    for fitted in sorted(found, key=lambda one: one.speedup):
        if _agreement(builder, fitted, confirming).largest_drop > points:
            break
        best = max(best, fitted, key=lambda one: one.speedup)
    return best


def search_for_drop(
    builder: NetworkBuilder,
    latency_model: LatencyModel,
    choosing: Inputs,
    points: float,
    confirming: int,
    alone: FittedNetwork | None = None,
    quieter: Quieter | None = None,
) -> list[FittedNetwork]:
    """Return the networks found that are likely to be confirmed, by bisection over speed-ups."""
    found: list[FittedNetwork] = []
    narrower = math.sqrt(len(choosing) / confirming)  # the interval on the inputs that confirm

    def is_likely(fitted: FittedNetwork) -> bool:
        agreement = _agreement(builder, fitted, choosing)
        return agreement.drop + narrower * (agreement.largest_drop - agreement.drop) <= points

    low, high, speedup = 1.0, math.inf, DEFAULT_SPEEDUP
    if alone is not None:
        first = next(filter(is_likely, _alternatives(alone, quieter)), None)
        if first is None:
            return []  # what is rewritten besides loses more
        found.append(replace(first, reason=_NOTHING))
        low = max(first.speedup, 1.0)
        speedup = _FURTHER * low
    for _ in range(_FITS):
        planned = search_plan(builder.network, latency_model, builder.select, speedup, builder.progress)
        fitted = builder.build(planned.plan, planned.predicted)
        if is_likely(fitted):
            low = speedup
            found.append(fitted)
            if not planned.reached:
                break  # there is none faster
        else:
            high = speedup
            for other in () if quieter is None else quieter(fitted):
                if other.speedup > low and is_likely(other):
                    found.append(other)
                    low = min(other.speedup, high)
                    break
        if high / low < _NEAR:
            break
        speedup = 2 * low if math.isinf(high) else math.sqrt(low * high)
    return found


def _alternatives(fitted: FittedNetwork, quieter: Quieter | None) -> Iterator[FittedNetwork]:
    """Yield a network, and those that lose less."""
    yield fitted
    if quieter is not None:
        yield from quieter(fitted)


def _agreement(builder: NetworkBuilder, fitted: FittedNetwork, inputs: Inputs) -> Agreement:
    advance = builder.progress.stage("compare", len(inputs))
    return builder.network.compare(fitted.model, fitted.chains, inputs, advance)

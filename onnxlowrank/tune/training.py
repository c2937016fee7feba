"""Gradient descent with a schedule that needs no hand: the best network on inputs held out is what stays.

Adam (Kingma & Ba 2015) with a rate relative to the size of every tensor, since the factors of a chain may be of quite
different sizes. The rate is found by a short range test (Smith 2017): it rises from step to step, all on one batch, and
half of that from which the loss of this batch rises is taken. From there it falls as a cosine. What is judged, and
kept, are running means of the weights over the last tenth of the steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from onnxlowrank.tune.adam import Adam
from onnxlowrank.tune.budget import Budget, cosine
from onnxlowrank.tune.libraries import Torch, torch
from onnxlowrank.tune.samples import Batch
from onnxlowrank.tune.student import Student

_LOG = logging.getLogger(__name__)
_LOWEST, _HIGHEST = 1e-4, 1e-1
_OF_LARGEST = 0.5
_TEST_STEPS, _LEAST_TEST_STEPS = 20, 8
_TESTING = 0.15
"""Of the time, how much the range test may take if that leaves it enough steps."""
_LOOKS = 25
"""How often the network is judged on the inputs held out."""
_LOOKING = 0.2
"""Of the time, how much that may take where time is what ends the training."""
_AVERAGED = 0.1
"""Of the steps done: how many of the last ones are averaged."""
_MOST_FAILURES = 4

FINISHED, TIME, INTERRUPTED, NOT_FINITE = "finished", "time", "interrupted", "not finite"
"""Why training ended: it was through, or the time was up before; the user or a signal; the loss never was finite."""

Values = dict[str, Torch]


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        best: The best values found: of the least loss on the inputs held out, but no larger figure than those given.
        figure: What they are judged by, on the inputs held out.
        before: Of the values given.
        loss: Of the best values, on the inputs held out.
        is_better: Whether they are others than those given.
        steps: Made.
        rate: The learning rate found.
        ended: Why it ended.
        history: Share of the work done and the figure, one a look.
    """

    best: Values
    figure: float
    before: float
    loss: float
    is_better: bool = False
    steps: int = 0
    rate: float = 0.0
    ended: str = FINISHED
    history: list[tuple[float, float]] = field(default_factory=list)


class Trainer:
    """Trains one network."""

    def __init__(
        self,
        student: Student,
        loss: Callable[[Batch], float],
        judge: Callable[[], tuple[float, float]],
        batches: Iterator[Batch],
        tell: Callable[[float, str], None],
    ) -> None:
        """Begin.

        Args:
            student: The network.
            loss: Computes and differentiates the loss of a batch: gradients are then with the parameters.
            judge: Figure and loss of the network on inputs held out.
            batches: What to learn from.
            tell: Told of the share of the work that was done since, and how it stands.
        """
        self._student, self._loss, self._judge, self._batches, self._tell = student, loss, judge, batches, tell

    def train(self, budget: Budget, rate: float | None = None) -> Outcome:
        """Train until the budget is used up, Ctrl-C, or nothing gets better; the student has the best values then."""
        start = self._student.values()
        before, loss = self._judge()
        found = Outcome(start, before, before, loss)
        try:
            found.rate = self._range_test(start, budget) if rate is None else rate
            _LOG.info("figure on inputs held out %.5g, learning rate %.3g", before, found.rate)
            self._descend(budget, found)
        except KeyboardInterrupt:
            found.ended = INTERRUPTED
        self._student.set(found.best)
        return found

    def _descend(self, budget: Budget, found: Outcome) -> None:
        optimiser, mean = Adam(self._student.parameters.values()), self._student.values()
        failures, told, looks = 0, 0.0, 0
        averaged, looking = 0, 0.0
        while not budget.is_over:
            if not self._step(optimiser, found.rate * cosine(budget.share), next(self._batches)):
                failures += 1
                if failures > _MOST_FAILURES:
                    found.ended = NOT_FINITE
                    return
                _LOG.warning("the loss is not finite: back to the best network so far, at a third of the rate")
                found.rate /= 3
                self._student.set(found.best)
                optimiser, mean, averaged = Adam(self._student.parameters.values()), self._student.values(), 0
                budget.step()
                continue
            budget.step()
            averaged += 1
            found.steps = budget.done
            weight = 1 / min(averaged, 1 + _AVERAGED * averaged)
            with torch.no_grad():
                for name, value in self._student.parameters.items():
                    mean[name].lerp_(value, weight)
            share, since = budget.share, budget.seconds
            late = budget.steps is None and looking > _LOOKING * since
            if (late or share * _LOOKS < looks + 1) and not budget.is_over:
                continue
            looks = math.floor(share * _LOOKS)
            figure, loss = self._judged(mean)
            looking += budget.seconds - since
            found.history.append((share, figure))
            if figure < found.before and loss < found.loss:
                found.best, found.is_better = {name: value.clone() for name, value in mean.items()}, True
                found.figure, found.loss = figure, loss
            self._tell(share - told, _standing(budget, figure, found))
            told = share
        if budget.steps is not None and budget.done < budget.steps:
            found.ended = TIME

    def _judged(self, values: Values) -> tuple[float, float]:
        """Return figure and loss of other values than the student has."""
        own = self._student.values()
        self._student.set(values)
        figures = self._judge()
        self._student.set(own)
        return figures

    def _step(self, optimiser: Adam, rate: float, batch: Batch) -> bool:
        """Make a step, and return whether all was finite; if not, nothing was changed."""
        optimiser.clear()
        loss = self._loss(batch)
        self._last = loss
        gradients = [one.grad for one in self._student.parameters.values() if one.grad is not None]
        if not math.isfinite(self._last) or not all(bool(torch.isfinite(one).all()) for one in gradients):
            return False
        optimiser.step(rate)
        return True

    def _range_test(self, start: Values, budget: Budget) -> float:
        """Return a learning rate; the student has its values back then."""
        optimiser, batch = Adam(self._student.parameters.values()), next(self._batches)
        rates, losses = [_LOWEST], list[float]()
        since = budget.share
        while len(losses) < len(rates) and self._step(optimiser, rates[len(losses)], batch):
            losses.append(self._last)  # before this step
            if len(losses) == 1:
                rates = np.geomspace(_LOWEST, _HIGHEST, steps_of_test(budget.share - since)).tolist()
            if self._last > 2 * losses[0]:
                break
        self._student.set(start)
        _LOG.info(
            "range test: %s", " ".join(f"{rate:.1g}:{loss:.4g}" for rate, loss in zip(rates, losses, strict=False))
        )
        return float(rates[max(int(np.argmin(losses)) - 1, 0)] if losses else _LOWEST) * _OF_LARGEST


def steps_of_test(share: float) -> int:
    """Return how many steps the range test makes.

    Args:
        share: Of the time, that one takes; 0 where time does not end the training.
    """
    return _TEST_STEPS if not share else min(max(int(_TESTING / share), _LEAST_TEST_STEPS), _TEST_STEPS)


def _standing(budget: Budget, figure: float, found: Outcome) -> str:
    left = budget.seconds_left
    time = "" if left is None else f", {left / 60:.1f} min left"
    return f"held out {figure:.4g}, best {found.figure:.4g} of {found.before:.4g}{time}"

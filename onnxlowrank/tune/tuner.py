"""Fine-tuning as a whole: from two networks and samples to the optimised one with other weights, never a worse one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxlowrank.errors import NotFiniteError
from onnxlowrank.evaluate.measures import Measure
from onnxlowrank.inputs.feeds import byte_count
from onnxlowrank.parallel import available_cores
from onnxlowrank.progress import Progress
from onnxlowrank.tune.augment import Augmentation
from onnxlowrank.tune.budget import Budget
from onnxlowrank.tune.checks import arrays, check_same, outputs_of
from onnxlowrank.tune.libraries import Torch, torch
from onnxlowrank.tune.objective import Objective
from onnxlowrank.tune.options import TuneOptions
from onnxlowrank.tune.reference import Reference
from onnxlowrank.tune.samples import Batch, Part, Samples
from onnxlowrank.tune.split import Split
from onnxlowrank.tune.student import Student
from onnxlowrank.tune.terms import hint_pairs, hint_terms, judged_pair, judged_term, shared_measures
from onnxlowrank.tune.training import Outcome, Trainer
from onnxlowrank.tune.tuned import Tuned
from onnxlowrank.tune.weights import trained_weights

_LOG = logging.getLogger(__name__)
_BATCH = 64
"""Samples a step, at most."""
_SMALLEST_BATCH, _STEPS_WANTED = 8, 200
"""Where the time is short for that many steps, steps are of fewer samples, down to so many."""
_LEAST_STEPS = 4
"""In one pass over the samples."""
_LOOKED_AT = 256
"""Samples that terms are scaled by."""
_JUDGED_ON, _MOST_VIEWS = 500, 4
"""Samples to judge by, and how often every image held out is among them: once as it is, then changed."""
_HELD_BYTES = 2**29
"""Of tensors of the original that are kept; samples beyond that are not looked at, or judged by."""
_ROUNDED_ON = 4
"""Feeds that all that is rounded is compared on."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be fine-tuned, and by what.

    Attributes:
        original: The network it was made of.
        optimised: The network.
        data: Sample inputs.
        measures: How outputs are measured.
        labelled: Whether labels count.
        augmentation: How inputs are changed; None leaves them as they are.
    """

    original: ModelProto
    optimised: ModelProto
    data: Split
    measures: Sequence[Measure]
    labelled: bool
    augmentation: Augmentation | None


def tune(task: Task, options: TuneOptions, progress: Progress) -> Tuned:
    """Return an optimised network, fine-tuned.

    Ctrl-C while it is trained ends that, and what is best so far is returned.

    Args:
        task: The network.
        options: How.
        progress: Told how far the work is.

    Raises:
        UnsupportedModelError: PyTorch cannot run the network, or computes something else.
        NotFiniteError: The original computes what is not finite.
        NothingToTrainError: There is nothing to train.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, available_cores()))
    try:
        return _Tuner(task, options).tune(progress)
    finally:
        torch.set_num_threads(threads)


def figures(task: Task, models: Sequence[ModelProto], options: TuneOptions) -> list[float]:
    """Return what networks are judged by on the inputs held out, computed by onnxruntime: less is better.

    Args:
        task: For which of them.
        models: Others like it.
        options: How it would be fine-tuned.

    Raises:
        OnnxLowRankError: As for :func:`tune`.
    """
    tuner = _Tuner(task, options)
    return [tuner.run_as_written(model) for model in models]


def batch_size(most: int, least: int, seconds: float, minutes: float) -> int:
    """Return how many feeds a step learns from, so that there is time for a fair number of steps.

    Args:
        most: Feeds.
        least: Likewise, if there are as many.
        seconds: That a step takes for each of them.
        minutes: There are.
    """
    return max(min(most, max(int(60 * minutes / (_STEPS_WANTED * seconds)), least)), 1)


class _Tuner:
    def __init__(self, task: Task, options: TuneOptions) -> None:
        original, optimised, data = task.original, task.optimised, task.data
        self._optimised, self._options, self._augmentation = optimised, options, task.augmentation
        self._samples = (len(data.seen) * data.seen.batch, len(data.held_out) * data.held_out.batch)
        measures = shared_measures(task.measures, optimised)
        judged = [one.tensor for one in measures]
        self._trained = trained_weights(original, optimised, options.tune, judged)
        for what in self._trained.stopped_by:
            _LOG.info("PyTorch is not taught to differentiate %s: weights in front of it stay", what)
        self._seen = Samples(data.seen, data.joins, task.augmentation)
        self._held_out = Samples(data.held_out, data.joins, task.augmentation)
        self._taught: tuple[Batch, list[tuple[Part, dict[str, Torch]]]] | None = None
        self._rng = np.random.default_rng(options.seed)

        pairs = [judged_pair(one, original, optimised) for one in measures]
        inside = hint_pairs(original, optimised, self._trained, judged)
        names = [mine for mine, _ in inside]
        references = list(dict.fromkeys(its for _, its in (*pairs, *inside)))
        reference = Reference(original, references, options.device)
        size = sum(array.nbytes for array in arrays(reference.run(data.seen[0])).values())
        count = max(min(_LOOKED_AT // data.seen.batch, _HELD_BYTES // (2 * size)), 1)
        some = [int(one) for one in np.unique(np.linspace(0, len(self._seen) - 1, count).astype(int))]
        parts = list(self._seen.parts(some))
        found = [arrays(reference.run(part.feeds)) for part in parts]
        for name in references:
            if not all(np.isfinite(one[name]).all() for one in found):
                raise NotFiniteError(
                    f"tensor '{name}' of ORIGINAL is not finite on {data.seen.description}, so nothing can be learnt "
                    "from it; give other inputs"
                )
        terms = [
            judged_term(measure, pair, [one[pair[1]] for one in found])
            for measure, pair in zip(measures, pairs, strict=True)
        ]
        mine = list(outputs_of(optimised, names, (part.feeds for part in parts))) if names else []
        hints = hint_terms(
            inside, [[one[its] for one in found] for _, its in inside], [[one[name] for one in mine] for name in names]
        )
        self._objective = Objective(tuple(terms), hints, task.labelled)
        self._reference = Reference(original, self._objective.references, options.device)
        self._student = Student(optimised, self._trained.weights, self._objective.tensors, options.device)
        self._judged_on = self._views()
        self._few = [data.held_out[index] for index in range(min(len(data.held_out), _ROUNDED_ON))]

    def _views(self) -> list[tuple[Part, dict[str, Torch]]]:
        """Return the inputs held out, with what the original gives for them.

        Images are also changed, since OPTIMISED may have been fitted to them as they are.
        """
        count = 1
        if self._augmentation is not None:
            count = min(max(_JUDGED_ON // self._samples[1], 1), _MOST_VIEWS)
        found: list[tuple[Part, dict[str, Torch]]] = []
        size = 0
        for view in range(count):
            rng = None if view == 0 else np.random.default_rng((self._options.seed, view))
            for part in self._held_out.parts(range(len(self._held_out)), rng):
                reference = self._reference.run(part.feeds)
                size += byte_count(reference)
                if found and size > _HELD_BYTES:
                    break
                found.append((part, reference))
        whole = sum(part.share for part, _ in found)
        return [(replace(part, share=part.share / whole), reference) for part, reference in found]

    def tune(self, progress: Progress) -> Tuned:
        """Return the network, trained."""
        feeds = self._few if self._student.rounds else [part.feeds for part, _ in self._judged_on]
        check_same(self._optimised, self._student, feeds)
        options = self._options
        advance = progress.stage("tune", 1.0)

        def tell(share: float, standing: str) -> None:
            advance(share)
            progress.tell(standing)

        budget = Budget(options.steps, options.minutes)
        batches = self._seen.batches(self._batch_size(), self._rng)
        trainer = Trainer(self._student, self._loss, self._judge, batches, tell)
        found = trainer.train(budget)
        model, figures = self._verified(found)
        hints = tuple(term.tensor for term in self._objective.hints)
        return Tuned(
            model,
            self._trained,
            figures,
            found.steps,
            found.rate,
            budget.seconds,
            found.ended,
            tuple(found.history),
            hints,
            self._objective.labelled,
            () if self._augmentation is None else tuple(sorted(self._augmentation.kinds)),
            self._samples,
        )

    def _batch_size(self) -> int:
        """Return how many feeds a step learns from; where steps are counted, the machine has no say in it."""
        options, each = self._options, self._samples[0] // len(self._seen)
        most = min(_BATCH // each, len(self._seen) // _LEAST_STEPS)
        if options.steps is not None or options.minutes is None:
            return max(most, 1)
        some = Batch(tuple(range(min(_SMALLEST_BATCH, len(self._seen)))), options.seed)
        self._loss(some)  # the first time is longer
        self._taught = None
        since = time.monotonic()
        self._loss(some)
        return batch_size(most, _SMALLEST_BATCH // each, (time.monotonic() - since) / len(some.chosen), options.minutes)

    def _lessons(self, batch: Batch) -> Iterator[tuple[Part, dict[str, Torch]]]:
        """Yield a batch with what the original gives for it; if asked for the same one again, without computing."""
        if self._taught is not None and self._taught[0] == batch:
            yield from self._taught[1]
            return
        self._taught, found, size = None, [], 0
        for part in self._seen.parts(batch.chosen, np.random.default_rng(batch.seed)):
            reference = self._reference.run(part.feeds)
            size += byte_count(reference)
            if size <= _HELD_BYTES:
                found.append((part, reference))
            yield part, reference
        if size <= _HELD_BYTES:
            self._taught = batch, found

    def _loss(self, batch: Batch) -> float:
        """Return the loss of a batch; its gradients are added to the parameters'."""
        total = 0.0
        for part, reference in self._lessons(batch):
            loss = self._objective.loss(self._student.run(part.feeds), reference, part.labels) * part.share
            loss.backward()
            total += float(loss.detach())
        return total

    def _judge(self) -> tuple[float, float]:
        """Return figure and loss of the network as it is, on the inputs held out."""
        figure = loss = 0.0
        with torch.no_grad():
            for part, its in self._judged_on:
                mine = self._student.run(part.feeds)
                figure += part.share * float(self._objective.figure(mine, its, part.labels))
                loss += part.share * float(self._objective.loss(mine, its, part.labels))
        return figure, loss

    def _figure(self, compared: Iterable[tuple[Part, dict[str, Torch], dict[str, Torch]]]) -> float:
        """Return the figure of what a network gives, beside what the original gives."""
        return sum(part.share * float(self._objective.figure(mine, its, part.labels)) for part, mine, its in compared)

    def _verified(self, found: Outcome) -> tuple[ModelProto, tuple[float, float]]:
        """Return the network with the best weights if onnxruntime too finds it better, else that which was given."""
        before = self.run_as_written(self._optimised)
        if not found.is_better:
            return self._optimised, (before, before)
        model = self._student.model(found.best)
        after = self.run_as_written(model)
        return (model, (before, after)) if after < before else (self._optimised, (before, before))

    def run_as_written(self, model: ModelProto) -> float:
        """Return the figure of a network run by onnxruntime, on the inputs held out."""
        tensors = self._objective.judged_tensors
        outputs = outputs_of(model, tensors, (part.feeds for part, _ in self._judged_on))
        device = self._options.device
        given: Any = ({name: torch.from_numpy(value).to(device) for name, value in one.items()} for one in outputs)
        return self._figure((part, mine, its) for (part, its), mine in zip(self._judged_on, given, strict=True))

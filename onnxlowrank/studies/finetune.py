"""Fine-tuning of an optimised network: its weights are trained, its graph stays."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from onnxlowrank.destinations import OUTPUT, check_destinations
from onnxlowrank.evaluate.agreement import Agreement
from onnxlowrank.evaluate.measures import measures_of
from onnxlowrank.graph.load import describe, load, save
from onnxlowrank.graph.verify import verify_interface
from onnxlowrank.inputs.feeds import byte_count
from onnxlowrank.inputs.preprocess import Preprocess, preprocess_from_options
from onnxlowrank.inputs.sources import Source, open_inputs
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.progress import Progress, Silent
from onnxlowrank.result import json_ready
from onnxlowrank.studies.compare import check_same_inputs, compared
from onnxlowrank.tune.finetuning import Teaching, fine_tune
from onnxlowrank.tune.options import DEFAULT_MINUTES, TuneOptions
from onnxlowrank.tune.split import split
from onnxlowrank.tune.tuned import Tuned
from onnxlowrank.tune.weights import ALL

SCHEMA = 1
_LARGEST_FEED = 2**20
"""Bytes of inputs that networks are compared on at once, where they may be joined."""


@dataclass(frozen=True, eq=False)
class Finetuned:
    """A network that was fine-tuned.

    Attributes:
        tuned: The network and how it was trained.
        mode: What was trained: ``all``, ``chains`` or ``above``.
        before: How far the optimised network's outputs are from the original's, on inputs nothing was learnt from.
        after: Likewise, of the network that was fine-tuned.
        source: What was learnt from.
        device: Of PyTorch.
        notes: What the user should know.
        seconds: How long all of it took.
    """

    tuned: Tuned
    mode: str
    before: Agreement
    after: Agreement
    source: str
    device: str
    notes: tuple[str, ...]
    seconds: float

    @property
    def model(self) -> onnx.ModelProto:
        """The network."""
        return self.tuned.model

    @property
    def is_better(self) -> bool:
        """Whether anything better than the optimised network was found."""
        return self.tuned.is_better

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; ``onnxlowrank schema finetune`` describes them."""
        tuned = self.tuned
        found: dict[str, Any] = json_ready(
            {
                "schema": SCHEMA,
                "kind": "finetune",
                "tune": self.mode,
                "trained": list(tuned.trained.nodes),
                "not_differentiated": list(tuned.trained.stopped_by),
                "labels": tuned.labelled,
                "augment": list(tuned.augmented),
                "hints": list(tuned.hints),
                "source": self.source,
                "samples": tuned.samples[0],
                "held_out": tuned.samples[1],
                "loss_before": tuned.figures[0],
                "loss_after": tuned.figures[1],
                "is_better": tuned.is_better,
                "steps": tuned.steps,
                "learning_rate": tuned.rate,
                "ended": tuned.ended,
                "history": [list(one) for one in tuned.history],
                "device": self.device,
                "before": asdict(self.before),
                "after": asdict(self.after),
                "notes": list(self.notes),
                "training_seconds": tuned.seconds,
                "seconds": self.seconds,
            }
        )
        return found


def finetune(
    original: str | os.PathLike[str] | onnx.ModelProto,
    optimised: str | os.PathLike[str] | onnx.ModelProto,
    output: str | os.PathLike[str] | None = None,
    *,
    data: Source,
    evaluate: Source | None = None,
    preprocess: Preprocess | None = None,
    outputs: Mapping[str, str] | None = None,
    tune: str = ALL,
    minutes: float | None = None,
    steps: int | None = None,
    labels: bool = False,
    augment: Sequence[str] | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
) -> Finetuned:
    """Train weights of an optimised network; its graph, names, types and metadata stay as they are.

    An eighth of the inputs is held out: the network that does best on these is what is returned, and that which was
    given where none does better. Ctrl-C ends the training, and the best network so far is returned.

    Args:
        original: The network that was optimised, which is learnt from.
        optimised: What it became.
        output: Where to write the network.
        data: Sample inputs, as for :func:`onnxlowrank.optimize`, best some thousands.
        evaluate: Inputs on which both networks are compared with the original; None takes those held out.
        preprocess: How images become inputs.
        outputs: By the name of an output, how it is measured, as for :func:`onnxlowrank.optimize`.
        tune: What is trained: ``all`` layers (Zhang 2015, Sec. 3.6); ``chains``, what stands in place of layers;
            ``above``, the layers behind all that is approximated (Denton 2014, Sec. 3.5).
        minutes: How long at most, 10 where ``steps`` are not given either.
        steps: How many steps at most; equal seeds then give equal networks.
        labels: Whether class labels of ``data`` count as much as what the original says.
        augment: How images are changed, of ``flip`` and ``shift``; None takes both where the data are images.
        device: Of PyTorch, ``cpu`` or ``cuda``.
        seed: Of everything random.
        progress: Told how far the work is.

    Raises:
        OnnxLowRankError: If a network, the inputs or an option is unusable.
    """
    start = time.perf_counter()
    if minutes is None and steps is None:
        minutes = DEFAULT_MINUTES
    options = TuneOptions(tune, minutes, steps, labels, augment, device, seed)
    options.check()
    check_destinations({OUTPUT: output}, [original, optimised], {"--data": data, "--evaluate": evaluate})
    progress = Silent() if progress is None else progress
    how = preprocess_from_options("imagenet") if preprocess is None else preprocess
    networks = load(original, any_precision=True), load(optimised, qdq=True)
    specs = input_specs(networks[0])
    check_same_inputs(specs, input_specs(networks[1]), describe(original), describe(optimised))
    inputs = open_inputs(data, specs, how)
    parts = split(networks[0], inputs)
    unseen = parts.held_out if evaluate is None else open_inputs(evaluate, specs, how)

    teaching = Teaching(networks[0], data, parts, how, outputs or {})
    tuned = fine_tune(teaching, networks[1], options, progress)
    verify_interface(networks[1], tuned.model)
    if output is not None:
        save(tuned.model, output)  # before it is looked at, which may be interrupted too
    measures = measures_of(networks[0], unseen.labels is not None, outputs)
    advance = progress.stage("compare", 2 * len(unseen))
    at_once = max(_LARGEST_FEED // byte_count(unseen[0]), 1) if parts.joins else 1
    before, after = (
        compared(networks[0], model, unseen, measures, advance, at_once) for model in (networks[1], tuned.model)
    )
    notes = _notes(tuned, evaluate is None)
    return Finetuned(tuned, tune, before, after, inputs.description, device, notes, time.perf_counter() - start)


def _notes(tuned: Tuned, on_held_out: bool) -> tuple[str, ...]:
    found = []
    if tuned.augmented:
        found.append(
            f"the inputs are images, changed at random ({', '.join(tuned.augmented)}); --augment none does not"
        )
    if on_held_out:
        found.append("compared on the inputs held out, which chose the network; give --evaluate for others")
    found += [f"weights in front of {what} stay: no gradient is known for it" for what in tuned.trained.stopped_by]
    return tuple(found)

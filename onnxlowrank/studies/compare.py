"""Networks side by side: how fast they are, how far their outputs differ, and what they take."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from onnxlowrank.calibrate.kept_nodes import kept_nodes
from onnxlowrank.calibrate.ready import unfold_taken_branches
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.errors import OptionError, UnfitInputsError, UnsupportedModelError
from onnxlowrank.evaluate.agreement import Agreement, compare_outputs
from onnxlowrank.evaluate.figure_of_merit import FigureOfMerit, check_metric, check_outputs, merits_of
from onnxlowrank.evaluate.measures import Measure, measures_of
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.load import load
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.outside import byte_count
from onnxlowrank.graph.probe import expose
from onnxlowrank.inputs.evidence import are_identical
from onnxlowrank.inputs.feeds import Inputs, joined
from onnxlowrank.inputs.preprocess import Preprocess
from onnxlowrank.inputs.sources import Source, open_or_synthesise
from onnxlowrank.inputs.specs import Feeds, InputSpec, input_specs
from onnxlowrank.measure.footprint import Footprint, footprint
from onnxlowrank.measure.interleaved import Interval, speedup_interval, time_in_sessions
from onnxlowrank.measure.sessions import Target
from onnxlowrank.progress import Advance, Progress, Silent
from onnxlowrank.result import json_ready

SCHEMA = 2
_RANDOM_INPUTS = 8


@dataclass(frozen=True)
class ModelSummary:
    """What can be said of a network without timing it.

    Attributes:
        name: Its file, or what else it is called.
        file_bytes: Size of its file.
        nodes: Number of nodes.
        macs: Multiply-accumulates for one sample, of everything that computes convolutions or matrix products.
        macs_complete: Whether that is all; otherwise there is work that could not be counted.
        parameters: Weights and biases of these.
    """

    name: str
    file_bytes: int
    nodes: int
    macs: int
    macs_complete: bool
    parameters: int


@dataclass(frozen=True)
class Run:
    """Times of one network under one condition.

    Attributes:
        model: Its name.
        provider: Execution provider.
        threads: Number of threads.
        batch: Samples an input.
        milliseconds: One entry a round.
        speedup: Time of the first network / time of this one, with its interval.
        footprint: What it takes to have it ready.
    """

    model: str
    provider: str
    threads: int
    batch: int
    milliseconds: tuple[float, ...]
    speedup: Interval
    footprint: Footprint

    def percentile(self, share: float) -> float:
        """Return the milliseconds that so many per cent of the rounds take at most."""
        return float(np.percentile(self.milliseconds, share))

    @property
    def throughput(self) -> float:
        """Samples a second, by the median."""
        return 1e3 * self.batch / self.percentile(50)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            **{name: getattr(self, name) for name in ("model", "provider", "threads", "batch")},
            "rounds": len(self.milliseconds),
            "latency_ms": {f"p{share}": self.percentile(share) for share in (10, 50, 90, 99)},
            "throughput": self.throughput,
            "speedup": asdict(self.speedup),
            **asdict(self.footprint),
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Networks side by side; the first is what the others are compared with.

    Attributes:
        facts: One entry a network.
        runs: One entry a network and condition.
        differences: Of the outputs of the networks after the first, one entry each.
        merits: What ``metric`` makes of every network; empty without.
        metric: Its name.
        inputs: What the networks were run on.
        seconds: How long each condition was measured.
    """

    facts: tuple[ModelSummary, ...]
    runs: tuple[Run, ...]
    differences: tuple[Agreement, ...]
    merits: tuple[float, ...]
    metric: str | None
    inputs: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; ``onnxlowrank schema compare`` describes them."""
        found: dict[str, Any] = json_ready(
            {
                "schema": SCHEMA,
                "kind": "compare",
                "models": [asdict(one) for one in self.facts],
                "runs": [run.to_dict() for run in self.runs],
                "differences": [asdict(one) for one in self.differences],
                "metric": None if self.metric is None else {"name": self.metric, "values": self.merits},
                "inputs": self.inputs,
                "seconds": self.seconds,
            }
        )
        return found


def compare(
    models: Sequence[str | os.PathLike[str] | onnx.ModelProto],
    *,
    inputs: Source | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    preprocess: Preprocess | None = None,
    metric: str | FigureOfMerit | None = None,
    outputs: Mapping[str, str] | None = None,
    providers: Sequence[str] = ("cpu",),
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (),
    seconds: float = 10.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Time networks in turns, and compare their outputs.

    Args:
        models: Two or more ONNX files or networks that take the same inputs; the first is the one to compare with.
        inputs: Sample inputs, best with labels, as for :func:`onnxlowrank.optimize`; None makes random ones.
        shapes: Of random inputs, for dimensions that the networks leave open.
        preprocess: How images become inputs.
        metric: A figure of merit, as for :func:`onnxlowrank.optimize`.
        outputs: By the name of an output, how it is measured, as for :func:`onnxlowrank.optimize`.
        providers: Execution providers: ``cpu``, ``cuda``, ``cuda:use_tf32=0``, see :func:`onnxlowrank.optimize`.
        threads: Numbers of threads.
        batches: Numbers of samples an input, where the networks leave that open; empty for that of ``inputs``.
        seconds: About how long every condition is measured.
        seed: Of random inputs.
        progress: Told how far the work is.

    Raises:
        OnnxLowRankError: If a network, the inputs or an option is unusable.
    """
    progress = Silent() if progress is None else progress
    if len(models) < 2:
        raise OptionError("one network is nothing to compare with: give two or more")
    if not (math.isfinite(seconds) and seconds > 0):
        raise OptionError(f"--seconds {seconds:g} makes no sense; give a number above 0, e.g. 10")
    targets = [Target(provider, count) for provider in providers for count in threads]
    for target in targets:
        target.check()
    if min(batches, default=1) < 1:
        raise OptionError(f"--batch {min(batches)} makes no sense; give 1 or more")
    check_metric(metric)
    networks, names = [load(one, any_precision=True) for one in models], _names(models)
    specs = input_specs(networks[0])
    for name, network in zip(names[1:], networks[1:], strict=True):
        check_same_inputs(specs, input_specs(network), names[0], name)
    used = open_or_synthesise(specs, inputs, shapes or {}, preprocess, _RANDOM_INPUTS, seed)

    measures = measures_of(networks[0], used.labels is not None, outputs)
    check_outputs(metric, networks[0], used, measures)
    facts = [_facts(name, network, used) for name, network in zip(names, networks, strict=True)]
    conditions = [(target, batch) for target in targets for batch in batches or (used.batch,)]
    advance = progress.stage("measure", len(conditions))
    runs: list[Run] = []
    for target, batch in conditions:
        feeds = _batch(used, specs, batch)
        times = time_in_sessions(networks, feeds, target, seconds, advance)
        for name, network, mine in zip(names, networks, times, strict=True):
            ratio = Interval(1.0, 1.0, 1.0) if mine is times[0] else speedup_interval(times[0], mine)
            taken = tuple(np.concatenate(mine).tolist())
            size = footprint(network, feeds, target)
            runs.append(Run(name, target.provider, target.threads, batch, taken, ratio, size))
    advance = progress.stage("compare", len(used) * (len(networks) - 1))
    changed = tuple(compared(networks[0], network, used, measures, advance) for network in networks[1:])
    merits = () if metric is None else merits_of(metric, networks, used, measures)
    title = metric if isinstance(metric, str) else getattr(metric, "__name__", None)
    return Comparison(tuple(facts), tuple(runs), changed, merits, title, used.description, seconds)


def _names(models: Sequence[str | os.PathLike[str] | onnx.ModelProto]) -> list[str]:
    """Return short names that tell the networks apart."""
    names = [f"network {i + 1}" if isinstance(one, onnx.ModelProto) else os.fspath(one) for i, one in enumerate(models)]
    short = [os.path.basename(name) for name in names]
    chosen = short if len(set(short)) == len(short) else names
    return [f"{name} ({i + 1})" if chosen.count(name) > 1 else name for i, name in enumerate(chosen)]


def check_same_inputs(one: Sequence[InputSpec], other: Sequence[InputSpec], name: str, other_name: str) -> None:
    """Raise UnsupportedModelError unless two networks take the same inputs."""
    mine, its = ({spec.name: spec for spec in specs} for specs in (one, other))
    for key in {**mine, **its}:
        a, b = mine.get(key), its.get(key)
        same = a is not None and b is not None and a.dtype == b.dtype and len(a.shape) == len(b.shape)
        if not (same and all(None in pair or len(set(pair)) == 1 for pair in zip(a.shape, b.shape, strict=True))):  # type: ignore[union-attr]
            raise UnsupportedModelError(
                f"{name} has {a or f'no input {key!r}'}, {other_name} has {b or f'no input {key!r}'}: "
                "networks to compare take the same inputs"
            )


def _facts(name: str, network: onnx.ModelProto, inputs: Inputs) -> ModelSummary:
    normalised = normalise(unfold_taken_branches(network, inputs))
    layers = with_shapes(normalised, find_layers(normalised), inputs)
    kept = kept_nodes(normalised, layers, inputs)
    macs = sum(layer.macs for layer in layers) + sum(one.macs for one in kept)
    parameters = sum(layer.parameters for layer in layers) + sum(one.parameters for one in kept)
    complete = all(one.is_counted for one in kept)
    return ModelSummary(name, byte_count(network), len(network.graph.node), macs, complete, parameters)


def _batch(inputs: Inputs, specs: Sequence[InputSpec], batch: int) -> Feeds:
    """Return one feed of so many samples: the first inputs, again and again if they are too few."""
    if batch == inputs.batch:
        return inputs[0]
    fixed = next((spec for spec in specs if spec.shape and spec.shape[0] is not None), None)
    if fixed is not None:
        raise UnfitInputsError(f"--batch {batch}: the networks have {fixed}, whose batch is fixed; leave --batch out")
    count = math.ceil(batch / inputs.batch)
    many = joined([inputs[index % len(inputs)] for index in range(count)])
    return {name: value[:batch] for name, value in many.items()}


def compared(
    one: onnx.ModelProto,
    other: onnx.ModelProto,
    inputs: Inputs,
    measures: Sequence[Measure],
    advance: Advance,
    at_once: int = 1,
) -> Agreement:
    """Return how far the outputs of two networks differ; what decides them is looked at where both have it.

    ``at_once`` is that of :func:`onnxlowrank.evaluate.agreement.compare_outputs`.
    """
    if are_identical(inputs):
        why = f"all samples of {inputs.description} are the same, which tells nothing; give --inputs"
        advance(len(inputs))
        return Agreement(len(inputs) * inputs.batch, inputs.description, None, None, not_compared=why)
    outputs = {output.name for output in one.graph.output}
    written = ({name for node in model.graph.node for name in node.output} for model in (one, other))
    both = set.intersection(*written)
    tensors = [measure.tensor for measure in measures if measure.tensor not in outputs and measure.tensor in both]
    inside = (expose(one, tensors), expose(other, tensors)) if tensors else None
    return compare_outputs(one, other, inputs, advance, measures, inside, at_once)

"""What a network has to give, before anything is rewritten: spectra, zeros, suitable passes, error against cost."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.hold_out import hold_out
from onnxlowrank.calibrate.kept_nodes import kept_nodes
from onnxlowrank.calibrate.ready import ready_network
from onnxlowrank.calibrate.shapes import with_fixed_sizes, with_shapes
from onnxlowrank.calibrate.stacking import stacked_inputs
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.errors import MissingInputsError, OptionError
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.goal import FLOAT32, INT8
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.hidden import nothing_found
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.load import describe, load
from onnxlowrank.inputs.evidence import check_varied
from onnxlowrank.inputs.preprocess import Preprocess, preprocess_from_options
from onnxlowrank.inputs.sources import Source, open_or_synthesise
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.inputs.synthetic import check_imaginable
from onnxlowrank.measure.channel_block import channel_block
from onnxlowrank.parallel import one_blas_thread
from onnxlowrank.passes import chosen_passes
from onnxlowrank.passes.base import KEEP, Candidate, Pass, Statistics
from onnxlowrank.plan.applicability import applicable_passes
from onnxlowrank.plan.candidates import find_candidates
from onnxlowrank.plan.knapsack import select_exactly
from onnxlowrank.plan.selection import EnergyLosses, Item, choices_of, lost_energy, pareto
from onnxlowrank.progress import Progress, Silent
from onnxlowrank.result import json_ready
from onnxlowrank.studies.int8_analysis import Int8Analysis, analyse_int8

SCHEMA = 2
_INPUTS = 128
_SPEEDUPS = (1.5, 2.0, 3.0, 4.0, 5.0)
_ENOUGH = 0.95
"""Share of its response's variance that every rewritten layer keeps under the recommended speed-up."""


@dataclass(frozen=True)
class Point:
    """One setting of a pass.

    Attributes:
        method: The pass.
        setting: Its ranks.
        macs: Multiply-accumulates, as a share of the layer's.
        energy: Predicted share of the response's variance that is kept.
    """

    method: str
    setting: tuple[int, ...]
    macs: float
    energy: float


@dataclass(frozen=True)
class LayerAnalysis:
    """What one layer has to give.

    Attributes:
        name: Of the layer.
        op: Its operator.
        shape: Of its weight.
        macs: Multiply-accumulates for one sample.
        spectrum: Share of the response's variance along its first ``k`` principal axes, for ``k = 0 .. F`` (Zhang 2015,
            Fig. 2), on inputs that the axes are not of; empty where no pass suits.
        zeros: Share of zeros behind the activation (Zhang 2015, Table 1); None where that is not the last thing.
        suits: Passes that suit it.
        refusals: Why others do not.
        offers: Settings than which none is cheaper and keeps as much, the cheapest first.
        kept_because: Why it is no layer, but a node that computes convolutions or matrix products; empty for a layer.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    macs: int
    spectrum: tuple[float, ...]
    zeros: float | None
    suits: tuple[str, ...]
    refusals: Mapping[str, str]
    offers: tuple[Point, ...]
    kept_because: str = ""

    def rank(self, energy: float) -> int:
        """Return how many principal axes keep a share of the variance."""
        return int(np.searchsorted(self.spectrum, energy - 1e-12))


@dataclass(frozen=True)
class Analysis:
    """What a network has to give.

    Attributes:
        model: What was analysed.
        inputs: What it was run on.
        layers: One entry a layer, in the order of the graph.
        speedup: The largest of a few theoretical speed-ups at which every rewritten layer is predicted to keep 95 % of
            its response's variance; None where there is none.
        command: What to run next; empty where nothing is recommended.
        int8: What int8 alone gives, and which layers it costs most; None where that was not asked for.
    """

    model: str
    inputs: str
    layers: tuple[LayerAnalysis, ...]
    speedup: float | None
    command: str
    int8: Int8Analysis | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; ``onnxlowrank schema analyze`` describes them."""
        values = {"schema": SCHEMA, "kind": "analyze", **asdict(replace(self, int8=None))}
        values["int8"] = None if self.int8 is None else self.int8.to_dict()
        ready: dict[str, Any] = json_ready(values)
        return ready


def analyze(
    model: str | os.PathLike[str] | onnx.ModelProto,
    *,
    calibration: Source | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    preprocess: Preprocess | None = None,
    passes: Sequence[str] | None = None,
    precision: str = FLOAT32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Analysis:
    """Look at the responses of every layer, and at what every pass could make of it.

    Args:
        model: ONNX file, or the network itself.
        calibration: Sample inputs, of which at most 128 are run; None makes synthetic ones.
        shapes: Of synthetic inputs, for dimensions that the network leaves open.
        preprocess: How images become inputs.
        passes: Names of the methods to look at, or ``["all"]``; None means the usual ones.
        precision: ``int8`` to make the network int8, too, time it and round its layers one by one.
        seed: Of the sampled positions and the synthetic inputs.
        progress: Told how far the work is.

    Raises:
        OnnxLowRankError: If the network, the inputs or an option is unusable.
    """
    progress = Silent() if progress is None else progress
    methods = chosen_passes(passes)
    if precision not in (FLOAT32, INT8):
        raise OptionError(f"analyze --precision {precision}: choose from {FLOAT32}, {INT8}")
    if precision == INT8 and calibration is None:
        raise MissingInputsError(
            "--precision int8 takes the ranges of activations from sample inputs, and none are given; name some with "
            "--calibration"
        )
    original = load(model, half=True)
    specs = input_specs(original)
    if calibration is None:
        check_imaginable(specs, preprocess_from_options("imagenet") if preprocess is None else preprocess)
    inputs = open_or_synthesise(specs, calibration, shapes or {}, preprocess, _INPUTS, seed)
    check_varied(inputs)
    chosen = np.unique(np.linspace(0, len(inputs) - 1, min(_INPUTS, len(inputs))).astype(int))
    inputs = inputs.subset(chosen.tolist())
    normalised = ready_network(original, inputs)
    found_layers = find_layers(normalised)
    if not found_layers:
        raise nothing_found(original, normalised, describe(model))
    layers = with_shapes(normalised, found_layers, inputs)
    kept = kept_nodes(normalised, layers, inputs)
    applicable, _ = applicable_passes(layers, methods, (), (), conv_only=False)
    with RowStore() as store, one_blas_thread():
        stacked = stacked_inputs(original, inputs)
        fixed = with_fixed_sizes(normalised, stacked)
        about = Calibration(fixed, layers, applicable, stacked, store, seed, hold_out(layers, stacked))
        drafts = Drafts(applicable, collect_statistics(about, progress))
        advance = progress.stage("candidates", len(layers))
        candidates, _ = find_candidates(layers, drafts, {}, channel_block("cpu"), advance)
        found = [
            _analysed(layer, methods, drafts.statistics.get(layer.name), candidates[layer.name], store)
            for layer in layers
        ]
        int8 = analyse_int8(original, normalised, inputs, progress) if precision == INT8 else None
    order = {node.name: position for position, node in enumerate(normalised.graph.node)}
    places = [order[layer.nodes[0]] for layer in layers] + [order[one.place] for one in kept]
    found += [LayerAnalysis(one.name, one.op, (), one.macs, (), None, (), {}, (), one.reason) for one in kept]
    in_order = tuple(one for _, one in sorted(zip(places, found, strict=True), key=lambda pair: pair[0]))
    speedup = _recommended(layers, candidates, sum(one.macs for one in kept))
    command = "" if speedup is None else _command(model, calibration, speedup, int8)
    return Analysis(describe(model), inputs.description, in_order, speedup, command, int8)


def _analysed(
    layer: Layer,
    methods: Sequence[Pass],
    statistics: Statistics | None,
    candidates: Sequence[Candidate],
    store: RowStore,
) -> LayerAnalysis:
    refusals = {one.name: one.refusal(layer) for one in methods if layer.op in one.ops}
    spectrum: tuple[float, ...] = ()
    zeros = None
    if statistics is not None:
        spectrum = tuple(statistics.response_energy.tolist())
        zeros = float((layer.common_activation(store.read(layer.name)) == 0).mean())
    front = pareto([Item(one, one.macs, lost_energy(one)) for one in candidates if one.method != KEEP])
    points = (
        Point(one.candidate.method, one.candidate.setting, one.candidate.macs / layer.macs, one.candidate.energy)
        for one in front
    )
    return LayerAnalysis(
        name=layer.name,
        op=layer.op,
        shape=tuple(map(int, layer.weight.shape)),
        macs=layer.macs,
        spectrum=spectrum,
        zeros=zeros,
        suits=tuple(name for name, reason in refusals.items() if reason is None),
        refusals={name: reason for name, reason in refusals.items() if reason is not None},
        offers=tuple(sorted(points, key=lambda point: point.macs)),
    )


def _recommended(layers: Sequence[Layer], candidates: Mapping[str, Sequence[Candidate]], kept: int) -> float | None:
    choices = choices_of(candidates, lambda candidate: candidate.macs, EnergyLosses())
    total = sum(layer.macs for layer in layers) + kept
    best = None
    for speedup in _SPEEDUPS:
        most = total / speedup - kept
        plan = select_exactly(choices, most)
        reached = sum(candidate.macs for candidate in plan.values()) <= most
        if reached and min(candidate.energy for candidate in plan.values()) >= _ENOUGH:
            best = speedup
    return best


def _command(
    model: str | os.PathLike[str] | onnx.ModelProto,
    calibration: Source | None,
    speedup: float,
    int8: Int8Analysis | None,
) -> str:
    name = "in.onnx" if isinstance(model, onnx.ModelProto) else os.fspath(model)
    data = os.fspath(calibration) if isinstance(calibration, str | os.PathLike) else "CALIBRATION"
    options = ["--speedup", f"{speedup:g}", "--calibration", data]
    if int8 is not None:  # what it gives multiplies with what decomposition gives
        options[1] = f"{speedup * max(int8.alone.latency_speedup, 1):.2g}"
        options += ["--precision", "mixed"]
    return shlex.join(["onnxlowrank", "optimize", name, "fast.onnx", *options])

"""The way of the data, top to bottom: load, find layers, calibrate, plan, fit, rewrite, verify, measure, save."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx

from onnxlowrank.calibrate.capture import Spool
from onnxlowrank.calibrate.feeds import Inputs
from onnxlowrank.calibrate.inputs import Source, open_inputs
from onnxlowrank.calibrate.preprocess import Preprocess, preprocess_from_options
from onnxlowrank.calibrate.specs import input_specs
from onnxlowrank.calibrate.synthetic import synthetic_inputs
from onnxlowrank.chain import Chain
from onnxlowrank.choose import Ranks, Suited, offer, set_by_hand, suit
from onnxlowrank.cost.block import channel_block
from onnxlowrank.cost.cache import Cache
from onnxlowrank.cost.chains import ChainTimer, fastest_forms
from onnxlowrank.cost.latency import Latency, measure, ratio
from onnxlowrank.errors import ModelError, OptionError
from onnxlowrank.evaluate import Agreement, compare_outputs
from onnxlowrank.fit import collect_statistics, default_forms, fit_plan
from onnxlowrank.graph.layers import find_layers
from onnxlowrank.graph.load import check_destination, describe, load, save
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.permute import fold_gathers
from onnxlowrank.graph.probe import expose
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.layer import Layer
from onnxlowrank.passes import load_passes
from onnxlowrank.passes.base import KEEP, Candidate
from onnxlowrank.progress import Progress, Silent
from onnxlowrank.result import LayerReport, Result, conv_macs, report_layer, report_model
from onnxlowrank.runtime import Target, all_threads, open_session, running
from onnxlowrank.search import Found, Network, search_plan
from onnxlowrank.select.energy import select_by_energy, select_uniformly
from onnxlowrank.verify import verify_interface
from onnxlowrank.weigh import METRICS, metric_of

SELECTIONS = {"energy": select_by_energy, "uniform": select_uniformly}
TARGETS = ("latency", "macs")
_ATTEMPTS = 2
"""How often a plan is fitted, should the network turn out slower than its outline."""
_SYNTHETIC_INPUTS = 64
_MOST_INPUTS = 3000  # Zhang 2015, Sec. 3.2: "sufficient to randomly sample 3,000 images"
_MOST_HELD_OUT = 64


def optimize(
    model: str | os.PathLike[str] | onnx.ModelProto,
    output: str | os.PathLike[str] | None = None,
    *,
    speedup: float = 2.0,
    target: str = "latency",
    calibration: Source | None = None,
    evaluate: Source | None = None,
    preprocess: Preprocess | None = None,
    provider: str = "cpu",
    threads: int = 1,
    passes: Sequence[str] | None = None,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    ranks: Mapping[str, Ranks] | None = None,
    selection: str = "energy",
    metric: str = "data",
    nonlinear: bool = True,
    asymmetric: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Make a trained network faster by low-rank decomposition of its layers, without training.

    Args:
        model: ONNX file, or the network itself (which is not changed).
        output: Where to write the optimised network; None writes nothing.
        speedup: How many times faster the network is to become, > 1.
        target: What the speed-up is about: measured ``latency`` of the whole network, or the ``macs`` of its
            convolutions.
        calibration: Sample inputs, see :func:`onnxlowrank.calibrate.inputs.open_inputs`; None uses synthetic images.
        evaluate: Inputs, best with labels, on which the networks are compared; None holds out a part of the
            calibration.
        preprocess: How images become inputs; None scales RGB to 0..1 and normalises with the ImageNet mean and
            deviation.
        provider: ``cpu`` or ``cuda``: where latency is measured.
        threads: Number of threads latency is measured with.
        passes: Names of the methods to choose from; None means all.
        only: Patterns (``*`` and ``?``) of the layers to consider; empty means all.
        exclude: Patterns of layers to keep.
        ranks: By layer name, settings by hand, or :class:`onnxlowrank.choose.ByHand`.
        selection: ``energy`` chooses ranks for the whole network (Zhang 2015, Eq. 13-14), ``uniform`` cuts all layers
            alike.
        metric: How the passes of Denton 2014 and Lebedev 2015 weigh errors of a kernel before its last factor is
            refitted to responses: ``data`` covariance, ``frobenius``, or ``mahalanobis`` (gradients of the network,
            through the ``finetune`` extra).
        nonlinear: Whether the fit takes activations into account (Eq. 5); otherwise it compares responses before them.
        asymmetric: Whether layers are fitted on what the rewritten prefix gives (Eq. 12).
        seed: Of the sampled positions and the synthetic images.
        progress: Told how far the work is.

    Raises:
        OnnxLowRankError: If the model, the data or an option is unusable; nothing is written then.

    When the speed-up cannot be reached the fastest sensible network is written, and ``Result.reached`` is False.
    """
    start = time.perf_counter()
    progress = Silent() if progress is None else progress
    where = Target(provider, threads)
    _check_options(speedup, target, selection, metric, seed)
    if output is not None:
        check_destination(model, output)
    where.check()
    methods = load_passes(passes)

    original = load(model)
    open_session(original, all_threads())  # what onnxruntime refuses is refused here, with its reason
    normalised = normalise(original)
    found_layers = find_layers(normalised)
    if not found_layers:
        raise ModelError(
            f"{describe(model)} has no Conv, Gemm or MatMul with a constant float32 weight: nothing to decompose"
        )
    inputs, unseen, notes = _inputs(original, calibration, evaluate, preprocess, seed)
    layers = with_shapes(normalised, found_layers, inputs)
    suited, reasons = suit(layers, methods, only, exclude, target)
    by_hand = set_by_hand(layers, suited, ranks or {})

    with Spool() as spool:
        weigh = metric_of(metric, normalised, layers, suited, inputs, progress)
        statistics = collect_statistics(normalised, layers, suited, inputs, spool, seed, progress, weigh)
        block = channel_block(provider)
        candidates = {}
        advance = progress.stage("offers", len(layers))
        for layer in layers:
            candidates[layer.name] = offer(layer, suited, statistics, by_hand, block)
            advance(1)
        forms = partial(fastest_forms, ChainTimer(where, Cache())) if target == "latency" else default_forms
        wanted = speedup
        for _ in range(_ATTEMPTS):
            if target == "latency":
                select = SELECTIONS[selection]
                network = Network(original, normalised, layers, suited, candidates, forms)
                found = search_plan(network, wanted, select, inputs[0], where, progress)
            else:
                found = plan_by_macs(layers, candidates, speedup, selection)
            chains = fit_plan(
                normalised,
                layers,
                found.plan,
                suited,
                statistics,
                inputs,
                spool,
                seed,
                progress,
                nonlinear,
                asymmetric,
                forms,
            )
            optimised = fold_gathers(rewrite(normalised, layers, chains)) if chains else original
            before, after = _measure(original, optimised, inputs, where, progress)
            measured = ratio(before, after)
            if target == "macs" or not found.reached or measured >= speedup:
                break
            wanted = speedup * found.speedup / measured

    verify_interface(original, optimised)
    agreement = compare_outputs(original, optimised, unseen, progress.stage("compare", len(unseen)))
    result = Result(
        model=optimised,
        requested=speedup,
        measured_by=target,
        reached=found.reached if target == "macs" else measured >= speedup,
        latency_speedup=measured,
        macs_speedup=conv_macs(layers, {}) / max(conv_macs(layers, chains), 1),
        layers=tuple(
            _report_layer(layer, found.plan[layer.name], chains, suited, reasons, candidates) for layer in layers
        ),
        before=report_model(original, layers, {}, before),
        after=report_model(optimised, layers, chains, after),
        agreement=agreement,
        provider=provider,
        threads=threads,
        seconds=time.perf_counter() - start,
        notes=(*notes, *_warnings(agreement)),
    )
    if output is not None:
        save(optimised, output)
    return result


def _check_options(speedup: float, target: str, selection: str, metric: str, seed: int) -> None:
    if not (math.isfinite(speedup) and speedup > 1):
        raise OptionError(f"--speedup {speedup:g} makes no sense; give a number above 1, e.g. 2")
    if target not in TARGETS:
        raise OptionError(f"--target {target} is unknown; choose from {', '.join(TARGETS)}")
    if selection not in SELECTIONS:
        raise OptionError(f"--selection {selection} is unknown; choose from {', '.join(SELECTIONS)}")
    if metric not in METRICS:
        raise OptionError(f"--metric {metric} is unknown; choose from {', '.join(METRICS)}")
    if seed < 0:
        raise OptionError(f"--seed {seed} makes no sense; give 0 or more")


def _inputs(
    model: onnx.ModelProto,
    calibration: Source | None,
    evaluate: Source | None,
    preprocess: Preprocess | None,
    seed: int,
) -> tuple[Inputs, Inputs, tuple[str, ...]]:
    """Return the inputs to fit on, those to compare on, and what the user should know about them."""
    preprocess = preprocess_from_options("imagenet") if preprocess is None else preprocess
    specs = input_specs(model)
    notes = []
    if calibration is None:
        inputs = synthetic_inputs(specs, preprocess, _SYNTHETIC_INPUTS, seed)
        notes.append("no calibration data were given: synthetic images were used; real inputs give better accuracy")
    else:
        inputs = open_inputs(calibration, specs, preprocess)
    if len(inputs) * inputs.batch > _MOST_INPUTS:
        chosen = np.linspace(0, len(inputs) - 1, max(_MOST_INPUTS // inputs.batch, 1)).astype(int)
        used, given = len(chosen) * inputs.batch, len(inputs) * inputs.batch
        if used < given:
            notes.append(f"{used} of {given} calibration inputs were used, evenly spread")
        inputs = inputs.subset(chosen.tolist())
    if evaluate is not None:
        return inputs, open_inputs(evaluate, specs, preprocess), tuple(notes)
    held_out = min(len(inputs) // 8, max(_MOST_HELD_OUT // inputs.batch, 1))
    if not held_out:
        notes.append("too few inputs to hold any out: outputs are compared on inputs the fit has seen")
        return inputs, inputs, tuple(notes)
    unseen = set(np.linspace(0, len(inputs) - 1, held_out).astype(int).tolist())
    rest = [i for i in range(len(inputs)) if i not in unseen]
    return inputs.subset(rest), inputs.subset(sorted(unseen)), tuple(notes)


def with_shapes(model: onnx.ModelProto, layers: Sequence[Layer], inputs: Inputs) -> list[Layer]:
    """Return the layers with the shapes they have on the first input."""
    names = sorted({name for layer in layers for name in (layer.input, layer.output)})
    given = inputs[0]
    read = {name for name in names if name in given}
    computed = [name for name in names if name not in read]
    session = open_session(expose(model, computed), all_threads())
    wanted = {value.name for value in session.get_inputs()}
    with running(given):
        values = session.run(computed, {name: value for name, value in given.items() if name in wanted})
    shapes = {name: value.shape for name, value in zip(computed, values, strict=True)}
    shapes |= {name: given[name].shape for name in read}
    return [replace(one, input_shape=shapes[one.input], output_shape=shapes[one.output]) for one in layers]


def plan_by_macs(
    layers: Sequence[Layer], candidates: Mapping[str, Sequence[Candidate]], speedup: float, selection: str
) -> Found:
    """Return the plan under the papers' convention: the MACs of all convolutions are to fall by the speed-up."""
    convolutions = sum(layer.macs for layer in layers if layer.is_conv)
    others = sum(layer.macs for layer in layers if not layer.is_conv)
    plan = SELECTIONS[selection](candidates, others + convolutions / speedup)
    spent = sum(candidate.cost for candidate in plan.values()) - others
    return Found(plan, convolutions / max(spent, 1), spent * speedup <= convolutions)


def _measure(
    original: onnx.ModelProto, optimised: onnx.ModelProto, inputs: Inputs, where: Target, progress: Progress
) -> tuple[Latency, Latency]:
    advance = progress.stage("measure", 1.0)
    before, after = measure([original, optimised], inputs[0], where, seconds=20.0)
    advance(1.0)
    return before, after


def _warnings(agreement: Agreement) -> list[str]:
    """Return what the user should hear when the outputs have changed much."""
    top1, error = agreement.top1_agreement, agreement.relative_error
    changed = error > 0.3 if top1 is None else top1 < 0.9
    return ["the outputs changed a lot: ask for a smaller speed-up, or give more calibration inputs"] if changed else []


def _report_layer(
    layer: Layer,
    candidate: Candidate,
    chains: Mapping[str, Chain],
    suited: Suited,
    reasons: Mapping[str, str],
    candidates: Mapping[str, Sequence[Candidate]],
) -> LayerReport:
    names = () if candidate.method == KEEP else suited[layer.name][candidate.method].rank_names
    nothing = "no setting is cheaper" if len(candidates[layer.name]) == 1 else "would lose more than it saves"
    return report_layer(layer, candidate, chains.get(layer.name), names, reasons.get(layer.name, nothing))

"""The way of the data, top to bottom: load, find layers, calibrate, plan, fit, rewrite, verify, measure, save."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx

from onnxlowrank.calibrate.capture import Spool
from onnxlowrank.calibrate.hold_out import hold_out
from onnxlowrank.calibrate.kernel_metrics import METRICS, metric_of
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.calibrate.stacking import stacked_inputs
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.errors import ModelError, OptionError
from onnxlowrank.evaluate.agreement import Agreement, compare_outputs
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.fit.fitter import Fitter, default_forms
from onnxlowrank.goal import CONV_MACS, COUNTED, LATENCY, MAX_DROP, MAX_MACS, MAX_SIZE, SPEEDUP, Goal, goal_of
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import FloatArray, Layer
from onnxlowrank.graph.load import check_destination, describe, load, save
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.verify import verify_interface
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.preprocess import Preprocess, preprocess_from_options
from onnxlowrank.inputs.sources import Source, open_inputs
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.inputs.synthetic import synthetic_inputs
from onnxlowrank.measure.cache import Cache
from onnxlowrank.measure.chain_timer import ChainTimer, fastest_forms
from onnxlowrank.measure.channel_block import channel_block
from onnxlowrank.measure.sessions import Target, all_threads, open_session
from onnxlowrank.parallel import one_blas_thread
from onnxlowrank.passes import load_passes
from onnxlowrank.passes.base import KEEP, Candidate, Suited
from onnxlowrank.plan.applicability import suit
from onnxlowrank.plan.candidates import offer_all
from onnxlowrank.plan.energy import select_by_energy, select_uniformly
from onnxlowrank.plan.goals import (
    TOO_FAST,
    Made,
    Workbench,
    reach_conv_macs,
    reach_drop,
    reach_latency,
    reach_macs,
    reach_size,
    reach_speedup,
)
from onnxlowrank.plan.knapsack import select_exactly
from onnxlowrank.plan.latency_model import Prices
from onnxlowrank.plan.manual_ranks import Ranks, set_by_hand
from onnxlowrank.plan.network import Network
from onnxlowrank.plan.selection import Energies, Losses, Select
from onnxlowrank.plan.sensitivity import Sensitivities
from onnxlowrank.progress import Progress, Silent
from onnxlowrank.result import LayerReport, Result, conv_macs, report_layer, report_model

EXACT = "exact"
SELECTIONS: Mapping[str, Select] = {EXACT: select_exactly, "energy": select_by_energy, "uniform": select_uniformly}
_SYNTHETIC_INPUTS = 64
_MOST_INPUTS = 3000  # Zhang 2015, Sec. 3.2: "sufficient to randomly sample 3,000 images"
_MOST_HELD_OUT = 64
_MOST_HELD_OUT_FOR_DROP = 500  # a drop of a point wants a hundred inputs and more to be seen


@dataclass(frozen=True)
class Options:
    """How networks are optimised, whatever the goal; :func:`optimize` says what the options mean."""

    calibration: Source | None = None
    evaluate: Source | None = None
    preprocess: Preprocess | None = None
    provider: str = "cpu"
    threads: int = 1
    passes: Sequence[str] | None = None
    only: Sequence[str] = ()
    exclude: Sequence[str] = ()
    ranks: Mapping[str, Ranks] = field(default_factory=dict)
    selection: str = EXACT
    metric: str = "data"
    nonlinear: bool = True
    asymmetric: bool = True
    seed: int = 0


def optimize(
    model: str | os.PathLike[str] | onnx.ModelProto,
    output: str | os.PathLike[str] | None = None,
    *,
    speedup: float | None = None,
    latency: float | None = None,
    max_drop: float | None = None,
    max_macs: float | None = None,
    max_size: float | None = None,
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
    selection: str = EXACT,
    metric: str = "data",
    nonlinear: bool = True,
    asymmetric: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Make a trained network faster by low-rank decomposition of its layers, without training.

    One goal is given: ``speedup`` (2 where there is none), ``latency``, ``max_drop``, ``max_macs`` or ``max_size``.

    Args:
        model: ONNX file, or the network itself (which is not changed).
        output: Where to write the optimised network; None writes nothing.
        speedup: How many times faster the network is to become, > 1.
        latency: How many milliseconds it may take.
        max_drop: As fast as possible, with at most so many points less top-1 accuracy on ``evaluate``, or where it has
            no labels so many per cent of the inputs in another class.
        max_macs: How many multiply-accumulates it may have, for one sample.
        max_size: How many bytes its file may have.
        target: What the speed-up is about: measured ``latency`` of the whole network, or the ``macs`` of its
            convolutions.
        calibration: Sample inputs, see :func:`onnxlowrank.inputs.sources.open_inputs`; None uses synthetic images.
        evaluate: Inputs, best with labels, on which the networks are compared; None holds out a part of the
            calibration.
        preprocess: How images become inputs; None scales RGB to 0..1 and normalises with the ImageNet mean and
            deviation.
        provider: ``cpu`` or ``cuda``, perhaps with onnxruntime's options, as ``cuda:prefer_nhwc=1:use_tf32=0``: where
            latency is measured.
        threads: Number of threads latency is measured with.
        passes: Names of the methods to choose from; None means all.
        only: Patterns (``*`` and ``?``) of the layers to consider; empty means all.
        exclude: Patterns of layers to keep.
        ranks: By layer name, settings by hand, or :class:`onnxlowrank.plan.candidates.ByHand`.
        selection: ``exact`` minimises what the layers' errors do to the output, measured layer by layer, as a knapsack
            problem; ``energy`` is the greedy choice of Zhang 2015, Eq. 13-14; ``uniform`` cuts all layers alike.
        metric: How the passes of Denton 2014 and Lebedev 2015 weigh errors of a kernel before its last factor is
            refitted to responses: ``data`` covariance, ``frobenius``, or ``mahalanobis`` (gradients of the network,
            through the ``finetune`` extra).
        nonlinear: Whether the fit takes activations into account (Eq. 5); otherwise it compares responses before them.
        asymmetric: Whether layers are fitted on what the rewritten prefix gives (Eq. 12).
        seed: Of the sampled positions and the synthetic images.
        progress: Told how far the work is.

    Raises:
        OnnxLowRankError: If the model, the data or an option is unusable; nothing is written then.

    When the goal cannot be reached the network that comes closest is written, and ``Result.reached`` is False.
    """
    goal = goal_of(speedup, target, latency, max_drop, max_macs, max_size)
    if output is not None:
        check_destination(model, output)
    options = Options(
        calibration=calibration,
        evaluate=evaluate,
        preprocess=preprocess,
        provider=provider,
        threads=threads,
        passes=passes,
        only=only,
        exclude=exclude,
        ranks=ranks or {},
        selection=selection,
        metric=metric,
        nonlinear=nonlinear,
        asymmetric=asymmetric,
        seed=seed,
    )
    (result,) = optimise_each(model, [goal], options, Silent() if progress is None else progress)
    if output is not None:
        save(result.model, output)
    return result


def optimise_each(
    model: str | os.PathLike[str] | onnx.ModelProto, goals: Sequence[Goal], options: Options, progress: Progress
) -> Iterator[Result]:
    """Yield a network for every goal; what does not depend on the goal is done once.

    Args:
        model: ONNX file, or the network itself.
        goals: All of the same kind.
        options: How.
        progress: Told how far the work is.

    Raises:
        OnnxLowRankError: If the model, the data or an option is unusable.
    """
    start = time.perf_counter()
    kind = goals[0].kind
    where = Target(options.provider, options.threads)
    _check_options(options)
    where.check()
    methods = load_passes(options.passes)

    original = load(model)
    open_session(original, all_threads())  # what onnxruntime refuses is refused here, with its reason
    normalised = normalise(original)
    found_layers = find_layers(normalised)
    if not found_layers:
        raise ModelError(
            f"{describe(model)} has no Conv, Gemm or MatMul with a constant float32 weight: nothing to decompose"
        )
    most_held_out = _MOST_HELD_OUT_FOR_DROP if kind == MAX_DROP else _MOST_HELD_OUT
    inputs, unseen, notes = _inputs(original, options, most_held_out)
    layers = with_shapes(normalised, found_layers, inputs)
    suited, reasons = suit(layers, methods, options.only, options.exclude, conv_only=kind == CONV_MACS)
    by_hand = set_by_hand(layers, suited, options.ranks)
    stacked = stacked_inputs(original, inputs)

    with Spool() as spool, one_blas_thread():
        weigh = metric_of(options.metric, normalised, layers, suited, inputs, progress)
        about = Calibration(normalised, layers, suited, stacked, spool, options.seed, hold_out(layers, stacked))
        drafts = Drafts(suited, collect_statistics(about, progress, weigh))
        advance = progress.stage("offers", len(layers))
        candidates = offer_all(layers, drafts, by_hand, channel_block(where.kind), advance)
        losses: Losses = Energies()
        if options.selection == EXACT:
            losses = Sensitivities(about, drafts, candidates, progress)
        timer = ChainTimer(where, Cache())
        forms = default_forms if kind in COUNTED else partial(fastest_forms, timer)
        network = Network(original, normalised, layers, suited, forms, inputs[0], where)
        fitter = Fitter(about, drafts, forms, options.nonlinear, options.asymmetric)
        bench = Workbench(network, candidates, losses, SELECTIONS[options.selection], fitter, progress)
        for goal in goals:
            made = _reach(goal, bench, timer, unseen)
            verify_interface(original, made.model)
            agreement = compare_outputs(original, made.model, unseen, progress.stage("compare", len(unseen)))
            times = _layer_times(network, made)
            yield Result(
                model=made.model,
                goal=goal,
                predicted_speedup=made.predicted,
                latency_speedup=made.speedup,
                macs_speedup=conv_macs(layers, {}) / max(conv_macs(layers, made.chains), 1),
                layers=tuple(
                    _report_layer(layer, made, suited, reasons, candidates, times.get(layer.name)) for layer in layers
                ),
                before=report_model(original, layers, {}, made.before),
                after=report_model(made.model, layers, made.chains, made.after),
                agreement=agreement,
                provider=options.provider,
                threads=options.threads,
                seconds=time.perf_counter() - start,
                notes=(*notes, *_warnings(goal, made.speedup, timer, agreement)),
                first_filters=_first_filters(layers[0], made),
            )
            start = time.perf_counter()


def _reach(goal: Goal, bench: Workbench, timer: ChainTimer, unseen: Inputs) -> Made:
    """Return the network that reaches the goal, or comes closest."""
    if goal.kind == CONV_MACS:
        return reach_conv_macs(bench, goal.value)
    if goal.kind == MAX_MACS:
        return reach_macs(bench, goal.value)
    if goal.kind == MAX_SIZE:
        return reach_size(bench, goal.value)
    network = bench.network
    prices = Prices(network, bench.candidates, bench.losses, timer)
    if goal.kind == LATENCY:
        return reach_latency(bench, prices, goal.value)
    if goal.kind == MAX_DROP:
        return reach_drop(bench, prices, unseen, goal.value)
    return reach_speedup(bench, prices, goal.value)


def _check_options(options: Options) -> None:
    if options.selection not in SELECTIONS:
        raise OptionError(f"--selection {options.selection} is unknown; choose from {', '.join(SELECTIONS)}")
    if options.metric not in METRICS:
        raise OptionError(f"--metric {options.metric} is unknown; choose from {', '.join(METRICS)}")
    if options.seed < 0:
        raise OptionError(f"--seed {options.seed} makes no sense; give 0 or more")


def _inputs(model: onnx.ModelProto, options: Options, most_held_out: int) -> tuple[Inputs, Inputs, tuple[str, ...]]:
    """Return the inputs to fit on, those to compare on, and what the user should know about them."""
    preprocess = preprocess_from_options("imagenet") if options.preprocess is None else options.preprocess
    calibration, evaluate = options.calibration, options.evaluate
    specs = input_specs(model)
    notes = []
    if calibration is None:
        inputs = synthetic_inputs(specs, preprocess, _SYNTHETIC_INPUTS, options.seed)
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
    held_out = min(len(inputs) // 8, max(most_held_out // inputs.batch, 1))
    if not held_out:
        notes.append("too few inputs to hold any out: outputs are compared on inputs the fit has seen")
        return inputs, inputs, tuple(notes)
    unseen = set(np.linspace(0, len(inputs) - 1, held_out).astype(int).tolist())
    rest = [i for i in range(len(inputs)) if i not in unseen]
    return inputs.subset(rest), inputs.subset(sorted(unseen)), tuple(notes)


def _warnings(goal: Goal, speedup: float, timer: ChainTimer, agreement: Agreement) -> list[str]:
    """Return what the user should hear when times are uncertain, the goal is overshot, or the outputs changed much."""
    top1, error = agreement.top1_agreement, agreement.relative_error
    warnings = []
    if goal.kind == SPEEDUP and speedup > TOO_FAST * goal.value:
        warnings.append(
            f"{speedup:.2f}x is more than was asked for, and costs accuracy: times scatter too much to come closer, "
            "or no plan lies between; a new run on an idle machine may find one"
        )
    if timer.noisy:
        warnings.append(
            f"{timer.noisy} of the {timer.timed} chains that were tried in place of layers could be timed to no better "
            "than 2 %; if other work shared the machine, 'onnxlowrank cache --clear' and a new run on an idle one give "
            "a better plan"
        )
    if error > 0.3 if top1 is None else top1 < 0.9:
        warnings.append("the outputs changed a lot: ask for a smaller speed-up, or give more calibration inputs")
    return warnings


def _report_layer(
    layer: Layer,
    made: Made,
    suited: Suited,
    reasons: Mapping[str, str],
    candidates: Mapping[str, Sequence[Candidate]],
    milliseconds: tuple[float, float] | None,
) -> LayerReport:
    candidate = made.plan[layer.name]
    names = () if candidate.method == KEEP else suited[layer.name][candidate.method].rank_names
    nothing = "no setting is cheaper" if len(candidates[layer.name]) == 1 else "no setting saves enough for its loss"
    chain, reason = made.chains.get(layer.name), reasons.get(layer.name, nothing)
    return report_layer(layer, candidate, chain, names, reason, milliseconds)


def _layer_times(network: Network, made: Made) -> dict[str, tuple[float, float]]:
    """Return the milliseconds of every layer inside the network, before and after, where they can be told."""
    before, after = network.layer_times(network.model, made.model)
    return {name: (before[name], after[name]) for name in before}


def _first_filters(first: Layer, made: Made) -> tuple[FloatArray, FloatArray] | None:
    """Return the filters of a first layer that sees an image in colour, as they were and as they are now."""
    if first.weight.ndim != 4 or first.inputs != 3 or first.group != 1:
        return None
    chain = made.chains.get(first.name)
    return first.weight, first.weight if chain is None else chain.dense_kernel().reshape(first.weight.shape)

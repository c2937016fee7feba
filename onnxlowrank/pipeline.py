"""The way of the data, top to bottom: load, find layers, calibrate, plan, fit, rewrite, verify, measure, save."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import onnx

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.hold_out import enough, fewer_note, hold_out
from onnxlowrank.calibrate.kept_nodes import kept_nodes
from onnxlowrank.calibrate.kernel_metrics import METRICS, metric_of
from onnxlowrank.calibrate.ready import branch_notes, ready_network
from onnxlowrank.calibrate.shapes import with_fixed_sizes, with_shapes
from onnxlowrank.calibrate.stacking import stacked_inputs
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.destinations import OUTPUT, check_destinations
from onnxlowrank.errors import OptionError
from onnxlowrank.evaluate.figure_of_merit import FigureOfMerit, check_outputs
from onnxlowrank.evaluate.measures import measures_of
from onnxlowrank.finish import training_data, tuned_network
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.fit.sweeps import Sweeps
from onnxlowrank.goal import CONV_MACS, COUNTED, FLOAT32, FP16, MAX_DROP, MAX_MACS, MIXED, QUANTISED, Goal, goal_of
from onnxlowrank.graph.chance import with_seeds
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.hidden import hidden_layers, nothing_found
from onnxlowrank.graph.load import describe, load, save
from onnxlowrank.graph.outside import byte_count
from onnxlowrank.graph.verify import verify_interface
from onnxlowrank.graph.widen import is_half
from onnxlowrank.inputs.partition import partition_inputs
from onnxlowrank.inputs.preprocess import Preprocess
from onnxlowrank.inputs.sources import Source
from onnxlowrank.measure.cache import Cache
from onnxlowrank.measure.chain_timer import ChainTimer
from onnxlowrank.measure.channel_block import channel_block
from onnxlowrank.measure.lowerings import Lowerings
from onnxlowrank.measure.sessions import all_threads, open_session, running
from onnxlowrank.options import BLOCKS, EXACT, SELECTIONS, Options
from onnxlowrank.parallel import one_blas_thread
from onnxlowrank.passes import chosen_passes
from onnxlowrank.plan.applicability import applicable_passes
from onnxlowrank.plan.builder import NetworkBuilder
from onnxlowrank.plan.candidates import find_candidates
from onnxlowrank.plan.drop import split_for_drop
from onnxlowrank.plan.goals import network_for
from onnxlowrank.plan.held_out_loss import HeldOutLoss
from onnxlowrank.plan.int8_alone import Int8Alone
from onnxlowrank.plan.int8_losses import Int8Losses
from onnxlowrank.plan.manual_ranks import Ranks, manual_ranks
from onnxlowrank.plan.mixed_goals import mixed_network_for
from onnxlowrank.plan.network import FP16_SUBJECT, INT8_SUBJECT, Network
from onnxlowrank.plan.notes import folding_notes, warnings_of
from onnxlowrank.plan.selection import EnergyLosses, Losses
from onnxlowrank.plan.sensitivity import SensitivityLosses
from onnxlowrank.progress import Progress, Silent
from onnxlowrank.quantize.half import Half
from onnxlowrank.quantize.int8 import int8_of, ready_for_int8
from onnxlowrank.result import NOT_FINITE, Result, result_of

_MOST_HELD_OUT = 64
_MOST_HELD_OUT_FOR_DROP = 500  # a drop of a point wants a hundred inputs and more to be seen


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
    dequantize: bool = False,
    calibration: Source | None = None,
    evaluate: Source | None = None,
    preprocess: Preprocess | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    outputs: Mapping[str, str] | None = None,
    provider: str = "cpu",
    threads: int = 1,
    precision: str = FLOAT32,
    int8_weights: str | None = None,
    passes: Sequence[str] | None = None,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    ranks: Mapping[str, Ranks] | None = None,
    selection: str = EXACT,
    metric: str | FigureOfMerit | None = None,
    kernel_metric: str = "data",
    nonlinear: bool = True,
    asymmetric: bool = True,
    tune: str | None = None,
    seed: int = 0,
    finetune: float | None = None,
    cascade: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Make a trained network faster by low-rank decomposition of its layers, without training.

    One goal is given: ``speedup`` (2 where there is none), ``latency``, ``max_drop``, ``max_macs`` or ``max_size``.
    From ``dequantize`` to ``cascade`` the arguments are those of :class:`onnxlowrank.options.Options`; ``metric``
    may also name a kernel metric.

    Args:
        model: ONNX file, or the network itself (which is not changed).
        output: Where to write the optimised network; None writes nothing.
        speedup: How many times faster the network is to become, > 1.
        latency: How many milliseconds it may take.
        max_drop: As fast as possible, with at most so many points less top-1 accuracy on ``evaluate``, where it has no
            labels so many per cent of the inputs in another class, or so much less of ``metric``; known with 95 %
            confidence on inputs that chose nothing.
        max_macs: How many multiply-accumulates it may have, for one sample.
        max_size: How many bytes its file may have.
        target: What the speed-up is about: measured ``latency`` of the whole network, or the ``macs`` of its
            convolutions.
        progress: Told how far the work is.

    Raises:
        OnnxLowRankError: If the model, the data or an option is unusable; nothing is written then.

    When the goal cannot be reached the network that comes closest is written, and ``Result.reached`` is False.
    """
    goal = goal_of(speedup, target, latency, max_drop, max_macs, max_size)
    check_destinations({OUTPUT: output}, [model], {"--calibration": calibration, "--evaluate": evaluate})
    options = Options(
        dequantize=dequantize,
        calibration=calibration,
        evaluate=evaluate,
        preprocess=preprocess,
        shapes=shapes or {},
        outputs=outputs or {},
        provider=provider,
        threads=threads,
        precision=precision,
        int8_weights=int8_weights,
        passes=passes,
        only=only,
        exclude=exclude,
        ranks=ranks or {},
        selection=selection,
        metric=None if metric in METRICS else metric,
        kernel_metric=str(metric) if metric in METRICS else kernel_metric,
        nonlinear=nonlinear,
        asymmetric=asymmetric,
        tune=tune,
        seed=seed,
        finetune=finetune,
        cascade=cascade,
    )
    (result,) = optimize_each(model, [goal], options, Silent() if progress is None else progress)
    if output is not None:
        save(result.model, output)
    return result


def approximated(model: onnx.ModelProto, options: Options) -> onnx.ModelProto:
    """Return a network with all the ranks that are given by hand."""
    (result,) = optimize_each(model, [Goal(MAX_MACS, 1.0)], options, Silent())  # so few that all are taken
    return result.model


def optimize_each(
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
    kind, where = goals[0].kind, options.target
    options.check()
    methods = chosen_passes(options.passes)
    if options.precision == MIXED and kind in COUNTED:
        raise OptionError(
            "--precision mixed weighs time against accuracy: it is for a measured --speedup, --latency or --max-drop; "
            "use --precision int8 here"
        )

    original = load(model, dequantize=options.dequantize, half=True)
    session = open_session(original, all_threads())  # what onnxruntime refuses is refused here, with its reason
    most_held_out = _MOST_HELD_OUT_FOR_DROP if kind == MAX_DROP else _MOST_HELD_OUT
    given = partition_inputs(
        original, options.calibration, options.evaluate, options.preprocess, options.shapes, most_held_out, options.seed
    )
    inputs, unseen, choosing = given.calibration, given.unseen, given.unseen
    data = training_data(original, inputs, options)
    normalised = ready_network(original, inputs)
    if options.precision in QUANTISED:
        normalised = ready_for_int8(normalised)
    found_layers = find_layers(normalised)
    if not found_layers:
        raise nothing_found(original, normalised, describe(model))
    with running(inputs[0], given.synthetic):
        session.run(None, inputs[0])
    del session
    layers = with_shapes(normalised, found_layers, inputs)
    kept = kept_nodes(normalised, layers, inputs)
    applicable, reasons = applicable_passes(layers, methods, options.only, options.exclude, conv_only=kind == CONV_MACS)
    by_hand = manual_ranks(layers, applicable, options.ranks)
    measures = measures_of(normalised, given.labelled, options.outputs)
    check_outputs(options.metric, original, unseen, measures)
    if kind == MAX_DROP:
        unseen, choosing = split_for_drop(unseen, goals[0].value, measures, options.metric)
    used = enough(layers, inputs)
    stacked, fewer = stacked_inputs(original, used), fewer_note(used, inputs)

    with RowStore() as store, one_blas_thread():
        metric = metric_of(options.kernel_metric, normalised, layers, applicable, inputs, progress)
        calibration = Calibration(
            with_seeds(with_fixed_sizes(normalised, stacked), options.seed),
            layers,
            applicable,
            stacked,
            store,
            options.seed,
            hold_out(layers, stacked),
        )
        drafts = Drafts(applicable, collect_statistics(calibration, progress, metric))
        reasons |= dict.fromkeys(applicable.keys() - drafts.applicable.keys(), NOT_FINITE)
        advance = progress.stage("candidates", len(layers))
        candidates, without = find_candidates(layers, drafts, by_hand, channel_block(where.kind), advance)
        reasons |= without
        losses: Losses = EnergyLosses()
        if options.selection == EXACT:
            losses = SensitivityLosses(calibration, drafts, candidates, measures, progress)
        int8 = None
        if options.precision in QUANTISED:
            judged = [one.tensor for one in measures]
            int8 = int8_of(normalised, layers, stacked, judged, options.weight_bits, progress)
            if options.selection == EXACT:
                losses = Int8Losses(losses, int8, calibration, drafts, candidates, measures, progress)
        times, at_once = Cache(), stacked.batch // inputs.batch
        half = Half(stacked) if int8 is None and (options.precision == FP16 or is_half(original)) else None
        timer = ChainTimer(where, times)
        if int8 is not None:
            timer = ChainTimer(where, times, int8.outline, INT8_SUBJECT)
        elif half is not None:
            timer = ChainTimer(where, times, half.outline, FP16_SUBJECT)
        lowering = Lowerings(None if kind in COUNTED else timer)
        network = Network(
            original,
            normalised,
            layers,
            applicable,
            lowering,
            inputs[0],
            where,
            measures,
            options.metric,
            kept,
            times,
            at_once,
            int8,
            half,
        )
        fitter = Fitter(calibration, drafts, lowering, options.nonlinear, options.asymmetric)
        sweeps = None
        if options.tune == BLOCKS and calibration.held_out:
            sweeps = Sweeps(calibration, HeldOutLoss(calibration, measures), options.nonlinear)
        select = SELECTIONS[options.selection]
        builder = NetworkBuilder(network, candidates, losses, select, fitter, progress, sweeps)
        alone, int8_alone = builder.alone(), None
        if alone is not None and int8 is not None:
            differs = network.compare(alone.model, {}, unseen, progress.stage("compare", len(unseen)))
            int8_alone = Int8Alone(alone.speedup, byte_count(alone.model), differs)
        for goal in goals:
            find = mixed_network_for if options.precision == MIXED else network_for
            fitted = find(goal, builder, timer, unseen, choosing, alone)
            tuned, said = tuned_network(fitted, network, data, (inputs, unseen), options, approximated, progress)
            if tuned is not None:
                fitted = replace(fitted, model=tuned.model)
            verify_interface(original, fitted.model)
            chains = fitted.chains if tuned is None else None
            agreement = network.compare(fitted.model, chains, unseen, progress.stage("compare", len(unseen)))
            notes = (
                *given.notes,
                *said,
                *fewer,
                *hidden_layers(original),
                *branch_notes(normalised),
                *folding_notes(network, alone),
                *warnings_of(goal, fitted, network, timer, agreement),
            )
            about = options.precision, reasons, agreement, notes, start, int8_alone
            found = result_of(goal, fitted, network, *about)
            yield found if tuned is None else replace(found, is_interrupted=tuned.is_interrupted)
            start = time.perf_counter()

"""Int8 and low rank, each alone, one after the other, and planned together: speed and what is lost, a table and a plot.

    python benchmarks/precision.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz \
        --speedups 2,3 --int8-speedups 4,5,6 --plot precision.svg

For each of ``--speedups`` a plan of the float32 network is made, as the tool makes it, and its fitted network becomes
int8 in all ways: inner maps of chains equalised or not, biases moved, weights rounded anew, or neither; with
``--ranges`` also with ranges by the ends and by percentiles. Beside these stands what the tool makes of ``--precision
int8`` and ``mixed``, planned for each of ``--int8-speedups``; with nothing said, for those that the two steps reached.
All networks are timed in turns with the float32 original. ``--ways`` leaves out what takes long.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import onnx
from common import LOST, agreement, arguments, lost, prepare, ready_copy, some_inputs
from matplotlib.figure import Figure
from tables import Cell, result_name, write_results

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.goal import SPEEDUP, WEIGHT_BITS, Goal
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.hardware import adds_int8_exactly
from onnxlowrank.measure.interleaved import speedup_interval, time_in_sessions
from onnxlowrank.plan.builder import NetworkBuilder
from onnxlowrank.plan.goals import network_for_speedup
from onnxlowrank.plan.knapsack import select_exactly
from onnxlowrank.plan.latency_model import LatencyModel
from onnxlowrank.plan.mixed_goals import mixed_network_for
from onnxlowrank.plan.network import INT8_SUBJECT, Network
from onnxlowrank.progress import Silent
from onnxlowrank.quantize.int8 import BIASES, WEIGHTS, Int8, observed_ranges
from onnxlowrank.quantize.ranges import Ranging, least_squares, percentile, whole

COLUMNS = {
    "network": "",
    "ranges": "",
    "equalised": "",
    "refitted": "",
    "speed-up": "{:.2f}x",
    "relative error": "{:.4f}",
    **LOST,
}
RANGINGS: dict[str, Ranging] = {"least squares": least_squares, "ends": whole, "percentiles": percentile}
DECOMPOSED, ALONE, STEPS, TOGETHER, MIXED = (
    "decomposed",
    "int8 alone",
    "decomposed, then int8",
    "planned together",
    "mixed precision",
)
SECONDS = 6.0


def int8_of(network: Network, inputs: Inputs, ranging: Ranging, equalise: bool, refit: str, bits: int) -> Int8:
    """Return what makes int8 networks of a network in one of the ways."""
    ranges = observed_ranges(network.model, inputs, ranging)
    return Int8(network.model, network.layers, inputs, ranges, (), bits, ranging, equalise, refit)


def plot(rows: Sequence[Sequence[Cell]], path: str) -> None:
    """Draw what is lost over the speed-up: points of accuracy, or the relative error where there are no labels."""
    column = list(COLUMNS).index("relative error" if any(row[6] is None for row in rows) else next(iter(LOST)))
    figure = Figure((7.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for way in (DECOMPOSED, ALONE, STEPS, TOGETHER, MIXED):
        points = [(row[4][0], row[column]) for row in rows if row[0] == way or str(row[0]).rpartition(", ")[0] == way]
        if points:
            axes.plot(*zip(*sorted(points), strict=True), "o", label=way)
    axes.set_xlabel("speed-up over the float32 original")
    axes.set_ylabel(list(COLUMNS)[column])
    axes.grid(alpha=0.25)
    axes.legend()
    figure.savefig(path)


def floats(text: str) -> list[float]:
    """Return numbers between commas."""
    return [float(one) for one in text.split(",")]


def options() -> argparse.Namespace:
    """Return what the user says."""
    parser = arguments(__doc__, test_inputs=1000)
    parser.add_argument("--speedups", type=floats, default=[3.0], help="of the float32 networks")
    parser.add_argument("--int8-speedups", type=floats, help="of the int8 ones that are planned as such, e.g. 5,6")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ranges", action="store_true", help="also ranges by the ends and by percentiles")
    parser.add_argument("--ways", default="", help=f"only those that contain one of these, of {ALONE}, {STEPS}, "
                        f"{TOGETHER}, {MIXED}, e.g. alone,mixed")  # fmt: skip
    parser.add_argument("--plot", help="write a plot, e.g. precision.svg")
    parser.add_argument("--int8-weights", choices=list(WEIGHT_BITS), default="8bit" if adds_int8_exactly() else "7bit")
    return parser.parse_args()


def main() -> None:
    args = options()
    bits, name = WEIGHT_BITS[args.int8_weights], result_name(args)
    title_of_all = f"Int8 and low rank: {Path(args.model).stem}, weights of {bits} bits, {args.threads} thread(s)"
    rows: list[list[Cell]] = []
    scratch = ready_copy(args)

    def is_wanted(way: str) -> bool:
        return any(part in way for part in args.ways.split(","))

    with RowStore() as store:
        prepared = prepare(args, store)
        test = some_inputs(args, prepared.original, args.test, args.test_inputs)
        losses, fitter = prepared.sensitivities(), prepared.fitter(args.threads)
        network, inputs = prepared.network(args.threads), prepared.about.inputs

        def show(title: str, model: onnx.ModelProto, *how: str) -> float:
            both = (prepared.original, model)
            times = time_in_sessions(both, network.feeds, network.target, SECONDS, fewest=3)
            found, differs = speedup_interval(*times), agreement(prepared.original, model, test)
            rows.append([title, *how, [found.ratio, found.low, found.high], differs.relative_error, *lost(differs)])
            if args.plot:
                plot(rows, args.plot)
            write_results(args, name, title_of_all, COLUMNS, rows, plot=args.plot)
            return found.ratio

        def ways() -> Iterator[tuple[list[str], Int8]]:
            rangings = RANGINGS.items() if args.ranges else [("least squares", least_squares)]
            for (title, ranging), equalise, refit in product(rangings, (False, True), ("", BIASES, WEIGHTS)):
                how = [title, "yes" if equalise else "", refit]
                yield how, int8_of(network, inputs, ranging, equalise, refit, bits)

        if is_wanted(ALONE):
            for how, int8 in ways():
                if not int8.equalise:
                    show(ALONE, int8.network({}, network.written, Silent()), *how)
        builder = NetworkBuilder(network, prepared.candidates, losses, select_exactly, fitter, Silent())
        latency_model, reached = prepared.latency_model(args.threads, losses=losses), []
        for speedup in args.speedups:
            decomposed = network_for_speedup(builder, latency_model, speedup)
            show(f"{DECOMPOSED}, {speedup:g}x", decomposed.model, "", "", "")
            if is_wanted(STEPS) or args.int8_speedups is None:
                for how, int8 in ways():
                    model = int8.network(decomposed.chains, network.written, Silent())
                    ratio = show(f"{STEPS}, {speedup:g}x", model, *how)
                reached.append(ratio)
        int8 = int8_of(network, inputs, least_squares, True, WEIGHTS, bits)
        together = replace(network, int8=int8, measures=prepared.measures)
        timer, rounded = prepared.timer(args.threads, int8.outline, INT8_SUBJECT), prepared.int8_losses(losses, int8)
        builder = NetworkBuilder(together, prepared.candidates, rounded, select_exactly, fitter, Silent())
        alone, how = builder.alone(), ("least squares", "yes", WEIGHTS)
        model_of_int8 = LatencyModel(together, prepared.candidates, rounded, timer)
        for speedup in args.int8_speedups or reached:
            if is_wanted(TOGETHER):
                made = network_for_speedup(builder, model_of_int8, speedup, alone)
                show(f"{TOGETHER}, {speedup:.3g}x", made.model, *how)
            if is_wanted(MIXED):
                made = mixed_network_for(Goal(SPEEDUP, speedup), builder, timer, inputs, inputs, alone)
                show(f"{MIXED}, {speedup:.3g}x", made.model, *how)
    scratch.remove()


if __name__ == "__main__":
    main()

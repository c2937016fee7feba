"""Int8 and low rank, each alone, one after the other, and planned together: speed and what is lost, as a table.

    python benchmarks/precision.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz \
        --speedup 3 --int8-speedup 5

One plan of the float32 network is made for ``--speedup``, as the tool makes it, and its fitted network becomes int8 in
all ways: ranges by the ends, by percentiles or of least mean square, inner maps of chains equalised or not, biases
moved, weights rounded anew, or neither. Beside it stands what the tool makes of ``--precision int8``, planned in int8
for each of ``--int8-speedup``; with nothing said, for the speed-up that the two steps reached. All networks are timed
in turns with the float32 original.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import onnx
from common import LOST, agreement, arguments, lost, prepare, some_inputs
from tables import Cell, result_name, write_results

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.goal import WEIGHT_BITS
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.hardware import adds_int8_exactly
from onnxlowrank.measure.interleaved import speedup_interval, time_in_sessions
from onnxlowrank.plan.builder import NetworkBuilder
from onnxlowrank.plan.goals import network_for_speedup
from onnxlowrank.plan.knapsack import select_exactly
from onnxlowrank.plan.latency_model import LatencyModel
from onnxlowrank.plan.network import INT8_SUBJECT, Network
from onnxlowrank.progress import Silent
from onnxlowrank.quantize.int8 import BIASES, WEIGHTS, Int8, observed_ranges, ready_for_int8
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
RANGINGS: dict[str, Ranging] = {"ends": whole, "percentiles": percentile, "least squares": least_squares}
SECONDS = 6.0


def int8_of(network: Network, inputs: Inputs, ranging: Ranging, equalise: bool, refit: str, bits: int) -> Int8:
    """Return what makes int8 networks of a network in one of the ways."""
    ranges = observed_ranges(network.model, inputs, ranging)
    return Int8(network.model, network.layers, inputs, ranges, (), bits, ranging, equalise, refit)


def main() -> None:
    parser = arguments(__doc__, test_inputs=1000)
    parser.add_argument("--speedup", type=float, default=3.0, help="of the float32 network")
    parser.add_argument("--int8-speedup", help="of the int8 ones that are planned as such, e.g. 5,6")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--int8-weights", choices=list(WEIGHT_BITS), default="8bit" if adds_int8_exactly() else "7bit")
    args = parser.parse_args()
    bits = WEIGHT_BITS[args.int8_weights]
    rows: list[list[Cell]] = []
    with RowStore() as store:
        prepared = prepare(args, store)
        test = some_inputs(args, prepared.original, args.test, args.test_inputs)
        losses, fitter = prepared.sensitivities(), prepared.fitter(args.threads)
        network = prepared.network(args.threads)
        if ready_for_int8(network.model) is not network.model:
            parser.error("the network needs an opset of 13 or newer")
        inputs = prepared.about.inputs

        def show(title: str, model: onnx.ModelProto, *how: str) -> float:
            both = (prepared.original, model)
            times = time_in_sessions(both, network.feeds, network.target, SECONDS, fewest=3)
            found, differs = speedup_interval(*times), agreement(prepared.original, model, test)
            rows.append([title, *how, [found.ratio, found.low, found.high], differs.relative_error, *lost(differs)])
            print(rows[-1], flush=True)
            return found.ratio

        def ways() -> Iterator[tuple[list[str], Int8]]:
            for (name, ranging), equalise, refit in product(RANGINGS.items(), (False, True), ("", BIASES, WEIGHTS)):
                how = [name, "yes" if equalise else "", refit]
                yield how, int8_of(network, inputs, ranging, equalise, refit, bits)

        builder = NetworkBuilder(network, prepared.candidates, losses, select_exactly, fitter, Silent())
        latency_model = prepared.latency_model(args.threads, losses=losses)
        decomposed = network_for_speedup(builder, latency_model, args.speedup)
        show("decomposed", decomposed.model, "", "", "")
        for how, int8 in ways():
            if not int8.equalise:
                show("int8 alone", int8.network({}, network.written, Silent()), *how)
        reached = 0.0
        for how, int8 in ways():
            model = int8.network(decomposed.chains, network.written, Silent())
            reached = show("decomposed, then int8", model, *how)
        int8 = int8_of(network, inputs, least_squares, True, WEIGHTS, bits)
        together = replace(network, int8=int8)
        timer = prepared.timer(args.threads, int8.outline, INT8_SUBJECT)
        model_of_int8 = LatencyModel(together, prepared.candidates, losses, timer)
        builder = NetworkBuilder(together, prepared.candidates, losses, select_exactly, fitter, Silent())
        asked = [reached] if args.int8_speedup is None else list(map(float, args.int8_speedup.split(",")))
        for speedup in asked:
            made = network_for_speedup(builder, model_of_int8, speedup, builder.int8_alone())
            show(f"planned together, {speedup:.3g}x asked for", made.model, "least squares", "yes", WEIGHTS)
    title = f"Int8 and low rank, {args.speedup:g}x in float32, weights of {bits} bits, {args.threads} thread(s)"
    write_results(args, result_name(args, f"{args.speedup:g}x"), title, COLUMNS, rows)


if __name__ == "__main__":
    main()

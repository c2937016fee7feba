"""How well the latency model predicts the time of a whole network: random plans, predicted and measured.

    python benchmarks/predictions.py models/vgg_cifar10.onnx models/cifar10_calibration.npz
    python benchmarks/predictions.py models/vgg_cifar10.onnx models/cifar10_calibration.npz --precision int8

Of every layer a random candidate of those that no other beats. The latency model is calibrated on one plan more, as it
is by the first outline of every search.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from common import Prepared, arguments, prepare, ready_copy
from tables import result_name, write_results

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.goal import FLOAT32, INT8, WEIGHT_BITS
from onnxlowrank.measure.hardware import adds_int8_exactly
from onnxlowrank.measure.interleaved import measure_in_sessions
from onnxlowrank.measure.latency import median_speedup
from onnxlowrank.measure.lowerings import Lowerings
from onnxlowrank.plan.latency_model import LatencyModel
from onnxlowrank.plan.network import INT8_SUBJECT, Network
from onnxlowrank.plan.selection import EnergyLosses
from onnxlowrank.progress import Silent
from onnxlowrank.quantize.int8 import int8_of

COLUMNS = {"threads": "{}", "plans": "{}", "error (median)": "{:.1f} %", "error (largest)": "{:.1f} %"}


def in_int8(prepared: Prepared, network: Network) -> tuple[Network, LatencyModel]:
    """Return a network, and its latency model, whose plans are timed as int8 networks."""
    bits, threads = WEIGHT_BITS["8bit" if adds_int8_exactly() else "7bit"], network.target.threads
    int8 = int8_of(network.model, network.layers, prepared.about.inputs, (), bits, Silent())
    timer = prepared.timer(threads, int8.outline, INT8_SUBJECT)
    network = replace(network, int8=int8, lowering=Lowerings(timer))
    return network, LatencyModel(network, prepared.candidates, EnergyLosses(), timer)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=[FLOAT32, INT8], default=FLOAT32, help="what plans are timed in")
    args = parser.parse_args()
    name, title = result_name(args), Path(args.model).stem
    if args.precision == INT8:
        name, title = result_name(args, INT8), f"{title} in int8"
    rng = np.random.default_rng(args.seed)
    errors = []
    scratch = ready_copy(args) if args.precision == INT8 else None
    with RowStore() as store:
        prepared = prepare(args, store)
        network = prepared.network(args.threads)
        if scratch is None:
            latency_model = prepared.latency_model(args.threads)
        else:
            network, latency_model = in_int8(prepared, network)
        for index in range(args.plans + 1):
            choices = latency_model.choices()
            plan = {layer: items[rng.integers(len(items))].candidate for layer, items in choices.items()}
            latency_model.learn(plan)
            pair = [network.original, network.outline(plan)]
            measured = median_speedup(*measure_in_sessions(pair, network.feeds, network.target, seconds=3.0))
            predicted = latency_model.whole / latency_model.total(plan)
            if not index:
                latency_model.calibrate(plan, latency_model.whole / measured)
                print(f"calibrated: predicted {predicted:.3f}x, measured {measured:.3f}x", flush=True)
                continue
            errors.append(measured / predicted - 1)
            print(
                f"{index}: predicted {predicted:.3f}x, measured {measured:.3f}x, {100 * errors[-1]:+.1f} %", flush=True
            )
    sizes = np.abs(errors)
    row = [args.threads, len(sizes), 100 * np.median(sizes), 100 * np.max(sizes)]
    title = f"Predicted and measured times of random plans: {title}"
    write_results(args, name, title, COLUMNS, [row])


if __name__ == "__main__":
    main()

"""How well the latency model predicts the time of a whole network: random plans, predicted and measured.

    python benchmarks/predictions.py models/vgg_cifar10.onnx models/cifar10_calibration.npz

Of every layer a random candidate of those that no other beats. The latency model is calibrated on one plan more, as it
is by the first outline of every search.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import arguments, prepare
from tables import result_name, write_results

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.measure.interleaved import measure_in_sessions
from onnxlowrank.measure.latency import median_speedup

COLUMNS = {"threads": "{}", "plans": "{}", "error (median)": "{:.1f} %", "error (largest)": "{:.1f} %"}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    errors = []
    with RowStore() as store:
        prepared = prepare(args, store)
        network, latency_model = prepared.network(args.threads), prepared.latency_model(args.threads)
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
    title = f"Predicted and measured times of random plans: {Path(args.model).stem}"
    write_results(args, result_name(args), title, COLUMNS, [row])


if __name__ == "__main__":
    main()

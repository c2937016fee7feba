"""What ``onnxlowrank optimize --speedup`` makes of a network: speed, accuracy, and how long it takes.

    python benchmarks/whole_run.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz

Times that an earlier run has remembered make it shorter: ``ONNXLOWRANK_CACHE`` names another folder for them.
"""

from __future__ import annotations

from pathlib import Path

from common import LOST, arguments, lost, some_inputs
from tables import result_name, write_results

import onnxlowrank
from onnxlowrank.graph.load import load

COLUMNS = {
    "calibrated on": "{} inputs",
    "compared on": "{} inputs",
    "asked for": "{:g}x",
    "measured": "{:.2f}x",
    "top-1 before": "{:.2f} %",
    "top-1 after": "{:.2f} %",
    **LOST,
    "whole run (s)": "{:.0f}",
}


def main() -> None:
    parser = arguments(__doc__, inputs=1000, test_inputs=2000)
    parser.add_argument("--speedup", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    original = load(args.model)
    inputs = some_inputs(args, original, args.calibration, args.inputs)
    test = some_inputs(args, original, args.test, args.test_inputs)
    made = onnxlowrank.optimize(original, speedup=args.speedup, calibration=inputs, evaluate=test, threads=args.threads)
    top1 = [None, None] if made.agreement.accuracy is None else [100 * one for one in made.agreement.accuracy]
    speeds = args.speedup, made.latency_speedup
    row = [len(inputs), len(test), *speeds, *top1, *lost(made.agreement), made.seconds]
    title = f"Whole run: {Path(args.model).stem}"
    write_results(args, result_name(args), title, COLUMNS, [row])


if __name__ == "__main__":
    main()

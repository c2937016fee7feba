"""Channel pruning beside and inside decompositions, at an equal measured speed-up: "3C" of He et al. 2017, and 3D.

    net="models/vgg_cifar10.onnx models/cifar10_calibration.npz"; test=models/cifar10_test.npz
    python benchmarks/pruning.py $net $test --speedups 3,4 --int8-speedups 5

Every set of passes is taken to the speed-up as the tool does it, in float32 and in int8, fully connected layers by
``fully_connected``. What comes out is timed once more, in turns with the original.
"""

from __future__ import annotations

from common import LOST, agreement, arguments, lost, preprocess
from tables import Cell, result_name, write_results

import onnxlowrank
from onnxlowrank.goal import FLOAT32, INT8
from onnxlowrank.graph.load import load
from onnxlowrank.inputs.sources import open_inputs
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.measure.interleaved import speedup_interval, time_in_sessions
from onnxlowrank.measure.sessions import Target

_OTHERS = ("channel", "spatial", "asymmetric3d", "svd")
SETS = {
    "3D (asymmetric3d)": ("asymmetric3d",),
    "3C (pruned_asymmetric3d)": ("pruned_asymmetric3d",),
    "both": ("asymmetric3d", "pruned_asymmetric3d"),
    "channel_prune": ("channel_prune",),
    "channel, spatial, 3D, svd": _OTHERS,
    "these and both that prune": (*_OTHERS, "channel_prune", "pruned_asymmetric3d"),
}
COLUMNS = {
    "precision": "",
    "asked for": "{:g}x",
    "passes": "",
    "reached": "",
    "measured": "{:.2f}x",
    "layers that prune": "{}",
    "relative error": "{:.4f}",
    **LOST,
}
SECONDS = 10.0


def main() -> None:
    parser = arguments(__doc__, inputs=10**6, test_inputs=10**6)
    parser.add_argument("--speedups", default="3,4", help="of float32 networks; nothing for none")
    parser.add_argument("--int8-speedups", default="5", help="of int8 networks; nothing for none")
    parser.add_argument("--sets", default="", help="only those whose titles contain one of these, e.g. 3C,3D")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    original, how = load(args.model), preprocess(args)
    test = open_inputs(args.test, input_specs(original), how)
    test = test.subset(range(min(args.test_inputs, len(test))))
    feeds, target = test[0], Target(threads=args.threads)
    goals = [(FLOAT32, asked) for asked in args.speedups.split(",") if asked]
    goals += [(INT8, asked) for asked in args.int8_speedups.split(",") if asked]
    rows: list[list[Cell]] = []
    for precision, asked in goals:
        for title, passes in SETS.items():
            if not any(part in title for part in args.sets.split(",")):
                continue
            made = onnxlowrank.optimize(
                original,
                speedup=float(asked),
                precision=precision,
                passes=[*passes, "fully_connected"],
                calibration=args.calibration,
                preprocess=how,
                threads=args.threads,
            )
            timed = speedup_interval(*time_in_sessions((original, made.model), feeds, target, SECONDS))
            differs = agreement(original, made.model, test)
            pruned = sum("prune" in layer.method for layer in made.layers)
            measured = [timed.ratio, timed.low, timed.high]
            about = [precision, float(asked), title, "yes" if made.reached else "no"]
            rows.append([*about, measured, pruned, differs.relative_error, *lost(differs)])
            print(rows[-1], flush=True)
            title_of_all = f"Pruning and decomposing, at a measured speed-up: {result_name(args)}"
            write_results(args, result_name(args), title_of_all, COLUMNS, rows)


if __name__ == "__main__":
    main()

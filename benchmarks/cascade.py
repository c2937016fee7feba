"""The cascade of Denton et al. 2014 (Sec. 4.2, supplement Table 5): approximate a layer, tune what is above, go on.

    net="models/vgg_cifar10.onnx models/cifar10_calibration.npz"; test=models/cifar10_test.npz
    python benchmarks/cascade.py $net $test --ranks conv1_2=bicluster_svd:2x2x14x14,conv2_2=bicluster_svd:2x2x24x24

Beside it (``optimize --finetune MINUTES --cascade``) are the same layers approximated at once: as they are, with what
is above the last of them tuned, and with all tuned, for the same time in all. It takes
``pip install -e '.[finetune]'``.
"""

from __future__ import annotations

from functools import partial

import onnx
from common import LOST, agreement, arguments, lost, preprocess
from tables import Cell, result_name, write_results

import onnxlowrank
from onnxlowrank.cli.parsing import by_hand
from onnxlowrank.graph.load import load
from onnxlowrank.inputs.sources import open_inputs
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.tune.weights import ABOVE, ALL

COLUMNS = {"approximated": "{}", "minutes": "{:.1f}", "MACs": "{:.2f}x less", "top-1 (%)": "{:.2f}", **LOST}
_ALL_THERE_IS = 1e3
"""A speed-up that no network reaches: then every rank given by hand is taken."""


def main() -> None:
    parser = arguments(__doc__, inputs=10**6, test_inputs=10**6)
    parser.add_argument("--ranks", required=True, help="LAYER=PASS:RANKS,... from the first layer on")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, a layer")
    args = parser.parse_args()
    original = load(args.model)
    how = preprocess(args)
    test = open_inputs(args.test, input_specs(original), how)
    test = test.subset(range(min(args.test_inputs, len(test))))
    ranks = dict(by_hand(text) for text in args.ranks.split(","))
    approximated = partial(
        onnxlowrank.optimize,
        original,
        speedup=_ALL_THERE_IS,
        target="macs",
        only=list(ranks),
        ranks=ranks,
        selection="energy",
        calibration=args.calibration,
        evaluate=test.subset(range(16)),
        preprocess=how,
    )
    together, minutes = approximated(), args.minutes * len(ranks)

    def tuned(what: str) -> onnx.ModelProto:
        data = {"data": args.calibration, "preprocess": how}
        return onnxlowrank.finetune(original, together.model, tune=what, minutes=minutes, **data).model

    def row(title: str, minutes: float | None, saved: float, model: onnx.ModelProto) -> list[Cell]:
        found = agreement(original, model, test)
        top1 = None if found.accuracy is None else 100 * found.accuracy[1]
        return [title, minutes, saved, top1, *lost(found)]

    saved = together.macs_speedup
    rows = [
        row("nothing", None, 1.0, original),
        row("all at once", None, saved, together.model),
        row("all at once, tuned above", minutes, saved, tuned(ABOVE)),
        row("one after the other, tuned above", minutes, saved, approximated(finetune=minutes, cascade=True).model),
        row("all at once, all tuned", minutes, saved, tuned(ALL)),
    ]
    write_results(args, result_name(args), f"Cascade: {result_name(args)}", COLUMNS, rows, args.ranks)


if __name__ == "__main__":
    main()

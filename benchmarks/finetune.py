"""What fine-tuning gives back of what a decomposition took, with labels and without, beside training from scratch.

    net="models/vgg_cifar10.onnx models/cifar10_calibration.npz"; test=models/cifar10_test.npz
    python benchmarks/finetune.py $net $test --speedups 4,5 --minutes 10

The network is optimised to every speed-up, in multiply-accumulates of its convolutions; ``--precision int8`` makes it
int8 too. ``blocks`` trains nothing: all layers are fitted once more, in closed form, behind the first fit. ``scratch``
is the control: the same architecture, in float32, with random weights, trained for the same time by labels and by what
the original says. Nothing is learnt from the test inputs, and nothing is chosen by them. It takes
``pip install -e '.[finetune]'``.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import onnx
from common import LOST, agreement, arguments, lost, preprocess
from onnx import numpy_helper
from tables import Cell, result_name, write_results

import onnxlowrank
from onnxlowrank.goal import FLOAT32, INT8
from onnxlowrank.graph.load import load
from onnxlowrank.inputs.sources import open_inputs
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.options import BLOCKS
from onnxlowrank.tune.weights import ALL, changed, trained_weights

SCRATCH = "scratch"
COLUMNS = {
    "MACs": "{:.2f}x less",
    "trained": "{}",
    "labels": "{}",
    "minutes": "{:.1f}",
    "steps": "{}",
    "loss held out": "{}",
    "top-1 (%)": "{:.2f}",
    **LOST,
}


def from_scratch(original: onnx.ModelProto, optimised: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Return a network with random weights (He et al. 2015), and biases of 0, in the place of trained ones."""
    rng = np.random.default_rng(seed)
    outputs = [output.name for output in optimised.graph.output]
    names = set(trained_weights(original, optimised, ALL, outputs).weights)
    values = {}
    for tensor in optimised.graph.initializer:
        if tensor.name in names:
            shape = tuple(tensor.dims)
            weight = numpy_helper.to_array(tensor)
            fan_in = math.prod(shape[1:]) if len(shape) > 2 else max(shape)
            drawn = rng.standard_normal(shape) * math.sqrt(2 / fan_in)
            values[tensor.name] = (np.zeros(shape) if weight.ndim < 2 else drawn).astype(weight.dtype)
    return changed(optimised, values)


def main() -> None:
    parser = arguments(__doc__, inputs=10**6, test_inputs=10**6)
    parser.add_argument("--speedups", default="4,5", help="in multiply-accumulates of the convolutions")
    parser.add_argument("--ways", default="blocks,above,chains,all,scratch", help="what is trained")
    parser.add_argument("--labels", default="no,yes", help="without labels, with them, or both")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, each")
    parser.add_argument("--precision", default=FLOAT32, choices=(FLOAT32, INT8))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.precision == INT8 and SCRATCH in args.ways.split(","):
        parser.error("--ways scratch is for float32; leave it out")
    original = load(args.model)
    how = preprocess(args)
    test = open_inputs(args.test, input_specs(original), how)
    test = test.subset(range(min(args.test_inputs, len(test))))

    def row(speedup: float, way: str, labels: str, model: onnx.ModelProto, *training: Cell) -> list[Cell]:
        found = agreement(original, model, test)
        top1 = None if found.accuracy is None else 100 * found.accuracy[1]
        return [speedup, way, labels, *(training or (None, None, None)), top1, *lost(found)]

    title = f"Fine-tuning: {result_name(args)}"
    note = "loss held out: of inputs that were not learnt from, but chose the network"
    rows = [row(1.0, "the original", "", original)]
    ways = args.ways.split(",")
    for speedup in map(float, args.speedups.split(",")):
        optimised = partial(
            onnxlowrank.optimize,
            original,
            speedup=speedup,
            target="macs",
            precision=args.precision,
            calibration=args.calibration,
            evaluate=test,
            preprocess=how,
        )
        made = optimised()
        rows.append(row(made.macs_speedup, "nothing", "", made.model))
        if BLOCKS in ways:
            again = optimised(tune=BLOCKS)
            rows.append(row(again.macs_speedup, BLOCKS, "", again.model))
        for way in [way for way in ways if way != BLOCKS]:
            for labels in args.labels.split(","):
                begin = from_scratch(original, made.model) if way == SCRATCH else made.model
                try:
                    tuned = onnxlowrank.finetune(
                        original,
                        begin,
                        data=args.calibration,
                        evaluate=test.subset(range(2)),
                        preprocess=how,
                        tune=ALL if way == SCRATCH else way,
                        minutes=args.minutes,
                        labels=labels == "yes",
                        device=args.device,
                    )
                except onnxlowrank.OptionError as error:  # nothing is above
                    print(f"{way}: {error}", flush=True)
                    continue
                one, other = tuned.tuned.figures
                training = tuned.tuned.seconds / 60, str(tuned.tuned.steps), f"{one:.4f} -> {other:.4f}"
                rows.append(row(made.macs_speedup, way, labels, tuned.model, *training))
                write_results(args, result_name(args), title, COLUMNS, rows, note)


if __name__ == "__main__":
    main()

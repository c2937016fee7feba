"""What fine-tuning gives back of what a decomposition took, with labels and without, beside training from scratch.

    net="models/vgg_cifar10.onnx models/cifar10_calibration.npz"; test=models/cifar10_test.npz
    python benchmarks/finetune.py $net $test --speedups 4,5 --minutes 10

The network is optimised to every speed-up, in multiply-accumulates of its convolutions or (``--target latency``) as
measured on one thread; ``--precision int8`` makes it int8 too. ``blocks`` trains nothing: all layers are fitted once
more, in closed form, behind the first fit. ``scratch`` is the control: the same architecture, in float32, with random
weights, trained for the same time by labels and by what the original says. Nothing is learnt from the test inputs, and
nothing is chosen by them. It takes ``pip install -e '.[finetune]'``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx
from common import LOST, agreement, arguments, lost, preprocess
from onnx import numpy_helper
from tables import Cell, result_name, write_results

import onnxlowrank
from onnxlowrank.goal import FLOAT32, INT8, LATENCY, TARGETS
from onnxlowrank.graph.load import load
from onnxlowrank.graph.walk import readers
from onnxlowrank.inputs.sources import open_inputs
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.options import BLOCKS
from onnxlowrank.tune.weights import ALL, changed, trained_weights

SCRATCH = "scratch"
LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Reshape", "Transpose"}
COLUMNS = {
    "measured": "{:.2f}x",
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
    """Return a network with random weights (He et al. 2015), and biases of 0, in the place of trained ones.

    What is no factor in front of another has a ReLU or the like behind it, and twice the variance.
    """
    rng = np.random.default_rng(seed)
    outputs = [output.name for output in optimised.graph.output]
    read_by = readers(optimised.graph.node)
    linear = {
        name
        for node in optimised.graph.node
        for name in node.input[1:]
        if any(after.op_type in LINEAR for output in node.output for after in read_by.get(output, []))
    }
    names = set(trained_weights(original, optimised, ALL, outputs).weights)
    values = {}
    for tensor in optimised.graph.initializer:
        if tensor.name in names:
            shape = tuple(tensor.dims)
            weight = numpy_helper.to_array(tensor)
            fan_in = math.prod(shape[1:]) if len(shape) > 2 else max(shape)
            drawn = rng.standard_normal(shape) * math.sqrt((1 if tensor.name in linear else 2) / fan_in)
            values[tensor.name] = (np.zeros(shape) if weight.ndim < 2 else drawn).astype(weight.dtype)
    return changed(optimised, values)


def main() -> None:
    parser = arguments(__doc__, inputs=10**6, test_inputs=10**6)
    parser.add_argument("--speedups", default="4,5", help="of TARGET")
    parser.add_argument("--target", default="macs", choices=TARGETS, help="what is to be so many times less")
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

    title = f"Fine-tuning: {result_name(args)}"
    note = "loss held out: of inputs that were not learnt from, but chose the network"
    rows: list[list[Cell]] = []

    def add(speedups: Sequence[Cell], way: str, labels: str, model: onnx.ModelProto, *training: Cell) -> None:
        found = agreement(original, model, test)
        before, after = (None, None) if found.accuracy is None else (100 * one for one in found.accuracy)
        if not rows:
            rows.append([None, 1.0, "the original", "", None, None, None, before, None, None, None])
        rows.append([*speedups, way, labels, *(training or (None, None, None)), after, *lost(found)])
        write_results(args, result_name(args), title, COLUMNS, rows, note)

    def speedups_of(made: onnxlowrank.Result) -> list[Cell]:
        return [made.latency_speedup if args.target == LATENCY else None, made.macs_speedup]

    ways = args.ways.split(",")
    for speedup in map(float, args.speedups.split(",")):
        optimised = partial(
            onnxlowrank.optimize,
            original,
            speedup=speedup,
            target=args.target,
            precision=args.precision,
            calibration=args.calibration,
            evaluate=test.subset(range(2)),
            preprocess=how,
        )
        made = optimised()
        add(speedups_of(made), "nothing", "", made.model)
        if BLOCKS in ways:
            again = optimised(tune=BLOCKS)
            add(speedups_of(again), BLOCKS, "", again.model)
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
                add(speedups_of(made), way, labels, tuned.model, *training)


if __name__ == "__main__":
    main()

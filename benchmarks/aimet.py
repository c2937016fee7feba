"""AIMET's spatial SVD (``aimet-torch``) against onnxlowrank at the same measured latency, in one run.

    python benchmarks/aimet.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz

The network becomes a torch module, AIMET selects ranks for a ratio of multiply-accumulates by its greedy method, with
top-1 agreement on the calibration inputs as the score, and the result is exported to ONNX. Ratios are lowered until the
stopwatch shows the speed-up asked for; ours is then made for the speed-up that theirs has reached. All are timed in
turns. Needs ``pip install aimet-torch onnx2torch`` besides this package.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import tempfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import onnx
from common import LOST, agreement, arguments, lost, some_inputs
from tables import result_name, write_results

import onnxlowrank
from onnxlowrank.graph.load import load
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.interleaved import speedup_interval, time_in_sessions
from onnxlowrank.measure.sessions import Target

COLUMNS = {"": "", "measured": "{:.2f}x", "top-1": "{:.1f} %", **LOST}


def main() -> None:
    parser = arguments(__doc__, test_inputs=2000)
    parser.add_argument("--speedup", type=float, default=2.0)
    args = parser.parse_args()
    original = load(args.model)
    inputs = some_inputs(args, original, args.calibration, args.inputs)
    test = some_inputs(args, original, args.test, args.test_inputs)
    target = Target()
    for ratio in np.arange(0.95 / args.speedup, 0.05, -0.04):
        theirs = compressed(original, inputs, float(ratio))
        got = speedup_interval(*time_in_sessions([original, theirs], inputs[0], target, 4.0)).ratio
        print(f"aimet at {ratio:.2f} of the MACs: {got:.2f}x", flush=True)
        if got >= args.speedup:
            break
    ours = onnxlowrank.optimize(original, speedup=max(got, 1.01), calibration=inputs).model
    before, *after = time_in_sessions([original, theirs, ours], inputs[0], target, 20.0)
    rows = []
    for name, network, times in zip(("AIMET, spatial SVD", "onnxlowrank"), (theirs, ours), after, strict=True):
        found = speedup_interval(before, times)
        changed = agreement(original, network, test)
        top1 = None if changed.accuracy is None else 100 * changed.accuracy[1]
        rows.append([name, [found.ratio, found.low, found.high], top1, *lost(changed)])
    title = f"Beside AIMET at the same speed-up: {Path(args.model).stem}"
    note = f"aimet-torch {importlib.metadata.version('aimet-torch')}."
    write_results(args, result_name(args), title, COLUMNS, rows, note)


def compressed(original: onnx.ModelProto, inputs: Inputs, ratio: float) -> onnx.ModelProto:
    """Return what AIMET makes of the network for a ratio of multiply-accumulates."""
    import torch
    from aimet_torch.common.defs import CompressionScheme, CostMetric, GreedySelectionParameters
    from aimet_torch.compress import ModelCompressor
    from aimet_torch.defs import SpatialSvdParameters
    from onnx2torch import convert

    feeds = torch.from_numpy(np.concatenate([next(iter(one.values())) for one in inputs]))
    module = convert(original).eval()
    with torch.no_grad():
        classes = module(feeds).argmax(1)

    def agreement(model: torch.nn.Module, iterations: int | None = None, use_cuda: bool = False) -> float:
        with torch.no_grad():
            return float((model.eval()(feeds).argmax(1) == classes).float().mean())

    greedy = GreedySelectionParameters(target_comp_ratio=Decimal(ratio), num_comp_ratio_candidates=10)
    how = SpatialSvdParameters(
        SpatialSvdParameters.Mode.auto, SpatialSvdParameters.AutoModeParams(greedy), multiplicity=8
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        smaller, _ = ModelCompressor.compress_model(
            module, agreement, 1, tuple(feeds[:1].shape), CompressionScheme.spatial_svd, CostMetric.mac, how
        )
        path = Path(folder) / "smaller.onnx"
        names = {"input_names": list(inputs[0]), "output_names": [original.graph.output[0].name]}
        axes = {name: {0: "N"} for name in (*names["input_names"], *names["output_names"])}
        torch.onnx.export(smaller.eval(), (feeds[:1],), str(path), dynamic_axes=axes, dynamo=False, **names)
        return onnx.load(path)


if __name__ == "__main__":
    main()

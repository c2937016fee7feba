"""One layer alone, decomposed by every method under every metric: the shape of Denton 2014, supplement, Tables 2-4.

    python benchmarks/metrics.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz \
        --layer conv3_2 --setting monochromatic=8 --setting bicluster_svd=2x2x16x32 --setting svd=32x64

For every setting: by how much the operations of the layer fall, by how much its measured time falls, and for every
metric how far the network's output moves: the KL divergence and the points of top-1 accuracy lost (without labels: of
agreement with the original), first with the factors as the metric alone gives them, as in the paper, then with the
last factor refitted to the responses.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np
from ablation import spread
from rich.console import Console
from rich.table import Table

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.kernel_metrics import METRICS, metric_of
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.evaluate.agreement import Agreement, compare_outputs
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.load import load
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.preprocess import preprocess_from_options
from onnxlowrank.inputs.sources import open_inputs
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.measure.cache import Cache
from onnxlowrank.measure.chain_timer import ChainTimer, fastest_lowering
from onnxlowrank.measure.sessions import Target
from onnxlowrank.passes import load_passes
from onnxlowrank.passes.base import Setting, keep
from onnxlowrank.progress import Silent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("test")
    parser.add_argument("--layer", required=True)
    parser.add_argument("--setting", action="append", required=True, metavar="METHOD=RANKS")
    parser.add_argument("--metrics", default=",".join(METRICS))
    parser.add_argument("--preprocess", default="imagenet")
    parser.add_argument("--mean")
    parser.add_argument("--resize", type=int)
    parser.add_argument("--crop", type=int)
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--test-inputs", type=int, default=500)
    args = parser.parse_args()

    original = load(args.model)
    model, specs = normalise(original), input_specs(original)
    how = preprocess_from_options(
        args.preprocess,
        mean=None if args.mean is None else tuple(map(float, args.mean.split(","))),
        resize=None if args.resize is None else (args.resize, args.resize),
        crop=None if args.crop is None else (args.crop, args.crop),
    )
    inputs = spread(open_inputs(args.calibration, specs, how), args.inputs)
    test = spread(open_inputs(args.test, specs, how), args.test_inputs)
    layers = with_shapes(model, find_layers(model), inputs)
    layer = next(one for one in layers if one.name == args.layer)
    kept = {one.name: keep(one) for one in layers}
    lowering = partial(fastest_lowering, ChainTimer(Target(), Cache()))
    timer = ChainTimer(Target(), Cache())
    settings = [_setting(text) for text in args.setting]
    methods = {one.name: one for one in load_passes([name for name, _ in settings])}
    applicable = {layer.name: methods}

    columns = [f"{metric} {part}" for metric in args.metrics.split(",") for part in ("alone", "refitted")]
    table = Table("method", "setting", "MACs", "time", "draft s", *columns, title=f"{args.model}, {layer.name}")
    rows: dict[tuple[str, Setting], list[str]] = {}
    for metric in args.metrics.split(","):
        with RowStore() as store:
            weigh = metric_of(metric, model, layers, applicable, inputs, Silent())
            about = Calibration(model, layers, applicable, inputs, store)
            statistics = collect_statistics(about, Silent(), weigh)
            for name, setting in settings:
                method = methods[name]
                outline = method.outline(layer, setting)
                lowered = outline.lowered(lowering(layer, outline))
                dense, fast = timer.many(layer, [None, lowered])
                start = time.perf_counter()
                draft = method.draft(layer, setting, statistics[layer.name])
                seconds = time.perf_counter() - start
                plan = {**kept, layer.name: method.candidate(layer, setting, 1.0)}
                chains = Fitter(about, Drafts(applicable, statistics), lowering).fit(plan, Silent())
                alone = compare_outputs(original, rewrite(model, layers, {layer.name: draft.chain}), test, _quiet)
                refitted = compare_outputs(original, rewrite(model, layers, chains), test, _quiet)
                shown = "x".join(map(str, setting))
                speeds = f"{layer.macs / outline.macs_in(layer):.2f}x", f"{dense.ms / fast.ms:.2f}x"
                row = rows.setdefault((name, setting), [name, shown, *speeds, f"{seconds:.1f}"])
                row += [_lost(alone), _lost(refitted)]
                print(metric, *row[:5], *row[-2:], flush=True)
    for row in rows.values():
        table.add_row(*row)
    Console(width=200).print(table)


def _setting(text: str) -> tuple[str, Setting]:
    name, _, ranks = text.partition("=")
    return name, tuple(int(rank) for rank in ranks.split("x"))


def _lost(agreement: Agreement) -> str:
    if agreement.accuracy is not None:
        lost = agreement.accuracy[0] - agreement.accuracy[1]
    else:
        lost = 1 - (agreement.top1_agreement or 0.0)
    return f"{agreement.divergence or np.nan:.4f} ({100 * lost:.1f})"


def _quiet(amount: float) -> None:
    pass


if __name__ == "__main__":
    main()

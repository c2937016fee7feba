"""One layer alone, decomposed by every method under every metric: the shape of Denton 2014, supplement, Tables 2-4.

    python benchmarks/metrics.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz \
        --layer conv3_2 --setting monochromatic=8 --setting bicluster_svd=2x2x16x32 --setting svd=32x64

For every setting: by how much the operations of the layer fall, by how much its measured time falls, and for every
metric how far the network's output moves: the KL divergence and the points of top-1 accuracy lost (without labels: of
agreement with the original), first with the factors as the metric alone gives them, as in the paper, then with the
last factor refitted to the responses.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from common import agreement, arguments, load_network, some_inputs
from tables import Cell, result_name, write_results

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.kernel_metrics import METRICS, metric_of
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.measure.cache import Cache
from onnxlowrank.measure.chain_timer import ChainTimer, fastest_lowering
from onnxlowrank.measure.sessions import Target
from onnxlowrank.passes import load_passes
from onnxlowrank.passes.base import Setting, keep
from onnxlowrank.progress import Silent

COLUMNS = {
    "method": "",
    "setting": "",
    "metric": "",
    "fewer MACs": "{:.2f}x",
    "faster": "{:.2f}x",
    "draft (s)": "{:.1f}",
    "KL as the metric gives it": "{:.4f}",
    "KL refitted": "{:.4f}",
    "points lost": "{:.1f}",
    "points lost, refitted": "{:.1f}",
}


def main() -> None:
    parser = arguments(__doc__, test_inputs=500)
    parser.add_argument("--layer", required=True)
    parser.add_argument("--setting", action="append", required=True, metavar="METHOD=RANKS")
    parser.add_argument("--metrics", default=",".join(METRICS))
    args = parser.parse_args()
    loaded = load_network(args)
    original, model, layers, inputs = loaded.original, loaded.model, loaded.layers, loaded.inputs
    test = some_inputs(args, original, args.test, args.test_inputs)
    layer = next(one for one in layers if one.name == args.layer)
    kept = {one.name: keep(one) for one in layers}
    lowering = partial(fastest_lowering, ChainTimer(Target(), Cache()))
    timer = ChainTimer(Target(), Cache())
    settings = [_setting(text) for text in args.setting]
    methods = {one.name: one for one in load_passes([name for name, _ in settings])}
    applicable = {layer.name: methods}
    rows: dict[tuple[str, Setting], list[list[Cell]]] = {one: [] for one in settings}
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
                alone = agreement(original, rewrite(model, layers, {layer.name: draft.chain}), test)
                refitted = agreement(original, rewrite(model, layers, chains), test)
                speeds = layer.macs / outline.macs_in(layer), dense.ms / fast.ms
                errors = alone.divergence, refitted.divergence, alone.drop, refitted.drop
                row = [name, "x".join(map(str, setting)), metric, *speeds, seconds, *errors]
                rows[name, setting].append(row)
                print(metric, name, setting, *errors, flush=True)
    together = [row for group in rows.values() for row in group]
    title = f"Metrics, one layer alone: {Path(args.model).stem}, {layer.name}"
    write_results(args, result_name(args, layer.name), title, COLUMNS, together)


def _setting(text: str) -> tuple[str, Setting]:
    name, _, ranks = text.partition("=")
    return name, tuple(int(rank) for rank in ranks.split("x"))


if __name__ == "__main__":
    main()

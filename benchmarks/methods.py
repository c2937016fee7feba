"""Every method's candidates in a network's layers, and what it keeps of a layer made measurably twice as fast.

    python benchmarks/methods.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz

First, for every layer and method: how many candidates there are, how long that takes, the largest share of the
response's variance that is predicted to be kept at 2, 3 and 4 times fewer operations, and the share at a *measured*
speed-up of the layer of ``--speedup`` or more. Then every method's best layer by that share, decomposed alone and
fitted: how long that takes, and how far the network's output moves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import LOST, agreement, arguments, load_network, lost, some_inputs
from tables import result_name, write_results

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.measure.cache import Cache
from onnxlowrank.measure.chain_timer import ChainTimer, fastest_lowering
from onnxlowrank.measure.channel_block import channel_block
from onnxlowrank.measure.sessions import Target
from onnxlowrank.passes import load_passes
from onnxlowrank.passes.base import Candidate, Pass, keep
from onnxlowrank.plan.applicability import applicable_passes
from onnxlowrank.progress import Silent

RATIOS = (2, 3, 4)
TRIED = 6
"""Settings that are timed for each layer and method, of falling energy."""
COLUMNS = {
    "layer": "",
    "method": "",
    "settings": "{}",
    "found in (s)": "{:.1f}",
    **{f"kept at {ratio}x MACs": "{:.3f}" for ratio in RATIOS},
    "measured": "{:.2f}x",
    "kept": "{:.3f}",
    "setting": "",
}
FITTED = {
    "method": "",
    "layer": "",
    "setting": "",
    "measured": "{:.2f}x",
    "predicted to be kept": "{:.3f}",
    "draft (s)": "{:.1f}",
    "fit (s)": "{:.1f}",
    **LOST,
}


@dataclass(frozen=True)
class Best:
    """The setting of a layer that keeps most among those measured to be fast enough."""

    layer: Layer
    candidate: Candidate
    speedup: float


def main() -> None:
    parser = arguments(__doc__, test_inputs=500)
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="layers to look at")
    parser.add_argument("--speedup", type=float, default=2.0)
    args = parser.parse_args()
    loaded = load_network(args)
    original, model, layers, inputs = loaded.original, loaded.model, loaded.layers, loaded.inputs
    test = some_inputs(args, original, args.test, args.test_inputs)
    applicable, _ = applicable_passes(layers, load_passes(), args.only, (), conv_only=False)
    timer = ChainTimer(Target(), Cache())
    rows, fitted_rows = [], []
    with RowStore() as store:
        about = Calibration(model, layers, applicable, inputs, store)
        statistics = collect_statistics(about, Silent())
        best: dict[str, Best] = {}
        for layer in (one for one in layers if one.name in applicable):
            for name, method in applicable[layer.name].items():
                start = time.perf_counter()
                candidates = list(method.candidates(layer, statistics[layer.name], channel_block("cpu")))
                seconds = time.perf_counter() - start
                most = [max((c.energy for c in candidates if c.macs * r <= layer.macs), default=None) for r in RATIOS]
                found = fast_enough(timer, layer, method, candidates, args.speedup)
                shown = [found.speedup, found.candidate.energy, ranks(found)] if found else [None] * 3
                rows.append([layer.name, name, len(candidates), seconds, *most, *shown])
                if found and (name not in best or found.candidate.energy > best[name].candidate.energy):
                    best[name] = found
        for name, found in best.items():
            layer, method = found.layer, applicable[found.layer.name][name]
            start = time.perf_counter()
            method.draft(layer, found.candidate.setting, statistics[layer.name])
            drafted = time.perf_counter() - start
            plan = {one.name: keep(one) for one in layers}
            plan[layer.name] = found.candidate
            start = time.perf_counter()
            chains = Fitter(about, Drafts(applicable, statistics)).fit(plan, Silent())
            fitted = time.perf_counter() - start
            changed = agreement(original, rewrite(model, layers, chains), test)
            speed = found.speedup, found.candidate.energy
            fitted_rows.append([name, layer.name, ranks(found), *speed, drafted, fitted, *lost(changed)])
    title = f"Every method at {args.speedup:g}x or more, {{}}: {Path(args.model).stem}"
    write_results(args, result_name(args), title.format("layer by layer"), COLUMNS, rows)
    write_results(args, f"{result_name(args)}_fitted", title.format("its best layer alone"), FITTED, fitted_rows)


def fast_enough(
    timer: ChainTimer, layer: Layer, method: Pass, candidates: list[Candidate], speedup: float
) -> Best | None:
    """Return the setting that keeps most among a few measured to be ``speedup`` times as fast as the layer.

    They are those on the front of operations and energy nearest to ``speedup``, from more operations to fewer.
    """
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.macs, -c.energy)):
        if not front or candidate.energy > front[-1].energy:
            front.append(candidate)
    near = [c for c in front[::-1] if 0.8 * speedup <= layer.macs / c.macs <= 3 * speedup]
    lowering = partial(fastest_lowering, timer)
    for candidate in near[:: max(len(near) // TRIED, 1)]:
        outline = method.outline(layer, candidate.setting)
        dense, fast = timer.many(layer, [None, outline.lowered(lowering(layer, outline))])
        if dense.ms >= speedup * fast.ms:
            return Best(layer, candidate, dense.ms / fast.ms)
    return None


def ranks(found: Best) -> str:
    return "x".join(map(str, found.candidate.setting))


if __name__ == "__main__":
    main()

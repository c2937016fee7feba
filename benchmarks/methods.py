"""What every method offers a network's layers, and what it keeps when it makes a layer measurably twice as fast.

    python benchmarks/methods.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz

First, for every layer and method: how many settings it offers, how long that takes, the largest share of the
response's variance that is predicted to be kept at 2, 3 and 4 times fewer operations, and the share at a *measured*
speed-up of the layer of ``--speedup`` or more. Then every method's best layer by that share, decomposed alone and
fitted: how long that takes, and how far the network's output moves.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import partial

from ablation import spread
from rich.console import Console
from rich.table import Table

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.evaluate.agreement import compare_outputs
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.load import load
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.preprocess import preprocess_from_options
from onnxlowrank.inputs.sources import open_inputs
from onnxlowrank.inputs.specs import input_specs
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


@dataclass(frozen=True)
class Best:
    """The setting of a layer that keeps most among those measured to be fast enough."""

    layer: Layer
    candidate: Candidate
    speedup: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("test")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="layers to look at")
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--preprocess", default="imagenet")
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--test-inputs", type=int, default=500)
    args = parser.parse_args()

    original = load(args.model)
    model, specs, how = normalise(original), input_specs(original), preprocess_from_options(args.preprocess)
    inputs = spread(open_inputs(args.calibration, specs, how), args.inputs)
    test = spread(open_inputs(args.test, specs, how), args.test_inputs)
    layers = with_shapes(model, find_layers(model), inputs)
    applicable, _ = applicable_passes(layers, load_passes(), args.only, (), conv_only=False)
    timer = ChainTimer(Target(), Cache())

    choices = Table("layer", "method", "settings", "s", *(f"{ratio}x MACs" for ratio in RATIOS), "measured", "setting")
    kept = Table("method", "layer", "setting", "measured", "predicted", "draft s", "fit s", "KL", "same class", "drop")
    with RowStore() as store:
        about = Calibration(model, layers, applicable, inputs, store)
        statistics = collect_statistics(about, Silent())
        best: dict[str, Best] = {}
        for layer in (one for one in layers if one.name in applicable):
            for name, method in applicable[layer.name].items():
                start = time.perf_counter()
                offered = list(method.candidates(layer, statistics[layer.name], channel_block("cpu")))
                seconds = time.perf_counter() - start
                most = [max((c.energy for c in offered if c.macs * r <= layer.macs), default=0.0) for r in RATIOS]
                found = fast_enough(timer, layer, method, offered, args.speedup)
                shown = (f"{found.speedup:.2f}x {found.candidate.energy:.3f}", ranks(found)) if found else ("", "")
                energies = (f"{energy:.3f}" if energy else "" for energy in most)
                choices.add_row(layer.name, name, str(len(offered)), f"{seconds:.1f}", *energies, *shown)
                if found and (name not in best or found.candidate.energy > best[name].candidate.energy):
                    best[name] = found
        Console(width=140).print(choices)
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
            changed = compare_outputs(original, rewrite(model, layers, chains), test, lambda amount: None)
            before, after = changed.accuracy or (0.0, 0.0)
            kept.add_row(
                *(name, layer.name, ranks(found), f"{found.speedup:.2f}x", f"{found.candidate.energy:.3f}"),
                *(f"{drafted:.1f}", f"{fitted:.1f}", f"{changed.divergence or 0:.4f}"),
                *(f"{100 * (changed.top1_agreement or 0):.1f}", f"{100 * (before - after):.1f}"),
            )
    Console(width=140).print(kept)


def fast_enough(timer: ChainTimer, layer: Layer, method: Pass, offered: list[Candidate], speedup: float) -> Best | None:
    """Return the setting that keeps most among a few measured to be ``speedup`` times as fast as the layer.

    They are those on the front of operations and energy nearest to ``speedup``, from more operations to fewer.
    """
    front: list[Candidate] = []
    for candidate in sorted(offered, key=lambda c: (c.macs, -c.energy)):
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

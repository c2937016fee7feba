"""What every part of the method contributes: the shape of Zhang 2015, Tables 2, 6 and 7.

    python benchmarks/ablation.py vgg16.onnx calibration_images test_images --preprocess caffe --speedups 2,3,4

All networks have the same MACs of the convolutions (``--target macs``). "paper 3d" fits ``1 x k`` and 1x1 as the paper
does: the horizontal filters of the spatial decomposition stay, and the low-rank map is regressed behind them.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.decompose.regression import Samples, fit_low_rank
from onnxlowrank.decompose.spatial import spatial_factors
from onnxlowrank.evaluate.agreement import compare_outputs
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.load import load
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.preprocess import preprocess_from_options
from onnxlowrank.inputs.sources import open_inputs
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.options import SELECTIONS
from onnxlowrank.passes import load_passes
from onnxlowrank.passes.asymmetric3d import Asymmetric3D, chain_of
from onnxlowrank.passes.base import Draft, Features, Pass, Setting, Statistics
from onnxlowrank.passes.spatial import Spatial, horizontal_step, vertical_step
from onnxlowrank.plan.applicability import applicable_passes
from onnxlowrank.plan.candidates import layer_candidates
from onnxlowrank.plan.counted import plan_by_macs
from onnxlowrank.plan.selection import EnergyLosses
from onnxlowrank.progress import Silent
from onnxlowrank.result import conv_macs


class Paper3D(Asymmetric3D):
    """Zhang 2015, Sec. 3.5, as printed."""

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        vertical, horizontal = spatial_factors(layer.weight, setting[0])
        steps = vertical_step(layer, vertical), horizontal_step(layer, horizontal)
        return Draft(Chain(steps, layer.bias), Features(layer.input, steps))

    def fit(self, layer: Layer, setting: Setting, draft: Draft, samples: Samples, nonlinear: bool = True) -> Chain:
        vertical, horizontal = (step.weight for step in draft.chain.steps)
        fitted = fit_low_rank(samples, setting[1], prior=np.eye(layer.outputs), nonlinear=nonlinear)
        reduced = np.tensordot(fitted.right.T, horizontal, axes=1)
        return chain_of(layer, vertical, reduced, fitted.left, fitted.bias)


class FilterReconstruction(Spatial):
    """Jaderberg 2014 on weights alone: no covariance, no regression."""

    def draft(self, layer: Layer, setting: Setting, statistics: Statistics) -> Draft:
        vertical, horizontal = spatial_factors(layer.weight, setting[0])
        chain = Chain((vertical_step(layer, vertical), horizontal_step(layer, horizontal)), layer.bias)
        return Draft(chain, Features(layer.output))

    def fit(self, layer: Layer, setting: Setting, draft: Draft, samples: Samples, nonlinear: bool = True) -> Chain:
        return draft.chain


def configurations() -> dict[str, tuple[list[Pass], str, bool, bool]]:
    """Return passes, selection, nonlinear, asymmetric, by title."""
    channel, spatial, joint = load_passes(["channel", "spatial", "asymmetric3d"])
    return {
        "three passes": ([channel, spatial, joint], "energy", True, True),
        "three passes, linear": ([channel, spatial, joint], "energy", False, True),
        "three passes, symmetric": ([channel, spatial, joint], "energy", True, False),
        "three passes, no rank selection": ([channel, spatial, joint], "uniform", True, True),
        "3d": ([channel, joint], "energy", True, True),
        "paper 3d": ([channel, Paper3D()], "energy", True, True),
        "channel": ([channel], "energy", True, True),
        "channel, linear": ([channel], "energy", False, True),
        "channel, symmetric": ([channel], "energy", True, False),
        "channel, no rank selection": ([channel], "uniform", True, True),
        "spatial": ([spatial], "energy", True, True),
        "Jaderberg, filter reconstruction": ([FilterReconstruction()], "uniform", False, False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("test")
    parser.add_argument("--preprocess", default="imagenet")
    parser.add_argument("--speedups", default="2,3,4")
    parser.add_argument("--inputs", type=int, default=150)
    parser.add_argument("--test-inputs", type=int, default=300)
    parser.add_argument("--only", help="titles of configurations, separated by ';'")
    args = parser.parse_args()

    original = load(args.model)
    model = normalise(original)
    how, specs = preprocess_from_options(args.preprocess), input_specs(original)
    inputs = spread(open_inputs(args.calibration, specs, how), args.inputs)
    test = spread(open_inputs(args.test, specs, how), args.test_inputs)
    layers = with_shapes(model, find_layers(model), inputs)
    chosen = {k: v for k, v in configurations().items() if not args.only or k in args.only.split(";")}
    everything, _ = applicable_passes(layers, load_passes(["channel", "spatial"]), (), (), conv_only=True)

    table = Table(title=f"{inputs.description}; {test.description}", title_justify="left")
    for column in ("speed-up (MACs)", "configuration", "top-1 drop (points)", "top-1 agreement (%)", "KL", "fit (s)"):
        table.add_column(column, justify="right")
    with RowStore() as store:
        statistics = collect_statistics(Calibration(model, layers, everything, inputs, store), Silent())
        for speedup in map(float, args.speedups.split(",")):
            for title, (passes, selection, nonlinear, asymmetric) in chosen.items():
                applicable, _ = applicable_passes(layers, passes, (), (), conv_only=True)
                drafts = Drafts(applicable, statistics)
                candidates = {layer.name: layer_candidates(layer, drafts, {}, 8) for layer in layers}
                plan = plan_by_macs(layers, candidates, speedup, SELECTIONS[selection], EnergyLosses())
                start = time.perf_counter()
                about = Calibration(model, layers, applicable, inputs, store)
                fitter = Fitter(about, drafts, nonlinear=nonlinear, asymmetric=asymmetric)
                chains = fitter.fit(plan, Silent())
                reached = conv_macs(layers, {}) / conv_macs(layers, chains)
                row = compare(original, rewrite(model, layers, chains), test)
                table.add_row(f"{reached:.2f}", title, *row, f"{time.perf_counter() - start:.0f}")
                Console(width=140, stderr=True).print(f"{reached:.2f} {title}: {' '.join(row)}")
    Console(width=140).print(table)


def compare(original: onnx.ModelProto, optimised: onnx.ModelProto, test: Inputs) -> tuple[str, str, str]:
    found = compare_outputs(original, optimised, test, lambda amount: None)
    before, after = found.accuracy or (float("nan"), float("nan"))
    return f"{100 * (before - after):.1f}", f"{100 * (found.top1_agreement or 0):.1f}", f"{found.divergence:.4f}"


def spread(inputs: Inputs, count: int) -> Inputs:
    return inputs.subset(np.linspace(0, len(inputs) - 1, min(count, len(inputs))).astype(int).tolist())


if __name__ == "__main__":
    main()

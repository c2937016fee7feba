"""What every part of the method contributes: the shape of Zhang 2015, Tables 2, 6 and 7.

    python benchmarks/ablation.py vgg16.onnx calibration_images test_images --preprocess caffe --speedups 2,3,4

All networks have the same MACs of the convolutions (``--target macs``). "paper 3d" fits ``1 x k`` and 1x1 as the paper
does: the horizontal filters of the spatial decomposition stay, and the low-rank map is regressed behind them.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from common import LOST, agreement, arguments, load_network, lost, some_inputs
from tables import result_name, write_results

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.decompose.regression import Samples, fit_low_rank
from onnxlowrank.decompose.spatial import spatial_factors
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.options import SELECTIONS
from onnxlowrank.passes import load_passes
from onnxlowrank.passes.asymmetric3d import Asymmetric3D, chain_of
from onnxlowrank.passes.base import Draft, Features, Pass, Setting, Statistics
from onnxlowrank.passes.spatial import Spatial, horizontal_step, vertical_step
from onnxlowrank.plan.applicability import applicable_passes
from onnxlowrank.plan.candidates import layer_candidates
from onnxlowrank.plan.counted import conv_macs, plan_by_macs
from onnxlowrank.plan.selection import EnergyLosses
from onnxlowrank.progress import Silent


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


COLUMNS = {"asked for, in MACs": "{:g}x", "reached": "{:.2f}x", "configuration": "", **LOST, "fit (s)": "{:.0f}"}


def main() -> None:
    parser = arguments(__doc__, inputs=150, test_inputs=300)
    parser.add_argument("--speedups", default="2,3,4")
    parser.add_argument("--only", help="titles of configurations, separated by ';'")
    args = parser.parse_args()
    loaded = load_network(args)
    original, model, layers, inputs = loaded.original, loaded.model, loaded.layers, loaded.inputs
    test = some_inputs(args, original, args.test, args.test_inputs)
    chosen = {k: v for k, v in configurations().items() if not args.only or k in args.only.split(";")}
    everything, _ = applicable_passes(layers, load_passes(["channel", "spatial"]), (), (), conv_only=True)
    rows = []
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
                found = agreement(original, rewrite(model, layers, chains), test)
                rows.append([speedup, reached, title, *lost(found), time.perf_counter() - start])
                print(f"{reached:.2f}x {title}: KL {found.divergence}", flush=True)
    name = Path(args.model).stem
    write_results(args, result_name(args), f"What every part of the method contributes: {name}", COLUMNS, rows)


if __name__ == "__main__":
    main()

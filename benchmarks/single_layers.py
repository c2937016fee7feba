"""What a layer's lost energy does to the outputs: its draft alone, as layer sensitivity has it, in a fitted network.

    python benchmarks/single_layers.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz

For every layer that a plan rewrites some settings of the plan's pass are tried. Divergences are printed over the share
of the response's variance that the draft loses: of the network with the draft in place of the layer and nothing else
changed; of the same once its response and those of the next layers are mapped to the true ones, which is what
layer sensitivity is (:mod:`onnxlowrank.plan.layer_sensitivity`); and what the layer adds to the divergence of the
plan's network, in which every layer is fitted to what those before it give.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import Prepared, agreement, arguments, class_measures, prepare, some_inputs
from tables import result_name, write_results

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.stacking import stacked_inputs
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.passes.base import KEEP, Candidate, keep
from onnxlowrank.plan.counted import plan_by_macs
from onnxlowrank.plan.knapsack import select_exactly
from onnxlowrank.plan.layer_sensitivity import LayerSensitivity
from onnxlowrank.plan.selection import EnergyLosses
from onnxlowrank.progress import Silent

COLUMNS = {
    "layer": "",
    "setting": "",
    "lost": "{:.2f} %",
    "draft alone": "{:.3f}",
    "refitted": "{:.3f}",
    "in a fitted network": "{:.3f}",
}


def main() -> None:
    parser = arguments(__doc__, test_inputs=1000)
    parser.add_argument("--speedup", type=float, default=3.0, help="of the plan, in MACs of the convolutions")
    parser.add_argument("--lost", default="0.005,0.02,0.1", help="shares to try")
    args = parser.parse_args()
    shares = [float(share) for share in args.lost.split(",")]
    rows = []
    with RowStore() as store:
        prepared = prepare(args, store)
        test = some_inputs(args, prepared.original, args.test, args.test_inputs)
        layers, drafts, model = prepared.layers, prepared.drafts, prepared.about.model
        plan = plan_by_macs(layers, prepared.candidates, args.speedup, select_exactly, EnergyLosses())
        fitter = Fitter(prepared.about, drafts)
        stacked = stacked_inputs(prepared.original, test)
        alone = LayerSensitivity(model, layers, list(layers), stacked, class_measures(model))
        for layer in layers:
            if plan[layer.name].method == KEEP:
                continue
            without = divergence(prepared, test, fitter.fit({**plan, layer.name: keep(layer)}, Silent()))
            tried = settings(prepared, plan[layer.name], shares)
            chains = [drafts.of(layer, candidate).chain for candidate in tried]
            for candidate, chain, (lost, loss) in zip(tried, chains, alone.losses(layer, chains), strict=True):
                raw = divergence(prepared, test, {layer.name: chain})
                fitted = fitter.fit({**plan, layer.name: candidate}, Silent())
                within = divergence(prepared, test, fitted) - without
                shown = f"{candidate.method} {'x'.join(map(str, candidate.setting))}"
                rows.append([layer.name, shown, 100 * lost, *(one / lost for one in (raw, loss, within))])
    title = f"What a layer's lost energy does to the outputs, KL over the share lost: {Path(args.model).stem}"
    write_results(args, result_name(args), title, COLUMNS, rows)


def settings(prepared: Prepared, chosen: Candidate, shares: list[float]) -> list[Candidate]:
    """Return what loses about these shares, of the layer and the pass of ``chosen``."""
    mine = [one for one in prepared.candidates[chosen.layer] if one.method == chosen.method]
    return list(
        dict.fromkeys(min(mine, key=lambda one: abs(np.log(max(1 - one.energy, 1e-6) / share))) for share in shares)
    )


def divergence(prepared: Prepared, test: Inputs, chains: dict[str, Chain]) -> float:
    """Return the divergence of the network with these chains."""
    model = rewrite(prepared.about.model, prepared.layers, chains)
    found = agreement(prepared.original, model, test).divergence
    if found is None:
        raise SystemExit("layers are compared by KL divergence, but the first output is no [N, classes]")
    return found


if __name__ == "__main__":
    main()

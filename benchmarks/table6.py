"""The ranks of Zhang 2015, Table 6: whole-model rank selection of VGG-16 under the paper's own complexity.

    python benchmarks/table6.py vgg16.onnx images --preprocess caffe

Eq. 14 takes ``d'/d C`` for the complexity of a layer with ``d'`` of ``d`` filters, without the 1x1 convolution; the
ranks without selection in Table 6 (115 of 512 filters at 4x) count it. Both are shown. conv1_1 is not accelerated, and
ranks are not aligned to anything.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import arguments, load_network
from tables import Cell, result_name, write_results

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.decompose.spectrum import cumulative_energy
from onnxlowrank.graph.layer import Layer
from onnxlowrank.passes import load_passes
from onnxlowrank.passes.base import RESPONSE, Candidate, keep
from onnxlowrank.plan.applicability import applicable_passes
from onnxlowrank.plan.energy import select_by_energy
from onnxlowrank.plan.selection import Item, lost_energy
from onnxlowrank.progress import Silent

PAPER = {
    2: (64, 18, 41, 50, 94, 96, 116, 207, 213, 260, 467, 455, 442),
    3: (64, 15, 31, 34, 68, 64, 75, 134, 126, 146, 312, 307, 294),
    4: (64, 11, 25, 28, 52, 46, 56, 104, 92, 100, 232, 224, 214),
}


def main() -> None:
    args = arguments(__doc__).parse_args()
    loaded = load_network(args)
    model, inputs = loaded.model, loaded.inputs
    layers = [layer for layer in loaded.layers if layer.is_conv]
    if len(layers) != len(PAPER[2]):
        raise SystemExit(f"Table 6 is about the {len(PAPER[2])} convolutions of VGG-16, {args.model} has {len(layers)}")
    applicable, _ = applicable_passes(layers, load_passes(["channel"]), (), (), conv_only=True)
    with RowStore() as store:
        statistics = collect_statistics(Calibration(model, layers, applicable, inputs, store), Silent())

    energies = {layer.name: cumulative_energy(statistics[layer.name].moments[RESPONSE].covariance) for layer in layers}

    rows: list[list[Cell]] = []
    total = sum(layer.macs for layer in layers)
    for speedup, paper in PAPER.items():
        rows.append([speedup, "Table 6", *paper])
        for title, restore in (("Eq. 14", 0), ("with 1x1", 1)):
            choices = {layer.name: spectrum(layer, energies[layer.name], restore) for layer in layers}
            choices[layers[0].name] = choices[layers[0].name][:1]
            plan = select_by_energy(choices, total / speedup)
            ours = [plan[layer.name].setting[0] if plan[layer.name].setting else layer.outputs for layer in layers]
            rows.append([speedup, title, *ours])
    columns = {"speed-up": "{}x", "ranks": "", **{layer.name: "{}" for layer in layers}}
    write_results(args, result_name(args), f"Ranks of Zhang 2015, Table 6: {Path(args.model).stem}", columns, rows)


def spectrum(layer: Layer, energy: np.ndarray, restore: int) -> list[Item]:
    """Return "keep" and every rank, the 1x1 convolution counted ``restore`` times."""
    d = layer.outputs
    costs = [rank * (layer.macs / d + restore * d * layer.positions) for rank in range(d)]
    reduced = [Candidate(layer.name, "channel", (r,), costs[r], 0, float(energy[r])) for r in range(1, d)]
    candidates = [keep(layer), *(candidate for candidate in reduced if candidate.macs < layer.macs)]
    return [Item(candidate, candidate.macs, lost_energy(candidate)) for candidate in candidates]


if __name__ == "__main__":
    main()

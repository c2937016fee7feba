"""How many iterations, how much ridge, how many samples does the nonlinear fit need?

    python benchmarks/solver.py model.onnx images --layer conv4_1 --setting 112 --preprocess caffe

Fits one layer on three quarters of the images and prints the relative error behind the activation,
|r(y) - r(y')|^2 / |r(y)|^2, on these and on the other quarter. Zhang 2015, Sec. 3.2, iterates 25 times with
penalty 0.01 and 25 times with penalty 1.
"""

from __future__ import annotations

import time
from pathlib import Path
from unittest import mock

import numpy as np
from common import arguments, load_network
from tables import result_name, write_results

from onnxlowrank.calibrate.capture import RowStore, sample
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.decompose import regression
from onnxlowrank.decompose.regression import Samples, fit_low_rank
from onnxlowrank.graph.probe import Probe
from onnxlowrank.passes import load_passes
from onnxlowrank.plan.applicability import applicable_passes
from onnxlowrank.progress import Silent

ITERATIONS = {
    "25 + 25 (paper)": (0.01,) * 25 + (1.0,) * 25,
    "10 + 10": (0.01,) * 10 + (1.0,) * 10,
    "5 + 5": (0.01,) * 5 + (1.0,) * 5,
    "0 + 10": (1.0,) * 10,
    "none (linear)": (),
}

COLUMNS = {"fit": "", "error on seen": "{:.5f}", "error on unseen": "{:.5f}", "fit (s)": "{:.1f}"}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--layer", required=True)
    parser.add_argument("--setting", type=int, required=True, help="K of the spatial pass")
    args = parser.parse_args()
    loaded = load_network(args)
    model, layers, inputs = loaded.model, loaded.layers, loaded.inputs
    applicable, _ = applicable_passes(layers, load_passes(["spatial"]), [args.layer], (), conv_only=False)
    layer = next(layer for layer in layers if layer.name == args.layer)
    method = applicable[layer.name]["spatial"]
    with RowStore() as store:
        statistics = collect_statistics(Calibration(model, layers, applicable, inputs, store), Silent())[layer.name]
        target = store.read(layer.name)
    draft = method.draft(layer, (args.setting,), statistics)
    wanted = draft.features
    probe = Probe("probe", wanted.tensor, False, wanted.steps, wanted.window)
    features = np.concatenate([rows["probe"] for rows in sample(model, [probe], inputs, 0, lambda amount: None)])
    prior = draft.chain.steps[-1].weight.reshape(layer.outputs, -1).T.astype(np.float64)

    rows_per_input = len(features) // len(inputs)
    image = np.arange(len(features)) // rows_per_input
    seen = image < 3 * len(inputs) // 4
    value = layer.activation(target)

    def error(fitted: regression.LowRankMap, rows: np.ndarray) -> float:
        away = value[rows] - layer.activation(fitted(features[rows]))
        return float((away**2).sum() / (value[rows] ** 2).sum())

    rows = []

    def line(title: str, chosen: np.ndarray, penalties: tuple[float, ...], ridge: float = 1e-2) -> None:
        samples = Samples(features[chosen], target[chosen], None, layer.activation)
        start = time.perf_counter()
        with mock.patch.object(regression, "PENALTIES", penalties):
            fitted = fit_low_rank(samples, layer.outputs, prior, ridge, nonlinear=bool(penalties))
        rows.append([title, error(fitted, chosen), error(fitted, ~seen), time.perf_counter() - start])

    for title, penalties in ITERATIONS.items():
        line(f"iterations {title}", seen, penalties)
    for ridge in (1e-4, 1e-3, 1e-2, 1e-1):
        line(f"ridge {ridge:g}", seen, ITERATIONS["5 + 5"], ridge)
    for share in (4, 2):
        line(f"1/{share} of the positions", seen & (np.arange(len(features)) % share == 0), ITERATIONS["5 + 5"])
    title = f"Iterations, ridge and samples of the nonlinear fit: {Path(args.model).stem}, {layer.name}"
    note = f"K={args.setting}, {seen.sum()} rows of {features.shape[1]} features."
    write_results(args, result_name(args, layer.name), title, COLUMNS, rows, note)


if __name__ == "__main__":
    main()

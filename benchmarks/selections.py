"""At the same measured speed-up: what every way to select a plan loses, as a table and a plot.

    python benchmarks/selections.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz \
        --speedups 2,3,4,5 --plot selections.svg

    python benchmarks/selections.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz \
        --macs --speedups 2,3

Every way is taken to the speed-up as the tool itself does it, fit and measurement repeated where the first network
misses it; plans that count MACs are searched with the same stopwatch. What comes out is timed once more. With
``--macs`` plans have equal multiply-accumulates instead: that tells what the losses are good for, without the noise of
the stopwatch.

How much more a way loses than the tool's default, if that is among the ways, is given with an interval of 95 % that is
bootstrapped over the test inputs: where it holds 1, other test inputs might tell otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import Prepared, arguments, prepare, some_inputs
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tables import Cell, result_name, write_results

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.evaluate.classes import divergence
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.interleaved import speedup_interval, time_in_sessions
from onnxlowrank.measure.sessions import all_threads, open_session
from onnxlowrank.passes.base import KEEP, Candidate, Plan
from onnxlowrank.plan.builder import FittedNetwork, NetworkBuilder
from onnxlowrank.plan.energy import select_by_energy, select_uniformly
from onnxlowrank.plan.goals import network_for_conv_macs, network_for_speedup
from onnxlowrank.plan.knapsack import select_exactly
from onnxlowrank.plan.selection import EnergyLosses, Item, Losses, Select, choices_of
from onnxlowrank.progress import Silent

Way = Callable[[float], FittedNetwork]
"""Makes a network of a speed-up."""

COLUMNS = {
    "asked for": "{:g}x",
    "selection": "",
    "reached": "",
    "measured": "{:.2f}x",
    "fewer MACs": "{:.2f}x",
    "KL": "{:.4f}",
    "KL / default's": "{:.2f}",
    "other class": "{:.2f} %",
    "drop (points)": "{:.2f}",
}


class Counted:
    """Stands in for a latency model: counts multiply-accumulates.

    A count cannot be corrected: where chains do not pay, layers are kept.
    """

    rest = 0.0

    def __init__(self, candidates: Mapping[str, Sequence[Candidate]]) -> None:
        self._choices = choices_of(candidates, lambda one: one.macs, EnergyLosses())
        self.dense = {name: max(item.cost for item in items) for name, items in self._choices.items()}
        self.whole = sum(self.dense.values())

    def choices(self, timed: bool = False) -> dict[str, list[Item]]:
        return self._choices

    def total(self, plan: Plan) -> float:
        return sum(candidate.macs for candidate in plan.values())

    def learn(self, plan: Plan) -> bool:
        return False

    def calibrate(self, plan: Plan, milliseconds: float) -> None:
        pass

    def correct(self, candidate: Candidate, milliseconds: float) -> None:
        items = self._choices[candidate.layer]
        self._choices[candidate.layer] = [item for item in items if item.candidate.method == KEEP]


def timed_ways(prepared: Prepared, threads: int) -> dict[str, Way]:
    """Return, by title, what makes a network of a measured speed-up."""
    network, fitter = prepared.network(threads), prepared.fitter(threads)

    def reach(
        candidates: Mapping[str, Sequence[Candidate]], losses: Losses, select: Select, asked: float
    ) -> FittedNetwork:
        builder = NetworkBuilder(network, candidates, losses, select, fitter, Silent())
        return network_for_speedup(builder, prepared.latency_model(threads, candidates, losses), asked)

    def count(select: Select, asked: float) -> FittedNetwork:
        builder = NetworkBuilder(network, prepared.candidates, EnergyLosses(), select, fitter, Silent())
        return network_for_speedup(builder, Counted(prepared.candidates), asked)

    def only(*passes: str) -> dict[str, list[Candidate]]:
        return {
            name: [one for one in candidates if one.method in (KEEP, "fully_connected", *passes)]
            for name, candidates in prepared.candidates.items()
        }

    felt = cache(prepared.sensitivities)
    return {
        "uniform ratio": partial(count, select_uniformly),
        "greedy on MACs (Zhang 2015)": partial(count, select_by_energy),
        "greedy on latency": partial(reach, prepared.candidates, EnergyLosses(), select_by_energy),
        "knapsack, spatial": partial(reach, only("spatial"), EnergyLosses(), select_exactly),
        "knapsack, cp": partial(reach, only("cp"), EnergyLosses(), select_exactly),
        "knapsack, all passes": partial(reach, prepared.candidates, EnergyLosses(), select_exactly),
        "knapsack, all passes, sensitivity": lambda asked: reach(prepared.candidates, felt(), select_exactly, asked),
    }


def counted_ways(prepared: Prepared, threads: int) -> dict[str, Way]:
    """Return, by title, what makes a network of a speed-up in MACs of the convolutions."""
    network, fitter = prepared.network(threads), Fitter(prepared.about, prepared.drafts)

    def reach(losses: Losses, select: Select, asked: float) -> FittedNetwork:
        return network_for_conv_macs(
            NetworkBuilder(network, prepared.candidates, losses, select, fitter, Silent()), asked
        )

    felt = cache(prepared.sensitivities)
    return {
        "uniform ratio": partial(reach, EnergyLosses(), select_uniformly),
        "greedy (Zhang 2015)": partial(reach, EnergyLosses(), select_by_energy),
        "knapsack": partial(reach, EnergyLosses(), select_exactly),
        "knapsack, sensitivity": lambda asked: reach(felt(), select_exactly, asked),
    }


def main() -> None:
    parser = arguments(__doc__, test_inputs=1000)
    parser.add_argument("--speedups", default="2,3,4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--macs", action="store_true", help="compare at equal multiply-accumulates, not equal time")
    parser.add_argument("--ways", default="", help="only those whose titles contain one of these, e.g. greedy,all")
    parser.add_argument("--plot", help="write a plot, e.g. selections.svg")
    parser.add_argument("--json", help="write the divergence of every test input too, after every network")
    args = parser.parse_args()
    rows = []
    with RowStore() as store:
        prepared = prepare(args, store)
        test = some_inputs(args, prepared.original, args.test, args.test_inputs)
        network = prepared.network(args.threads)
        ways = counted_ways(prepared, args.threads) if args.macs else timed_ways(prepared, args.threads)
        tried = {title: way for title, way in ways.items() if any(part in title for part in args.ways.split(","))}
        dense = sum(layer.macs for layer in prepared.layers)
        truth = scores(prepared.original, test)
        for asked in map(float, args.speedups.split(",")):
            for title, way in tried.items():
                made = way(asked)
                timed = speedup_interval(
                    *time_in_sessions([prepared.original, made.model], network.feeds, network.target, 20.0)
                )
                fewer = dense / sum(candidate.macs for candidate in made.plan.values())
                rows.append(
                    {
                        "asked": asked,
                        "selection": title,
                        "reached": args.macs or made.speedup >= asked,
                        "speedup": timed.ratio,
                        "low": timed.low,
                        "high": timed.high,
                        "macs": fewer,
                        **losses(truth, scores(made.model, test), test.labels),
                    }
                )
                faster = f"{timed.ratio:.2f}x ({timed.low:.2f} .. {timed.high:.2f})"
                print(f"{asked:g}x, {title}: {faster}, {fewer:.2f}x fewer MACs, KL {rows[-1]['kl']:.4f}", flush=True)
                if args.json:
                    Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
                if args.plot:
                    plot(rows, "macs" if args.macs else "speedup", args.plot)
    title = f"What every way to select a plan loses, at {'equal MACs' if args.macs else 'a measured speed-up'}"
    name = result_name(args, *(["macs"] if args.macs else []))
    table_rows = [table_row(row, rows) for row in rows]
    write_results(args, name, f"{title}: {Path(args.model).stem}", COLUMNS, table_rows, plot=args.plot)


def scores(model: onnx.ModelProto, test: Inputs) -> NDArray[np.floating]:
    """Return a classifier's scores ``[N, classes]``."""
    session = open_session(model, all_threads())
    found = np.concatenate([session.run(None, feeds)[0] for feeds in test])
    if found.ndim != 2 or found.shape[1] < 2:
        raise SystemExit("selections are compared by KL divergence, but the first output is no [N, classes]")
    return found


def losses(
    truth: NDArray[np.floating], changed: NDArray[np.floating], labels: NDArray[np.int64] | None
) -> dict[str, object]:
    """Return what the scores lost: KL divergence of every input and on average, per cent of other classes, points."""
    each = [divergence(truth[row : row + 1], changed[row : row + 1]) for row in range(len(truth))]
    first, its_first = truth.argmax(axis=1), changed.argmax(axis=1)
    right = None if labels is None else [(one == labels.ravel()).mean() for one in (first, its_first)]
    return {
        "kl": float(np.mean(each)),
        "each": each,
        "other_class": float(100 * (first != its_first).mean()),
        "drop": None if right is None else float(100 * (right[0] - right[1])),
    }


def against(row: Mapping[str, object], default: Mapping[str, object]) -> list[float]:
    """Return how many times as much as the default loses a way does, with its interval."""
    one, other = (np.array(which["each"]) for which in (row, default))
    drawn = np.random.default_rng(0).integers(len(one), size=(2000, len(one)))
    low, high = np.quantile(one[drawn].mean(axis=1) / other[drawn].mean(axis=1), [0.025, 0.975])
    return [one.mean() / other.mean(), low, high]


def table_row(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """Return what the table says of a network, compared with the default's of the same speed-up among ``rows``."""
    default = [one for one in rows if one["asked"] == row["asked"] and one["selection"].endswith("sensitivity")]
    compared = against(row, default[0]) if default else None
    timed = [row["speedup"], row["low"], row["high"]]
    losses = row["kl"], compared, row["other_class"], row["drop"]
    return [row["asked"], row["selection"], row["reached"], timed, row["macs"], *losses]


def plot(rows: Sequence[Mapping[str, float]], x: str, path: str) -> None:
    """Draw divergence against speed-up, measured ones with their intervals."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for title in dict.fromkeys(row["selection"] for row in rows):
        mine = [row for row in rows if row["selection"] == title]
        around = [(row[x] - row["low"], row["high"] - row[x]) if x == "speedup" else (0, 0) for row in mine]
        axes.errorbar(
            [row[x] for row in mine], [row["kl"] for row in mine], xerr=np.transpose(around), marker="o", label=title
        )
    axes.set(xlabel="fewer MACs" if x == "macs" else "measured speed-up", ylabel="KL divergence", yscale="log")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    with rc_context({"svg.hashsalt": "selections", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


if __name__ == "__main__":
    main()

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
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.evaluate.classes import class_scores, divergence
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.interleaved import speedup_interval, time_in_sessions
from onnxlowrank.measure.sessions import all_threads, open_session
from onnxlowrank.passes.base import KEEP, Candidate, Plan
from onnxlowrank.plan.builder import FittedNetwork, NetworkBuilder
from onnxlowrank.plan.energy import select_by_energy, select_uniformly
from onnxlowrank.plan.goals import network_for_conv_macs, network_for_speedup
from onnxlowrank.plan.knapsack import select_exactly
from onnxlowrank.plan.selection import EnergyLosses, Item, Losses, Select, lost_energy
from onnxlowrank.progress import Silent

Way = Callable[[float], FittedNetwork]
"""Makes a network of a speed-up."""


class Counted:
    """Prices that count multiply-accumulates. A count cannot be corrected: where chains do not pay, layers are kept."""

    rest = 0.0

    def __init__(self, candidates: Mapping[str, Sequence[Candidate]]) -> None:
        self._offers = {
            name: [Item(one, one.macs, lost_energy(one)) for one in offered] for name, offered in candidates.items()
        }
        self.dense = {name: max(offer.cost for offer in offered) for name, offered in self._offers.items()}
        self.whole = sum(self.dense.values())

    def choices(self, timed: bool = False) -> dict[str, list[Item]]:
        return self._offers

    def total(self, plan: Plan) -> float:
        return sum(candidate.macs for candidate in plan.values())

    def learn(self, plan: Plan) -> bool:
        return False

    def calibrate(self, plan: Plan, milliseconds: float) -> None:
        pass

    def correct(self, candidate: Candidate, milliseconds: float) -> None:
        offered = self._offers[candidate.layer]
        self._offers[candidate.layer] = [offer for offer in offered if offer.candidate.method == KEEP]


def timed_ways(prepared: Prepared, threads: int) -> dict[str, Way]:
    """Return, by title, what makes a network of a measured speed-up."""
    network, fitter = prepared.network(threads), prepared.fitter(threads)

    def reach(
        offered: Mapping[str, Sequence[Candidate]], losses: Losses, select: Select, asked: float
    ) -> FittedNetwork:
        bench = NetworkBuilder(network, offered, losses, select, fitter, Silent())
        return network_for_speedup(bench, prepared.latency_model(threads, offered, losses), asked)

    def count(select: Select, asked: float) -> FittedNetwork:
        bench = NetworkBuilder(network, prepared.candidates, EnergyLosses(), select, fitter, Silent())
        return network_for_speedup(bench, Counted(prepared.candidates), asked)

    def only(*passes: str) -> dict[str, list[Candidate]]:
        return {
            name: [one for one in offered if one.method in (KEEP, "fully_connected", *passes)]
            for name, offered in prepared.candidates.items()
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
    parser = arguments(__doc__)
    parser.add_argument("test")
    parser.add_argument("--test-inputs", type=int, default=1000)
    parser.add_argument("--speedups", default="2,3,4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--macs", action="store_true", help="compare at equal multiply-accumulates, not equal time")
    parser.add_argument("--ways", default="", help="only those whose titles contain one of these, e.g. greedy,all")
    parser.add_argument("--plot", help="write a plot, e.g. selections.svg")
    parser.add_argument("--json", help="write the figures")
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
    report(rows)


def scores(model: onnx.ModelProto, test: Inputs) -> NDArray[np.floating]:
    """Return a classifier's scores ``[N, classes]``."""
    session = open_session(model, all_threads())
    found = class_scores([session.run(None, feeds)[0] for feeds in test])
    if found is None:
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


def against(row: Mapping[str, object], default: Mapping[str, object]) -> str:
    """Return how many times as much as the default loses a way does."""
    one, other = (np.array(which["each"]) for which in (row, default))
    drawn = np.random.default_rng(0).integers(len(one), size=(2000, len(one)))
    low, high = np.quantile(one[drawn].mean(axis=1) / other[drawn].mean(axis=1), [0.025, 0.975])
    return f"{one.mean() / other.mean():.2f} ({low:.2f} .. {high:.2f})"


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table in Markdown."""
    table = Table("asked for", "selection", "measured", "fewer MACs", "KL", "KL / default's", "other class", "drop")
    table.box = MARKDOWN
    for row in rows:
        defaults = [one for one in rows if one["asked"] == row["asked"] and one["selection"].endswith("sensitivity")]
        table.add_row(
            f"{row['asked']:g}x{'' if row['reached'] else ', not reached'}",
            str(row["selection"]),
            f"{row['speedup']:.2f}x ({row['low']:.2f} .. {row['high']:.2f})",
            f"{row['macs']:.2f}x",
            f"{row['kl']:.4f}",
            against(row, defaults[0]) if defaults else "",
            f"{row['other_class']:.2f} %",
            "" if row["drop"] is None else f"{row['drop']:.2f}",
        )
    Console(width=160).print(table)


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

"""At the same measured speed-up: what every way to select a plan loses, as a table and a plot.

    python benchmarks/selections.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz \
        --speedups 2,3,4,5 --plot selections.svg

    python benchmarks/selections.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz \
        --macs --speedups 2,3

Every way is taken to the speed-up as the tool itself does it, fit and measurement repeated where the first network
misses it; plans that count MACs are searched with the same stopwatch. What comes out is timed once more. With
``--macs`` plans have equal multiply-accumulates instead: that tells what the losses are good for, without the noise of
the stopwatch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from common import Prepared, arguments, prepare, some_inputs
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from onnxlowrank.calibrate.capture import Spool
from onnxlowrank.cost.duel import ratio_of, take_turns
from onnxlowrank.evaluate import compare_outputs
from onnxlowrank.fit import Fitter
from onnxlowrank.passes.base import KEEP, Candidate
from onnxlowrank.progress import Silent
from onnxlowrank.reach import Made, Workbench, reach_conv_macs, reach_speedup
from onnxlowrank.select.energy import select_by_energy, select_uniformly
from onnxlowrank.select.knapsack import select_exactly
from onnxlowrank.select.offer import Energies, Losses, Offer, Plan, Select, lost_energy

Way = Callable[[float], Made]
"""Makes a network of a speed-up."""


class Counted:
    """Prices that count multiply-accumulates."""

    rest = 0.0

    def __init__(self, candidates: Mapping[str, Sequence[Candidate]]) -> None:
        self._offers = {
            name: [Offer(one, one.macs, lost_energy(one)) for one in offered] for name, offered in candidates.items()
        }
        self.dense = {name: max(offer.cost for offer in offered) for name, offered in self._offers.items()}
        self.whole = sum(self.dense.values())

    def offers(self, timed: bool = False) -> dict[str, list[Offer]]:
        return self._offers

    def total(self, plan: Plan) -> float:
        return sum(candidate.macs for candidate in plan.values())

    def learn(self, plan: Plan) -> bool:
        return False

    def calibrate(self, plan: Plan, milliseconds: float) -> None:
        pass

    def correct(self, candidate: Candidate, milliseconds: float) -> None:
        pass


def timed_ways(prepared: Prepared, threads: int) -> dict[str, Way]:
    """Return, by title, what makes a network of a measured speed-up."""
    network, fitter = prepared.network(threads), prepared.fitter(threads)

    def reach(offered: Mapping[str, Sequence[Candidate]], losses: Losses, select: Select, asked: float) -> Made:
        bench = Workbench(network, offered, losses, select, fitter, Silent())
        return reach_speedup(bench, prepared.prices(threads, offered, losses), asked)

    def count(select: Select, asked: float) -> Made:
        bench = Workbench(network, prepared.candidates, Energies(), select, fitter, Silent())
        return reach_speedup(bench, Counted(prepared.candidates), asked)

    def only(*passes: str) -> dict[str, list[Candidate]]:
        return {
            name: [one for one in offered if one.method in (KEEP, "fully_connected", *passes)]
            for name, offered in prepared.candidates.items()
        }

    felt = cache(prepared.sensitivities)
    return {
        "uniform ratio": partial(count, select_uniformly),
        "greedy on MACs (Zhang 2015)": partial(count, select_by_energy),
        "greedy on latency": partial(reach, prepared.candidates, Energies(), select_by_energy),
        "knapsack, spatial": partial(reach, only("spatial"), Energies(), select_exactly),
        "knapsack, cp": partial(reach, only("cp"), Energies(), select_exactly),
        "knapsack, all passes": partial(reach, prepared.candidates, Energies(), select_exactly),
        "knapsack, all passes, sensitivity": lambda asked: reach(prepared.candidates, felt(), select_exactly, asked),
    }


def counted_ways(prepared: Prepared, threads: int) -> dict[str, Way]:
    """Return, by title, what makes a network of a speed-up in MACs of the convolutions."""
    network, fitter = prepared.network(threads), Fitter(prepared.about, prepared.drafts)

    def reach(losses: Losses, select: Select, asked: float) -> Made:
        return reach_conv_macs(Workbench(network, prepared.candidates, losses, select, fitter, Silent()), asked)

    felt = cache(prepared.sensitivities)
    return {
        "uniform ratio": partial(reach, Energies(), select_uniformly),
        "greedy (Zhang 2015)": partial(reach, Energies(), select_by_energy),
        "knapsack": partial(reach, Energies(), select_exactly),
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
    with Spool() as spool:
        prepared = prepare(args, spool)
        test = some_inputs(args, prepared.original, args.test, args.test_inputs)
        network = prepared.network(args.threads)
        ways = counted_ways(prepared, args.threads) if args.macs else timed_ways(prepared, args.threads)
        tried = {title: way for title, way in ways.items() if any(part in title for part in args.ways.split(","))}
        dense = sum(layer.macs for layer in prepared.layers)
        for asked in map(float, args.speedups.split(",")):
            for title, way in tried.items():
                made = way(asked)
                change = compare_outputs(prepared.original, made.model, test, lambda amount: None)
                timed = ratio_of(*take_turns([prepared.original, made.model], network.feeds, network.target, 20.0))
                fewer = dense / sum(candidate.macs for candidate in made.plan.values())
                rows.append(
                    {
                        "asked": asked,
                        "selection": title,
                        "reached": args.macs or made.speedup >= asked,
                        "speedup": fewer if args.macs else timed.ratio,
                        "low": timed.low,
                        "high": timed.high,
                        "macs": fewer,
                        "divergence": change.divergence,
                        "error": change.relative_error,
                        "other_class": None if change.top1_agreement is None else 100 * (1 - change.top1_agreement),
                        "drop": change.drop,
                    }
                )
                print(f"{asked:g}x, {title}: {timed}, {fewer:.2f}x fewer MACs, {change}", flush=True)
                if args.json:
                    Path(args.json).write_text(json.dumps(rows, indent=2) + "\n")
                if args.plot:
                    plot(rows, args.plot)
    report(rows, f"{args.model}, {len(test)} test inputs")


def report(rows: Sequence[Mapping[str, object]], title: str) -> None:
    columns = {"speedup": ".2f", "error": ".4f", "divergence": ".4f", "other_class": ".2f", "drop": ".2f"}
    table = Table(title=title, title_justify="left")
    for column in ("asked for", "selection", *columns):
        table.add_column(column)
    for row in rows:
        figures = ("" if row[name] is None else format(row[name], form) for name, form in columns.items())
        table.add_row(f"{row['asked']:g}x{'' if row['reached'] else ', not reached'}", str(row["selection"]), *figures)
    Console(width=140).print(table)


def plot(rows: Sequence[Mapping[str, object]], path: str) -> None:
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.subplots()
    for title in dict.fromkeys(row["selection"] for row in rows):
        mine = [row for row in rows if row["selection"] == title]
        axes.plot([row["speedup"] for row in mine], [row["error"] for row in mine], marker="o", label=title)
    axes.set(xlabel="speed-up", ylabel="relative error of the output", yscale="log")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path)


if __name__ == "__main__":
    main()

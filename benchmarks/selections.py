"""At the same measured speed-up: what every way to select a plan loses, as a table and a plot.

    python benchmarks/selections.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz \
        --speedups 2,3,4,5 --plot selections.svg

    python benchmarks/selections.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz \
        --macs --speedups 2,3

Plans that count MACs are searched with the same stopwatch. Every network is timed in turns with the original, as in the
search: in one ring of many, small ones look faster than they do beside the original alone. With ``--macs`` nothing is
timed: that tells what the losses are good for, without the noise of the stopwatch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from common import Prepared, arguments, prepare, some_inputs
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from onnxlowrank.calibrate.capture import Spool
from onnxlowrank.cost.latency import measure, ratio
from onnxlowrank.evaluate import compare_outputs
from onnxlowrank.fit import Fitter
from onnxlowrank.passes.base import KEEP, Candidate
from onnxlowrank.prices import Prices
from onnxlowrank.progress import Silent
from onnxlowrank.reach import plan_by_macs
from onnxlowrank.search import Found, search_plan, written
from onnxlowrank.select.energy import select_by_energy, select_uniformly
from onnxlowrank.select.knapsack import select_exactly
from onnxlowrank.select.offer import Energies, Losses, Offer, Plan, Select, lost_energy


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


def ways(prepared: Prepared, threads: int) -> dict[str, tuple[Prices | Counted, Select]]:
    """Return prices and selections by title."""

    def only(*passes: str) -> dict[str, list[Candidate]]:
        return {
            name: [one for one in offered if one.method in (KEEP, "fully_connected", *passes)]
            for name, offered in prepared.candidates.items()
        }

    price: Callable[..., Prices] = partial(prepared.prices, threads)
    return {
        "uniform ratio": (Counted(prepared.candidates), select_uniformly),
        "greedy on MACs (Zhang 2015)": (Counted(prepared.candidates), select_by_energy),
        "greedy on latency": (price(), select_by_energy),
        "knapsack, spatial": (price(only("spatial")), select_exactly),
        "knapsack, cp": (price(only("cp")), select_exactly),
        "knapsack, all passes": (price(), select_exactly),
        "knapsack, all passes, sensitivity": (price(losses=prepared.sensitivities()), select_exactly),
    }


def timed_plans(prepared: Prepared, threads: int) -> dict[str, Callable[[float], Found]]:
    """Return, by title, what makes a plan of a measured speed-up."""
    network = prepared.network(threads)

    def search(prices: Prices | Counted, select: Select, asked: float) -> Found:
        return search_plan(network, prices, select, asked, Silent())

    return {title: partial(search, *way) for title, way in ways(prepared, threads).items()}


def counted_plans(prepared: Prepared) -> dict[str, Callable[[float], Found]]:
    """Return, by title, what makes a plan of a speed-up in MACs of the convolutions."""
    layers, felt = prepared.layers, prepared.sensitivities()
    dense = sum(layer.macs for layer in layers)

    def count(losses: Losses, select: Select, asked: float) -> Found:
        plan = plan_by_macs(layers, prepared.candidates, asked, select, losses)
        speedup = dense / sum(candidate.macs for candidate in plan.values())
        return Found(plan, speedup, speedup, reached=True)

    return {
        "uniform ratio": partial(count, Energies(), select_uniformly),
        "greedy (Zhang 2015)": partial(count, Energies(), select_by_energy),
        "knapsack": partial(count, Energies(), select_exactly),
        "knapsack, sensitivity": partial(count, felt, select_exactly),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("test")
    parser.add_argument("--test-inputs", type=int, default=1000)
    parser.add_argument("--speedups", default="2,3,4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--macs", action="store_true", help="count multiply-accumulates instead of timing")
    parser.add_argument("--ways", default="", help="only those whose titles contain one of these, e.g. greedy,all")
    parser.add_argument("--plot", help="write a plot, e.g. selections.svg")
    parser.add_argument("--json", help="write the figures")
    args = parser.parse_args()
    rows = []
    with Spool() as spool:
        prepared = prepare(args, spool)
        test = some_inputs(args, prepared.original, args.test, args.test_inputs)
        network = prepared.network(args.threads)
        fitter = Fitter(prepared.about, prepared.drafts) if args.macs else prepared.fitter(args.threads)
        plans = counted_plans(prepared) if args.macs else timed_plans(prepared, args.threads)
        tried = {title: way for title, way in plans.items() if any(part in title for part in args.ways.split(","))}
        for asked in map(float, args.speedups.split(",")):
            for title, plan in tried.items():
                found = plan(asked)
                chains = fitter.fit(found.plan, Silent())
                model = written(network.model, network.layers, chains) if chains else prepared.original
                change = compare_outputs(prepared.original, model, test, lambda amount: None)
                speedup = found.speedup
                if not args.macs:
                    speedup = ratio(*measure([network.original, model], network.feeds, network.target, seconds=10.0))
                rows.append(
                    {
                        "asked": asked,
                        "selection": title,
                        "reached": found.reached,
                        "speedup": speedup,
                        "divergence": change.divergence,
                        "error": change.relative_error,
                        "other_class": None if change.top1_agreement is None else 100 * (1 - change.top1_agreement),
                        "drop": change.drop,
                    }
                )
                print(f"{asked:g}x, {title}: {speedup:.2f}x, {change}", flush=True)
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

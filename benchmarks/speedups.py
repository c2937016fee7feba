"""Speed-up asked for and measured, on outlines: networks of the right shapes, whose weights do not matter for time.

    python benchmarks/speedups.py models/vgg_cifar10.onnx models/cifar10_calibration.npz

Plans are corrected as the tool does it, but nothing is fitted. What is accepted is measured once more; in brackets is
the 95 % interval. MACs are those of the layers, so the last column but one says how much of the theoretical speed-up
turned into time.
"""

from __future__ import annotations

import time

from common import arguments, prepare
from rich.console import Console
from rich.table import Table

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.graph.chain import Chain
from onnxlowrank.measure.interleaved import speedup_interval, time_in_sessions
from onnxlowrank.passes.base import Plan
from onnxlowrank.plan.builder import NetworkBuilder
from onnxlowrank.plan.goals import network_for_speedup
from onnxlowrank.plan.knapsack import select_exactly
from onnxlowrank.plan.network import Network
from onnxlowrank.plan.selection import EnergyLosses
from onnxlowrank.progress import Progress, Silent


class Outliner:
    """Stands in for what fits plans: gives chains constants for weights."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def fit(self, plan: Plan, progress: Progress) -> dict[str, Chain]:
        return self._network.outlines(plan)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--speedups", default="1.5,2,3,4,5")
    parser.add_argument("--threads", default="1,2")
    args = parser.parse_args()
    table = Table(title=f"{args.model}", title_justify="left")
    for column in ("threads", "asked for", "predicted", "measured", "", "MACs", "measured / MACs", "search (s)"):
        table.add_column(column, justify="right")
    with RowStore() as store:
        prepared = prepare(args, store)
        total = sum(layer.macs for layer in prepared.layers)
        for threads in map(int, args.threads.split(",")):
            network = prepared.network(threads)
            bench = NetworkBuilder(
                network, prepared.candidates, EnergyLosses(), select_exactly, Outliner(network), Silent()
            )
            for asked in map(float, args.speedups.split(",")):
                start = time.perf_counter()
                made = network_for_speedup(bench, prepared.latency_model(threads), asked)
                seconds = time.perf_counter() - start
                got = speedup_interval(
                    *time_in_sessions([network.original, made.model], network.feeds, network.target, 10.0)
                )
                verdict = "not reachable" if made.speedup < asked else f"{100 * (got.ratio / asked - 1):+.1f} %"
                macs = total / sum(candidate.macs for candidate in made.plan.values())
                row = (
                    f"{asked:g}x",
                    f"{made.predicted:.2f}x",
                    f"{got.ratio:.2f}x ({got.low:.2f} .. {got.high:.2f})",
                    verdict,
                    f"{macs:.2f}x",
                    f"{got.ratio / macs:.2f}",
                )
                table.add_row(str(threads), *row, f"{seconds:.0f}")
                print(threads, *row, f"{seconds:.0f}", flush=True)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

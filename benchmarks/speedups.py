"""Speed-up asked for and measured, on outlines: networks of the right shapes, whose weights do not matter for time.

    python benchmarks/speedups.py models/vgg_cifar10.onnx models/cifar10_calibration.npz

Every plan is measured anew, in several sessions, after the search has accepted it; in brackets is the 95 % interval.
MACs are those of the layers, so the last column but one says how much of the theoretical speed-up turned into time.
"""

from __future__ import annotations

import time

from common import arguments, prepare
from rich.console import Console
from rich.table import Table

from onnxlowrank.calibrate.capture import Spool
from onnxlowrank.cost.duel import ratio_of, take_turns
from onnxlowrank.progress import Silent
from onnxlowrank.search import search_plan
from onnxlowrank.select.knapsack import select_exactly


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--speedups", default="1.5,2,3,4,5")
    parser.add_argument("--threads", default="1,2")
    args = parser.parse_args()
    table = Table(title=f"{args.model}", title_justify="left")
    for column in ("threads", "asked for", "predicted", "measured", "", "MACs", "measured / MACs", "search (s)"):
        table.add_column(column, justify="right")
    with Spool() as spool:
        prepared = prepare(args, spool)
        total = sum(layer.macs for layer in prepared.layers)
        for threads in map(int, args.threads.split(",")):
            network = prepared.network(threads)
            start = time.perf_counter()
            prices = prepared.prices(threads)
            for asked in map(float, args.speedups.split(",")):
                found = search_plan(network, prices, select_exactly, asked, Silent())
                seconds = time.perf_counter() - start
                pair = [network.original, network.outline(found.plan)]
                got = ratio_of(*take_turns(pair, network.feeds, network.target, 10.0))
                verdict = "not reachable" if not found.reached else f"{100 * (got.ratio / asked - 1):+.1f} %"
                macs = total / sum(candidate.macs for candidate in found.plan.values())
                row = (
                    f"{asked:g}x",
                    f"{found.predicted:.2f}x",
                    f"{got.ratio:.2f}x ({got.low:.2f} .. {got.high:.2f})",
                    verdict,
                    f"{macs:.2f}x",
                    f"{got.ratio / macs:.2f}",
                )
                table.add_row(str(threads), *row, f"{seconds:.0f}")
                print(threads, *row, f"{seconds:.0f}", flush=True)
                start = time.perf_counter()
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

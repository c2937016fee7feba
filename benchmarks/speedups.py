"""Speed-up asked for and measured, on outlines: networks of the right shapes, whose weights do not matter for time.

    python benchmarks/speedups.py models/vgg_cifar10.onnx models/cifar10_calibration.npz

Plans are corrected as the tool does it, but nothing is fitted. What is accepted is measured once more. MACs are those
of the layers, so the last column but one says how much of the theoretical speed-up turned into time.
"""

from __future__ import annotations

import time
from pathlib import Path

from common import arguments, prepare
from tables import result_name, write_results

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

COLUMNS = {
    "threads": "{}",
    "asked for": "{:g}x",
    "reached": "",
    "predicted": "{:.2f}x",
    "measured": "{:.2f}x",
    "fewer MACs": "{:.2f}x",
    "measured / MACs": "{:.2f}",
    "search (s)": "{:.0f}",
}


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
    rows = []
    with RowStore() as store:
        prepared = prepare(args, store)
        total = sum(layer.macs for layer in prepared.layers)
        for threads in map(int, args.threads.split(",")):
            network = prepared.network(threads)
            builder = NetworkBuilder(
                network, prepared.candidates, EnergyLosses(), select_exactly, Outliner(network), Silent()
            )
            for asked in map(float, args.speedups.split(",")):
                start = time.perf_counter()
                made = network_for_speedup(builder, prepared.latency_model(threads), asked)
                seconds = time.perf_counter() - start
                got = speedup_interval(
                    *time_in_sessions([network.original, made.model], network.feeds, network.target, 10.0)
                )
                macs = total / sum(candidate.macs for candidate in made.plan.values())
                interval = got.ratio, got.low, got.high
                reached = made.speedup >= asked
                rows.append([threads, asked, reached, made.predicted, interval, macs, got.ratio / macs, seconds])
                print(f"{threads} threads, {asked:g}x: {got.ratio:.2f}x ({got.low:.2f} .. {got.high:.2f})", flush=True)
    title = f"Speed-up asked for and measured: {Path(args.model).stem}"
    write_results(args, result_name(args), title, COLUMNS, rows)


if __name__ == "__main__":
    main()

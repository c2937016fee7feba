"""Which objective of the selection foresees what a plan does to the outputs: energies, or measured sensitivities.

    python benchmarks/rank_correlation.py models/vgg_cifar10.onnx models/cifar10_calibration.npz models/cifar10_test.npz

Plans are drawn by the usual selection with random weights of the layers, fitted, and compared with the original on test
inputs. Spearman's rank correlation of the divergence with what every objective predicts is printed for two groups:
plans of different speed-ups, and, the harder question and the one selection asks, plans of about the same speed-up
whose budget is spread over the layers differently.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from common import arguments, prepare, some_inputs
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.evaluate.agreement import compare_outputs
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.passes.base import Candidate, Plan
from onnxlowrank.plan.energy import select_by_energy
from onnxlowrank.plan.selection import EnergyLosses, Item, Losses, lost_energy
from onnxlowrank.progress import Silent

DIFFERENT, EQUAL = "different speed-ups", "equal speed-ups"
SPREAD = 1.0
"""Standard deviation of the logarithm of the weights of the layers in the selection."""


@dataclass(frozen=True)
class Row:
    """One plan: its group, what became of the network, and what the objectives had predicted."""

    group: str
    speedup: float
    change: float
    drop: float
    predicted: dict[str, float]
    plan: list[Candidate]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("test")
    parser.add_argument("--test-inputs", type=int, default=500)
    parser.add_argument("--plans", type=int, default=50, help="half of them of different speed-ups, half of equal ones")
    parser.add_argument("--speedup", type=float, default=3.0, help="of the plans of equal speed-ups, in MACs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write every plan, what was predicted and what came out")
    args = parser.parse_args()
    console = Console(width=140, stderr=True)

    rng = np.random.default_rng(args.seed)
    rows = []
    with RowStore() as store:
        prepared = prepare(args, store)
        original, layers, offered = prepared.original, prepared.layers, prepared.candidates
        test = some_inputs(args, original, args.test, args.test_inputs)
        fitter = Fitter(prepared.about, prepared.drafts)
        start = time.perf_counter()
        objectives: dict[str, Losses] = {"energy": EnergyLosses(), "sensitivity": prepared.sensitivities()}
        console.print(f"sensitivities measured in {time.perf_counter() - start:.1f} s")
        dense = sum(layer.macs for layer in layers)
        for index in range(args.plans):
            group = EQUAL if index % 2 else DIFFERENT
            speedup = args.speedup if group == EQUAL else float(rng.uniform(1.5, 5))
            plan = random_plan(offered, dense / speedup, rng)
            chains = fitter.fit(plan, Silent())
            change, drop = compare(original, rewrite(prepared.about.model, layers, chains), test)
            predicted = {title: foreseen(losses, plan) for title, losses in objectives.items()}
            reached = dense / sum(candidate.macs for candidate in plan.values())
            rows.append(Row(group, reached, change, drop, predicted, list(plan.values())))
            console.print(f"{index}: {reached:.2f}x, {change:.4f}, drop {drop:.1f}, {predicted}")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    Console(width=140).print(table(rows, f"{prepared.inputs.description}; {test.description}"))


def foreseen(losses: Losses, plan: Plan) -> float:
    """Return what a plan is predicted to lose, once its losses were looked at as the selection does."""
    losses.refine(plan)
    return sum(map(losses.of, plan.values()))


def table(rows: Sequence[Row], title: str) -> Table:
    """Return the rank correlations of every objective in either group."""
    shown = Table(title=title, title_justify="left")
    for column in ("plans", "number", "speed-up", "top-1 drop (points)", "divergence", *rows[0].predicted):
        shown.add_column(column, justify="right")
    for group in (DIFFERENT, EQUAL):
        chosen = [row for row in rows if row.group == group]
        changes = [row.change for row in chosen]
        shown.add_row(
            group,
            str(len(chosen)),
            _range([row.speedup for row in chosen], 2),
            _range([row.drop for row in chosen], 1),
            _range(changes, 4),
            *(
                f"{spearmanr([row.predicted[name] for row in chosen], changes).statistic:.3f}"
                for name in rows[0].predicted
            ),
        )
    return shown


def random_plan(offered: Mapping[str, Sequence[Candidate]], budget: float, rng: np.random.Generator) -> Plan:
    """Return the plan within the budget that is best if the layers count as much as chance says."""
    choices = {}
    for name, candidates in offered.items():
        weight = float(np.exp(SPREAD * rng.standard_normal()))
        choices[name] = [Item(one, one.macs, weight * lost_energy(one)) for one in candidates]
    return select_by_energy(choices, budget)


def compare(original: onnx.ModelProto, optimised: onnx.ModelProto, test: Inputs) -> tuple[float, float]:
    """Return the divergence, or the relative error where there are no classes, and the drop of accuracy in points."""
    found = compare_outputs(original, optimised, test, lambda amount: None)
    before, after = found.accuracy or (float("nan"), float("nan"))
    return found.relative_error if found.divergence is None else found.divergence, 100 * (before - after)


def _range(values: Sequence[float], digits: int) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


if __name__ == "__main__":
    main()

"""Which objective of the selection foresees what a plan does to the outputs: energies, or layer sensitivities.

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
from common import accuracy_drop, agreement, arguments, prepare, some_inputs
from scipy.stats import spearmanr
from tables import Cell, result_name, write_results

from onnxlowrank.calibrate.capture import RowStore
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
COLUMNS = {
    "plans": "",
    "number": "{}",
    "speed-up: median (range)": "{:.2f}x",
    "top-1 drop (points)": "{:.1f}",
    "divergence": "{:.4f}",
}


@dataclass(frozen=True)
class Row:
    """One plan: its group, what became of the network, and what the objectives had predicted."""

    group: str
    speedup: float
    change: float
    drop: float | None
    predicted: dict[str, float]
    plan: list[Candidate]


def main() -> None:
    parser = arguments(__doc__, test_inputs=500)
    parser.add_argument("--plans", type=int, default=50, help="half of them of different speed-ups, half of equal ones")
    parser.add_argument("--speedup", type=float, default=3.0, help="of the plans of equal speed-ups, in MACs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write every plan, what was predicted and what came out")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    rows = []
    with RowStore() as store:
        prepared = prepare(args, store)
        original, layers, candidates = prepared.original, prepared.layers, prepared.candidates
        test = some_inputs(args, original, args.test, args.test_inputs)
        fitter = Fitter(prepared.about, prepared.drafts)
        start = time.perf_counter()
        objectives: dict[str, Losses] = {"energy": EnergyLosses(), "sensitivity": prepared.sensitivities()}
        print(f"layer sensitivities measured in {time.perf_counter() - start:.1f} s")
        dense = sum(layer.macs for layer in layers)
        for index in range(args.plans):
            group = EQUAL if index % 2 else DIFFERENT
            speedup = args.speedup if group == EQUAL else float(rng.uniform(1.5, 5))
            plan = random_plan(candidates, dense / speedup, rng)
            chains = fitter.fit(plan, Silent())
            change, drop = compare(original, rewrite(prepared.about.model, layers, chains), test)
            predicted = {title: foreseen(losses, plan) for title, losses in objectives.items()}
            reached = dense / sum(candidate.macs for candidate in plan.values())
            rows.append(Row(group, reached, change, drop, predicted, list(plan.values())))
            print(f"{index}: {reached:.2f}x, {change:.4f}, drop {drop}, {predicted}", flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    columns = {**COLUMNS, **{f"rank correlation, {name}": "{:.3f}" for name in objectives}}
    title = f"What objectives foresee of plans: {Path(args.model).stem}"
    write_results(args, result_name(args), title, columns, [summary(rows, group) for group in (DIFFERENT, EQUAL)])


def foreseen(losses: Losses, plan: Plan) -> float:
    """Return what a plan is predicted to lose, once its losses were looked at as the selection does."""
    losses.refine(plan)
    return sum(map(losses.of, plan.values()))


def summary(rows: Sequence[Row], group: str) -> list[Cell]:
    """Return the rank correlation of every objective in a group."""
    chosen = [row for row in rows if row.group == group]
    changes = [row.change for row in chosen]
    found = [spearmanr([row.predicted[name] for row in chosen], changes).statistic for name in rows[0].predicted]
    drops = [row.drop for row in chosen if row.drop is not None]
    return [group, len(chosen), *map(_range, ([row.speedup for row in chosen], drops, changes)), *found]


def random_plan(candidates: Mapping[str, Sequence[Candidate]], budget: float, rng: np.random.Generator) -> Plan:
    """Return the plan within the budget that is best if the layers count as much as chance says."""
    choices = {}
    for name, some in candidates.items():
        weight = float(np.exp(SPREAD * rng.standard_normal()))
        choices[name] = [Item(one, one.macs, weight * lost_energy(one)) for one in some]
    return select_by_energy(choices, budget)


def compare(original: onnx.ModelProto, optimised: onnx.ModelProto, test: Inputs) -> tuple[float, float | None]:
    """Return the divergence, or the relative error where there are no classes, and the drop of accuracy in points."""
    found = agreement(original, optimised, test)
    return found.relative_error if found.divergence is None else found.divergence, accuracy_drop(found)


def _range(values: Sequence[float]) -> Cell:
    return [float(np.median(values)), min(values), max(values)] if values else None


if __name__ == "__main__":
    main()

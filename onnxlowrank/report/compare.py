"""The report of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from onnxlowrank.evaluate.agreement import Agreement
from onnxlowrank.evaluate.figure_of_merit import metric_title
from onnxlowrank.report.agreement import NOT_COMPARED, figure, is_plain, noise_note, output_table
from onnxlowrank.report.content import Figure, Report, Table
from onnxlowrank.report.environment import environment
from onnxlowrank.report.figures import distributions
from onnxlowrank.report.units import amount
from onnxlowrank.studies.compare import Comparison, ModelSummary, Run


def comparison_report(found: Comparison, command: str = "") -> Report:
    """Return the report of networks side by side."""
    names = [one.name for one in found.facts]
    tables = [_times(found.runs), _sizes(found.facts, found.runs), _differences(names[1:], found.differences)]
    for name, one in zip(names[1:], found.differences, strict=True):
        if one.outputs and not is_plain(one):
            table = output_table(one)
            tables.append(replace(table, title=f"{table.title} of {name}"))
    if found.metric is not None:
        rows = [(name, f"{value:.6g}") for name, value in zip(names, found.merits, strict=True)]
        tables.append(Table("What the metric makes of them", ("network", metric_title(found.metric)), rows))
    notes = [f"outputs were compared on {found.inputs}"]
    notes += [
        f"{name}: outputs were not compared, {one.not_compared}"
        for name, one in zip(names[1:], found.differences, strict=True)
        if one.not_compared
    ]
    notes += [note for note in map(noise_note, found.differences[:1]) if note]
    notes.append("speed-ups are medians over rounds taken in turns, so they may differ from the ratio of the medians")
    if any(one.accuracy for one in found.differences):
        notes.append("accuracies are before -> after: of the first network, and of the one in the row")
    providers = tuple(dict.fromkeys(run.provider for run in found.runs))
    threads = tuple(dict.fromkeys(run.threads for run in found.runs))
    about = environment(providers, threads)
    return Report(
        f"{', '.join(names)}: compared", _headline(found), tables, partial(_figures, found.runs), notes, about, command
    )


def _headline(found: Comparison) -> str:
    first = found.facts[0].name
    best = max((run for run in found.runs if run.model != first), key=lambda run: run.speedup.ratio)
    interval = f"{best.speedup.ratio:.2f}x ({best.speedup.low:.2f} to {best.speedup.high:.2f}"
    where = _condition(best)
    if best.speedup.low > 1:
        return f"{best.model} is {interval}, 95 % confidence) as fast as {first} on {where}."
    if best.speedup.high < 1:
        return f"None is faster than {first}; {best.model} comes closest with {interval}) on {where}."
    return f"{best.model} and {first} are equally fast within the noise: {interval}) on {where}."


def _times(runs: Sequence[Run]) -> Table:
    columns = ("network", "on", "median (ms)", "p90", "p99", "samples/s", "speed-up", "95 % interval", "rounds")
    rows = [
        (
            *(run.model, _condition(run)),
            *(f"{run.percentile(share):.3f}" for share in (50, 90, 99)),
            f"{run.throughput:.1f}",
            f"{run.speedup.ratio:.3f}x",
            f"{run.speedup.low:.3f} .. {run.speedup.high:.3f}" if run.speedup.low < run.speedup.high else "",
            str(len(run.milliseconds)),
        )
        for run in runs
    ]
    return Table("Latency, taken in turns; speed-up over the first network", columns, rows, frozenset({0, 1}))


def _sizes(facts: Sequence[ModelSummary], runs: Sequence[Run]) -> Table:
    columns = ("network", "file", "nodes", "MACs", "parameters", "load (ms)", "peak memory")
    first = {run.model: run for run in reversed(runs)}
    rows = []
    for one in facts:
        memory = first[one.name].footprint.memory
        rows.append(
            (
                *(one.name, amount(one.file_bytes, "B"), str(one.nodes)),
                *(f"{'' if one.macs_complete else 'at least '}{amount(one.macs)}", amount(one.parameters)),
                f"{first[one.name].footprint.load_ms:.1f}",
                "" if memory is None else amount(memory, "B"),
            )
        )
    return Table(f"What they take (load and memory: {_condition(runs[0])}, a process each)", columns, rows)


def _differences(names: Sequence[str], differences: Sequence[Agreement]) -> Table:
    columns = ["network", "output", "largest difference", "relative error", "same top-1 (%)", "in top-5 (%)"]
    labelled = any(one.accuracy for one in differences)
    rows = []
    for name, one in zip(names, differences, strict=True):
        classes = [_percent(one.top1_agreement), _percent(one.top5_agreement)]
        if labelled:
            classes += [_pair(one.accuracy), _pair(one.top5_accuracy)]
        for index, output in enumerate(one.outputs):
            why = output.why_not or NOT_COMPARED
            figures = (figure(output.largest, ".4g", why), figure(output.relative_error, ".4g", ""))
            rows.append((name, output.name, *figures, *(classes if not index else [""] * len(classes))))
    columns += ["top-1 accuracy (%)", "top-5 accuracy (%)"] if labelled else []
    return Table("How outputs differ from the first network's", columns, rows, frozenset({0, 1}))


def _figures(runs: Sequence[Run]) -> list[Figure]:
    return [
        distributions(f"Latency: {condition}", {run.model: run.milliseconds for run in its_runs})
        for condition, its_runs in _by_condition(runs).items()
    ]


def _by_condition(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_condition(run), []).append(run)
    return found


def _condition(run: Run) -> str:
    return f"{run.provider}, {run.threads} thread{'s' * (run.threads > 1)}, batch {run.batch}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _pair(shares: tuple[float, float] | None) -> str:
    return "" if shares is None else f"{100 * shares[0]:.2f} -> {100 * shares[1]:.2f}"

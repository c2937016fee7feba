"""The report of an optimisation as tables in the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxlowrank.evaluate import Agreement
from onnxlowrank.goal import CONV_MACS, LATENCY, MAX_DROP, MAX_MACS, MAX_SIZE, SPEEDUP
from onnxlowrank.passes.base import KEEP
from onnxlowrank.result import LayerReport, ModelReport, Result


def print_result(result: Result, console: Console) -> None:
    """Print the layers, the whole network, and whether the target was reached."""
    console.print(Group(layer_table(result), "", model_table(result), ""))
    for note in result.notes:
        console.print(Text(f"note: {note}"))
    console.print(Text(headline(result), style="bold"))


def layer_table(result: Result) -> RenderableType:
    """Return one row a layer."""
    table = Table(title="Layers", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("became", overflow="fold")
    for column in ("MMACs", "after", "energy"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in result.layers:
        table.add_row(
            Text(layer.name),
            Text(f"kept: {layer.kept_because}" if layer.method == KEEP else f"{layer.method} {_ranks(layer)}"),
            f"{layer.macs[0] / 1e6:.2f}",
            f"{layer.macs[1] / 1e6:.2f}",
            "" if layer.method == KEEP else f"{layer.energy:.3f}",
        )
    return table


def model_table(result: Result) -> RenderableType:
    """Return the whole network before and after."""
    before, after = result.before, result.after
    where = f"{result.provider}, {result.threads} thread{'s' * (result.threads > 1)}"
    table = Table(
        title=f"Whole model, timed on {where}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    table.add_column("")
    for column in ("before", "after", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = (
        ("MMACs", before.macs / 1e6, after.macs / 1e6, ".1f"),
        ("parameters (thousand)", before.parameters / 1e3, after.parameters / 1e3, ".1f"),
        ("file (MB)", before.file_bytes / 1e6, after.file_bytes / 1e6, ".2f"),
    )
    for name, one, other, form in rows:
        table.add_row(name, format(one, form), format(other, form), f"{one / other:.2f}x" if other else "")
    medians = (f"{model.latency.median:.2f}" for model in (before, after))
    table.add_row("latency, median (ms)", *medians, f"{result.latency_speedup:.2f}x")
    table.add_row("latency, 10th .. 90th percentile", _spread(before), _spread(after), "")
    for name, one_text, other_text in _agreement_rows(result.agreement):
        table.add_row(name, one_text, other_text, "")
    return table


def headline(result: Result) -> str:
    """Return the one sentence that says what was asked for and what came out."""
    goal, got = result.goal, _amount(result.goal.kind, result.achieved)
    asked = f"{goal.value:g}x" if goal.kind in (SPEEDUP, CONV_MACS) else _amount(goal.kind, goal.value)
    faster = "" if goal.kind == SPEEDUP else f"; {result.latency_speedup:.2f}x faster in measured latency"
    if goal.kind == MAX_DROP:
        if result.reached:
            return f"{result.latency_speedup:.2f}x faster in measured latency, {got} lost ({asked} were allowed)."
        return f"Nothing faster was found that loses at most {asked}."
    if result.reached:
        return f"{got} {_KINDS[goal.kind]}{faster} ({asked} was asked for)."
    if goal.kind in (SPEEDUP, CONV_MACS) and result.achieved <= 1:
        reached = f"no setting makes the network {_KINDS[goal.kind]}"
    else:
        reached = f"the most that could be reached is {got} {_KINDS[goal.kind]}"
    return f"{asked} was asked for, {reached}{faster}. In the way: {'; '.join(_obstacles(result))}."


_KINDS = {
    SPEEDUP: "faster in measured latency",
    LATENCY: "of measured latency",
    CONV_MACS: "fewer MACs of the convolutions",
    MAX_MACS: "a sample",
    MAX_SIZE: "of file",
}


def _amount(kind: str, value: float) -> str:
    """Return a value in the units of a goal."""
    if kind in (SPEEDUP, CONV_MACS):
        return f"{value:.2f}x"
    if kind == MAX_MACS:
        return f"{value / 1e6:.1f} MMACs"
    return {LATENCY: f"{value:.2f} ms", MAX_SIZE: f"{value / 1e6:.2f} MB", MAX_DROP: f"{value:.2f} points"}[kind]


def _obstacles(result: Result) -> list[str]:
    """Name the layers that cost most in the optimised network."""
    total = max(result.after.macs, 1)
    dearest = sorted(result.layers, key=lambda layer: -layer.macs[1])[:3]
    return [
        f"{layer.name} ({100 * layer.macs[1] / total:.0f} % of the remaining MACs, "
        f"{layer.kept_because or f'{layer.method} {_ranks(layer)}'})"
        for layer in dearest
    ]


def _ranks(layer: LayerReport) -> str:
    return " ".join(f"{name}={rank}" for name, rank in zip(layer.rank_names, layer.setting, strict=True))


def _spread(model: ModelReport) -> str:
    low, high = model.latency.spread
    return f"{low:.2f} .. {high:.2f}"


def _agreement_rows(agreement: Agreement) -> list[tuple[str, str, str]]:
    rows = [
        ("output difference, relative", "", f"{agreement.relative_error:.4f}"),
        ("output difference, largest", "", f"{agreement.largest_difference:.4g}"),
    ]
    if agreement.top1_agreement is not None:
        rows.append((f"same top-1 class (of {agreement.inputs})", "", f"{100 * agreement.top1_agreement:.2f} %"))
    if agreement.accuracy is not None:
        one, other = agreement.accuracy
        rows.append((f"top-1 accuracy (of {agreement.inputs})", f"{100 * one:.2f} %", f"{100 * other:.2f} %"))
    return rows

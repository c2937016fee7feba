"""The report of an optimisation."""

from __future__ import annotations

from functools import partial

import numpy as np

from onnxlowrank.goal import CONV_MACS, LATENCY, MAX_DROP, MAX_MACS, MAX_SIZE, SPEEDUP
from onnxlowrank.graph.layer import FloatArray
from onnxlowrank.passes.base import KEEP
from onnxlowrank.report.agreement import agreement_rows, is_plain, output_table
from onnxlowrank.report.content import Figure, Report, Table
from onnxlowrank.report.environment import environment
from onnxlowrank.report.figures import bars, distributions, pictures, points
from onnxlowrank.result import LayerReport, ModelReport, Result


def optimisation_report(result: Result, title: str, command: str = "") -> Report:
    """Return the report of an optimisation.

    Args:
        result: What it gave.
        title: Of the report.
        command: How to repeat it.
    """
    return Report(
        title,
        headline(result),
        [_layers(result), _whole(result), *([] if is_plain(result.agreement) else [output_table(result.agreement)])],
        partial(_figures, result),
        result.notes,
        environment((result.provider,), (result.threads,)),
        command,
    )


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
        f"{layer.kept_because or _became(layer)})"
        for layer in dearest
    ]


def _ranks(layer: LayerReport) -> str:
    return " ".join(f"{name}={rank}" for name, rank in zip(layer.rank_names, layer.setting, strict=True))


def _layers(result: Result) -> Table:
    """Return one row a layer."""
    timed = any(layer.milliseconds for layer in result.layers)
    rows = [
        (
            layer.name if layer.places == 1 else f"{layer.name} ({layer.places} places)",
            f"kept: {layer.kept_because}" if layer.method == KEEP else _became(layer),
            f"{layer.macs[0] / 1e6:.2f}",
            f"{layer.macs[1] / 1e6:.2f}",
            *([f"{ms:.3f}" for ms in layer.milliseconds] if layer.milliseconds else [""] * 2 * timed),
            "" if layer.method == KEEP else f"{layer.energy:.3f}",
        )
        for layer in result.layers
    ]
    times = ("ms", "after") if timed else ()
    return Table("Layers", ("layer", "became", "MMACs", "after", *times, "energy kept"), rows, frozenset({0, 1}))


def _whole(result: Result) -> Table:
    """Return the whole network before and after."""
    before, after = result.before, result.after
    where = f"{result.provider}, {result.threads} thread{'s' * (result.threads > 1)}"
    counted = (
        ("MMACs", before.macs / 1e6, after.macs / 1e6, ".1f"),
        ("parameters (thousand)", before.parameters / 1e3, after.parameters / 1e3, ".1f"),
        ("file (MB)", before.file_bytes / 1e6, after.file_bytes / 1e6, ".2f"),
    )
    rows: list[tuple[str, ...]] = [
        (name, format(one, form), format(other, form), f"{one / other:.2f}x" if other else "")
        for name, one, other, form in counted
    ]
    medians = (f"{model.latency.median:.2f}" for model in (before, after))
    rows.append(("latency, median (ms)", *medians, f"{result.latency_speedup:.2f}x"))
    rows.append(("latency, 10th .. 90th percentile", _spread(before), _spread(after), ""))
    rows += [(*row, "") for row in agreement_rows(result.agreement)]
    return Table(f"Whole model, timed on {where}", ("", "before", "after", "ratio"), rows)


def _figures(result: Result) -> list[Figure]:
    sides = {"before": result.before.latency.milliseconds, "after": result.after.latency.milliseconds}
    figures = [distributions("Latency", sides)]
    names = [f"{layer.name}: {_became(layer)}" for layer in result.layers]
    timed = [layer.milliseconds for layer in result.layers if layer.milliseconds]
    if len(timed) == len(names):
        before, after = zip(*timed, strict=True)
        figures.append(bars("Time by layer", "milliseconds", names, {"before": before, "after": after}))
    else:
        before, after = zip(*((layer.macs[0] / 1e6, layer.macs[1] / 1e6) for layer in result.layers), strict=True)
        title, unit = "Arithmetic by layer", "million multiply-accumulates"
        figures.append(bars(title, unit, names, {"before": before, "after": after}))
    if result.first_filters is not None:
        one, other = result.first_filters
        filters = {"as they are": one} if np.array_equal(one, other) else {"before": one, "after": other}
        figures.append(pictures("Filters of the first layer", {name: _as_images(of) for name, of in filters.items()}))
        components = {name: of.transpose(0, 2, 3, 1).reshape(-1, 3) for name, of in filters.items()}
        figures.append(points("Their colours: every tap of every filter in RGB space", components))
    return figures


def _became(layer: LayerReport) -> str:
    return KEEP if layer.method == KEEP else f"{layer.method} {_ranks(layer)}"


def _as_images(filters: FloatArray) -> FloatArray:
    """Return filters ``[F, 3, kh, kw]`` as ``[F, kh, kw, 3]``."""
    return filters.transpose(0, 2, 3, 1)


def _spread(model: ModelReport) -> str:
    low, high = model.latency.spread
    return f"{low:.2f} .. {high:.2f}"

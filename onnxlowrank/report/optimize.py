"""The report of an optimisation."""

from __future__ import annotations

from functools import partial

import numpy as np

from onnxlowrank.goal import CONV_MACS, FLOAT32, LATENCY, MAX_DROP, MAX_MACS, MAX_SIZE, SPEEDUP
from onnxlowrank.graph.layer import FloatArray
from onnxlowrank.passes.base import KEEP
from onnxlowrank.plan.builder import FOLDED_IS_ENOUGH
from onnxlowrank.plan.int8_alone import Int8Alone
from onnxlowrank.report.agreement import agreement_rows, cost_text, is_plain, noise_note, output_table
from onnxlowrank.report.content import Figure, Report, Table
from onnxlowrank.report.environment import environment
from onnxlowrank.report.figures import bars, distributions, pictures, points
from onnxlowrank.report.units import amount, scale
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
        [*result.notes, *filter(None, [noise_note(result.agreement)])],
        environment((result.provider,), (result.threads,)),
        command,
    )


def headline(result: Result) -> str:
    """Return the one sentence that says what was asked for and what came out."""
    goal, got, cost = result.goal, _amount(result.goal.kind, result.achieved), cost_text(result.agreement)
    asked = f"{goal.value:g}x" if goal.kind in (SPEEDUP, CONV_MACS) else _amount(goal.kind, goal.value)
    faster = "" if goal.kind == SPEEDUP else f"; {result.latency_speedup:.2f}x faster in measured latency"
    if result.reached and result.int8_alone is not None and not _is_rewritten(result):
        cost = f"{cost}, by int8 alone, no layer had to be decomposed"
    elif any(layer.kept_because == FOLDED_IS_ENOUGH for layer in result.layers):
        cost = f"{cost}, by folding constants, no layer had to be decomposed"
    if goal.kind == MAX_DROP:
        if result.reached:
            return (
                f"{result.latency_speedup:.2f}x faster in measured latency, {got} lost ({asked} were allowed): {cost}."
            )
        return f"Nothing faster was found that loses at most {asked}."
    if result.reached:
        return f"{got} {_KINDS[goal.kind]}{faster} ({asked} was asked for): {cost}."
    if goal.kind == MAX_MACS and not result.after.is_counted:
        got = f"more than {got}" if result.achieved > goal.value else f"{got} and what could not be counted"
    if goal.kind in (SPEEDUP, CONV_MACS) and result.achieved <= 1:
        reached = _NOTHING[goal.kind]
    else:
        reached = f"the most that could be reached is {got} {_KINDS[goal.kind]}"
    return f"{asked} was asked for, {reached}{faster}: {cost}. In the way: {'; '.join(_obstacles(result))}."


_KINDS = {
    SPEEDUP: "faster in measured latency",
    LATENCY: "of measured latency",
    CONV_MACS: "fewer MACs of the convolutions",
    MAX_MACS: "a sample",
    MAX_SIZE: "of file",
}

_NOTHING = {
    SPEEDUP: "no setting makes the network faster in measured latency",
    CONV_MACS: "no setting saves any MACs of the convolutions",
}


def _amount(kind: str, value: float) -> str:
    """Return a value in the units of a goal."""
    if kind in (SPEEDUP, CONV_MACS):
        return f"{value:.2f}x"
    if kind in (MAX_MACS, MAX_SIZE):
        return amount(value, "MACs" if kind == MAX_MACS else "B")
    return {LATENCY: f"{value:.2f} ms", MAX_DROP: f"{value:.2f} points"}[kind]


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
            *map(amount, layer.macs),
            *([f"{ms:.3f}" for ms in layer.milliseconds] if layer.milliseconds else [""] * 2 * timed),
            "" if layer.method == KEEP or layer.energy is None else f"{layer.energy:.3f}",
            *([_precision(layer)] if result.precision != FLOAT32 else []),
        )
        for layer in result.layers
    ]
    times = ("ms", "after") if timed else ()
    precision = ("precision",) if result.precision != FLOAT32 else ()
    columns = ("layer", "became", "MACs", "after", *times, "energy kept", *precision)
    return Table("Layers", columns, rows, frozenset({0, 1, *([len(columns) - 1] if precision else [])}))


def _whole(result: Result) -> Table:
    """Return the whole network before and after."""
    before, after = result.before, result.after
    where = f"{result.provider}, {result.threads} thread{'s' * (result.threads > 1)}"
    counted = (
        ("MACs" if before.is_counted else "MACs, at least", before.macs, after.macs, ""),
        ("parameters", before.parameters, after.parameters, ""),
        ("file", before.file_bytes, after.file_bytes, "B"),
    )
    rows: list[tuple[str, ...]] = [
        (name, amount(one, unit), amount(other, unit), f"{one / other:.2f}x" if other else "")
        for name, one, other, unit in counted
    ]
    medians = before.latency.median, after.latency.median
    rows.append(("latency, median (ms)", *(f"{median:.4g}" for median in medians), f"{medians[0] / medians[1]:.2f}x"))
    rows.append(("latency, 10th .. 90th percentile", _spread(before), _spread(after), ""))
    rows.append(("speed-up, median over runs taken in turns", "", "", f"{result.latency_speedup:.2f}x"))
    rows += [(*row, "") for row in agreement_rows(result.agreement)]
    if result.int8_weights is not None:
        rows.append(("bits of int8 weights", "", str(result.int8_weights), ""))
    if result.int8_alone is not None:
        rows += _int8_alone(result.int8_alone)
    return Table(f"Whole model, timed on {where}", ("", "before", "after", "ratio"), rows)


def _int8_alone(alone: Int8Alone) -> list[tuple[str, ...]]:
    """Return rows on the network that is int8 and nothing else."""
    return [
        ("int8 alone: speed-up", "", "", f"{alone.latency_speedup:.2f}x"),
        ("int8 alone: what it loses", "", cost_text(alone.agreement), ""),
    ]


def _is_rewritten(result: Result) -> bool:
    return any(layer.method != KEEP for layer in result.layers)


def _figures(result: Result) -> list[Figure]:
    sides = {"before": result.before.latency.milliseconds, "after": result.after.latency.milliseconds}
    figures = [distributions("Latency", sides)]
    timed = [layer for layer in result.layers if layer.milliseconds]
    shown = timed or result.layers
    names = [f"{layer.name}: {_became(layer)}" for layer in shown]
    if timed:
        before, after = zip(*(layer.milliseconds for layer in timed if layer.milliseconds), strict=True)
        figures.append(bars("Time by layer", "milliseconds", names, {"before": before, "after": after}))
    else:
        factor, prefix = scale(max(max(layer.macs) for layer in shown))
        before, after = zip(*((layer.macs[0] / factor, layer.macs[1] / factor) for layer in shown), strict=True)
        figures.append(bars("Arithmetic by layer", f"{prefix}MACs", names, {"before": before, "after": after}))
    if result.first_filters is not None:
        one, other = result.first_filters
        filters = {"as they are": one} if np.array_equal(one, other) else {"before": one, "after": other}
        figures.append(pictures("Filters of the first layer", {name: _as_images(of) for name, of in filters.items()}))
        components = {name: of.transpose(0, 2, 3, 1).reshape(-1, 3) for name, of in filters.items()}
        figures.append(points("Their colours: every tap of every filter in RGB space", components))
    return figures


def _became(layer: LayerReport) -> str:
    return KEEP if layer.method == KEEP else f"{layer.method} {_ranks(layer)}"


def _precision(layer: LayerReport) -> str:
    return layer.precision + (f": {layer.float32_because}" if layer.float32_because else "")


def _as_images(filters: FloatArray) -> FloatArray:
    """Return filters ``[F, 3, kh, kw]`` as ``[F, kh, kw, 3]``."""
    return filters.transpose(0, 2, 3, 1)


def _spread(model: ModelReport) -> str:
    low, high = model.latency.spread
    return f"{low:.4g} .. {high:.4g}"

"""The report of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxlowrank.report.agreement import ERROR, figure
from onnxlowrank.report.content import Figure, Report, Table
from onnxlowrank.report.environment import environment
from onnxlowrank.report.figures import curves
from onnxlowrank.report.units import amount
from onnxlowrank.studies.sweep import Sweep


def sweep_report(found: Sweep, command: str = "") -> Report:
    """Return the report of accuracy against measured speed-up."""
    points = found.points
    rows = [_row(point) for point in points]
    columns = ("asked for", "measured", "MACs", "file", "top-1 (%)", "same top-1 (%)", "relative error", "network")
    table = Table("Networks", columns, rows, frozenset({0, 7}))
    about = environment((points[0]["provider"],), (points[0]["threads"],))
    notes = [f"compared on {points[0]['agreement']['source']}"]
    if any(not point["goal"]["reached"] for point in points):
        notes.append("(not reached): the fastest network there is")
    title = f"{found.model}: accuracy against measured speed-up"
    return Report(title, _headline(points), [table], lambda: [_curve(points)], notes, about, command)


def _row(point: Mapping[str, Any]) -> tuple[str, ...]:
    agreement, goal = point["agreement"], point["goal"]
    accuracy, same = agreement["accuracy"], agreement["top1_agreement"]
    return (
        f"{goal['value']:g}x{'' if goal['reached'] else ' (not reached)'}",
        f"{point['latency_speedup']:.2f}x",
        f"{point['macs_speedup']:.2f}x",
        amount(point["after"]["file_bytes"], "B"),
        "" if accuracy is None else f"{100 * accuracy[0]:.2f} -> {100 * accuracy[1]:.2f}",
        "" if same is None else f"{100 * same:.2f}",
        figure(agreement["relative_error"], ERROR),
        point["file"],
    )


def _headline(points: Sequence[Mapping[str, Any]]) -> str:
    shown = []
    for point in points:
        agreement = point["agreement"]
        if agreement["accuracy"] is not None:
            quality = f"{100 * (agreement['accuracy'][1] - agreement['accuracy'][0]):+.2f} points"
        elif agreement["top1_agreement"] is not None:
            quality = f"{100 * agreement['top1_agreement']:.1f} % same class"
        else:
            quality = f"error {figure(agreement['relative_error'], '.3f')}"
        shown.append(f"{point['latency_speedup']:.2f}x: {quality}")
    return f"{'; '.join(shown)}."


def _curve(points: Sequence[Mapping[str, Any]]) -> Figure:
    ordered = sorted(points, key=lambda point: point["latency_speedup"])
    speedups = [1.0, *(point["latency_speedup"] for point in ordered)]
    agreements = [point["agreement"] for point in ordered]
    if all(one["accuracy"] is not None for one in agreements):
        before = agreements[0]["accuracy"][0]
        label, values = "top-1 accuracy (%)", [100 * before, *(100 * one["accuracy"][1] for one in agreements)]
    elif all(one["top1_agreement"] is not None for one in agreements):
        label, values = "same top-1 class (%)", [100.0, *(100 * one["top1_agreement"] for one in agreements)]
    else:
        label, values = "relative error of the outputs", [0.0, *(one["relative_error"] or 0.0 for one in agreements)]
    return curves("The whole network", "measured speed-up", label, {"": (speedups, values)})

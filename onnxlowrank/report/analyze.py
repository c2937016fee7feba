"""The report of an analysis."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

from onnxlowrank.report.agreement import cost_text
from onnxlowrank.report.content import Figure, Report, Table
from onnxlowrank.report.environment import environment
from onnxlowrank.report.figures import curves
from onnxlowrank.report.units import amount
from onnxlowrank.studies.analyze import Analysis, LayerAnalysis

_SHARES = (0.9, 0.95, 0.99, 0.999)
_ENERGIES = (0.99, 0.95, 0.9)
_MOST_LINES = 20
"""In one figure: of more layers, those with the most arithmetic."""


def analysis_report(found: Analysis, command: str = "") -> Report:
    """Return the report of what a network has to give."""
    tables = [table for table in (_spectra(found), _offers(found), _int8(found), _refusals(found)) if table.rows]
    notes = [
        f"run on {found.inputs}",
        "error and cost are predictions, cost in multiply-accumulates: optimize measures both",
    ]
    about = environment(("cpu",), (1,))
    headline = _headline(found) + _int8_headline(found)
    return Report(f"{found.model}: analysis", headline, tables, partial(_figures, found), notes, about, command)


def _headline(found: Analysis) -> str:
    if found.speedup is None:
        return "Little is to be had: no plan 1.5 times as cheap keeps 95 % of every layer's variance."
    return f"A {found.speedup:g}-fold cut keeps 95 % of every layer's variance. Recommended: {found.command}"


def _int8_headline(found: Analysis) -> str:
    if found.int8 is None:
        return ""
    alone = found.int8.alone
    return f" Int8 alone, nothing decomposed, is {alone.latency_speedup:.2f}x as fast: {cost_text(alone.agreement)}."


def _int8(found: Analysis) -> Table:
    """Return what rounding each layer alone costs, as a share of the sum."""
    rows: list[tuple[str, ...]] = []
    if found.int8 is not None:
        rows = [(name, f"{100 * share:.1f} %") for name, share in found.int8.losses.items()]
        rows += [(name, f"stays in float32: {reason}") for name, reason in found.int8.float32_because.items()]
    return Table("What rounding to int8 costs, layer by layer", ("layer", "share of the loss"), rows, frozenset({0}))


def _spectra(found: Analysis) -> Table:
    columns = ("layer", "op", "weight", "MACs", *(f"{100 * share:g} %" for share in _SHARES), "zeros")
    rows = [
        (
            *(layer.name, layer.op, "x".join(map(str, layer.shape)), amount(layer.macs)),
            *(f"{layer.rank(share)}/{len(layer.spectrum) - 1}" if layer.spectrum else "" for share in _SHARES),
            "" if layer.zeros is None else f"{100 * layer.zeros:.0f} %",
        )
        for layer in found.layers
    ]
    return Table("Ranks of the responses that keep a share of their variance", columns, rows, frozenset({0, 1, 2}))


def _offers(found: Analysis) -> Table:
    columns = ("layer", *(f"cheapest at {100 * energy:g} %" for energy in _ENERGIES))
    rows = [(layer.name, *(_cheapest(layer, energy) for energy in _ENERGIES)) for layer in found.layers]
    title = "Share of the arithmetic that is left when so much variance is to be kept"
    return Table(title, columns, rows, frozenset(range(1 + len(_ENERGIES))))


def _cheapest(layer: LayerAnalysis, energy: float) -> str:
    enough = [point for point in layer.offers if point.energy >= energy]
    if not enough:
        return ""
    best = min(enough, key=lambda point: point.macs)
    return f"{100 * best.macs:.0f} %: {best.method} {'x'.join(map(str, best.setting))}"


def _refusals(found: Analysis) -> Table:
    layers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for layer in found.layers:
        for method, reason in layer.refusals.items():
            layers[method, reason].append(layer.name)
        if layer.kept_because:
            layers["all", layer.kept_because].append(layer.name)
        elif not layer.suits and not layer.refusals:
            layers["all", f"{layer.op} is none of theirs"].append(layer.name)
    rows = [(method, reason, _some(names)) for (method, reason), names in sorted(layers.items())]
    return Table("Passes that do not suit, and why", ("pass", "reason", "layers"), rows, frozenset({0, 1, 2}))


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _figures(found: Analysis) -> list[Figure]:
    dearest = sorted((layer for layer in found.layers if layer.spectrum), key=lambda layer: -layer.macs)[:_MOST_LINES]
    shown = [layer for layer in found.layers if layer in dearest]
    spectra = {}
    for layer in shown:
        full = len(layer.spectrum) - 1
        spectra[layer.name] = [k / full for k in range(full + 1)], [100 * share for share in layer.spectrum]
    fronts = {}
    for layer in shown:
        points = [point for point in layer.offers if point.energy < 1]
        if points:
            fronts[layer.name] = [point.macs for point in points], [1 - point.energy for point in points]
    figures = []
    if spectra:
        share = "share of the response's principal axes"
        figures.append(curves("Variance along the first principal axes", share, "variance kept (%)", spectra))
    if fronts:
        cost, error = "multiply-accumulates, share of the layer's", "share of the variance lost"
        figures.append(curves("Predicted error against cost, best passes", cost, error, fronts, log_y=True))
    return figures

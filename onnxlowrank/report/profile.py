"""The report of a profile."""

from __future__ import annotations

from onnxlowrank.report.content import Figure, Report, Table
from onnxlowrank.report.environment import environment
from onnxlowrank.report.figures import bars
from onnxlowrank.report.units import amount
from onnxlowrank.studies.profile import NodeProfile, Profile

_LEAST = 0.005
"""Nodes of a smaller share are added up."""
_SLOW = 0.25
"""Of the highest rate of arithmetic: nodes below it spend most of their time on something else."""


def profile_report(found: Profile, command: str = "") -> Report:
    """Return the report of where a network spends its time."""
    total = found.milliseconds
    ops = [
        (op, str(count), f"{ms:.3f}", _percent(ms / total), _macs(macs), _rate(2e-6 * macs / ms if ms else 0))
        for op, (count, ms, macs) in found.by_op.items()
    ]
    shown = sorted((one for one in found.nodes if one.share >= _LEAST), key=lambda one: -one.milliseconds)
    small = [one for one in found.nodes if one.share < _LEAST]
    rows = [_row(one) for one in shown]
    if small:
        left = sum(one.milliseconds for one in small)
        rows.append((f"{len(small)} others", "", f"{left:.3f}", _percent(left / total), "", ""))
    tables = [
        Table("Operators, as onnxruntime runs them", ("operator", "nodes", "ms", "share", "MACs", "GFLOP/s"), ops),
        Table("Nodes", ("node", "operator", "ms", "share", "MACs", "GFLOP/s"), rows, frozenset({0, 1})),
    ]

    def figures() -> list[Figure]:
        times = {"time": [one.milliseconds for one in shown]}
        return [bars("Time by node", "milliseconds", [_name(one) for one in shown], times)]

    where = f"{found.provider}, {found.threads} thread{'s' * (found.threads > 1)}, batch {found.batch}"
    about = environment((found.provider,), (found.threads,))
    return Report(f"{found.model}: profile", _headline(found, where), tables, figures, (), about, command)


def _headline(found: Profile, where: str) -> str:
    if not found.milliseconds:
        return f"onnxruntime has nothing left to compute on {where}."
    fastest = max(one.gflops for one in found.nodes)
    slow = sum(one.milliseconds for one in found.nodes if one.gflops < _SLOW * fastest)
    dearest = max(found.nodes, key=lambda one: one.milliseconds)
    return (
        f"{found.milliseconds:.2f} ms on {where}; {_percent(dearest.share)} of it in {_name(dearest)}. "
        f"{_percent(slow / found.milliseconds)} is spent in nodes below {100 * _SLOW:.0f} % of the highest rate of "
        f"arithmetic, {fastest:.1f} GFLOP/s."
    )


def _row(one: NodeProfile) -> tuple[str, ...]:
    figures = _percent(one.share), _macs(one.macs), _rate(one.gflops)
    return _name(one), one.op, f"{one.milliseconds:.3f}", *figures


def _name(one: NodeProfile) -> str:
    return one.node or f"(onnxruntime's own) {one.name}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _macs(macs: int) -> str:
    return amount(macs) if macs else ""


def _rate(gflops: float) -> str:
    return f"{gflops:.1f}" if gflops else ""

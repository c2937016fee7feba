"""Reports as Markdown, to paste into an issue or a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from onnxlowrank.report.content import Report, Table


def markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown."""
    report = report.printable()
    parts = [f"# {_escaped(report.title)}", f"**{_escaped(report.headline)}**", *map(_table, report.tables)]
    if report.notes:
        parts.append("\n".join(f"- {_escaped(note)}" for note in report.notes))
    if report.environment:
        parts.append("\n".join(f"- {name}: {_escaped(value)}" for name, value in report.environment))
    if report.command:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", report.command)), default=0))
        parts.append(f"{fence}sh\n{report.command}\n{fence}")
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    rule = ["---" if index in table.words else "---:" for index in range(len(table.columns))]
    return "\n".join([f"## {_escaped(table.title)}", "", *map(_row, [table.columns, rule, *table.rows])])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    return " ".join(re.sub(r"[\\`*<\[|]", r"\\\g<0>", text).split())

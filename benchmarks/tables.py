"""A table of a benchmark: printed, kept in ``results/NAME.json``, and shown in ``RESULTS.md`` by ``report.py``."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from onnxlowrank.measure.hardware import processor
from onnxlowrank.parallel import available_cores

HERE = Path(__file__).parent
RESULTS = HERE / "results"

Cell = str | float | None | Sequence[float | None]
"""Text, a number, a value with its interval ``[value, low, high]``; None is what was not measured."""


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """Let the user say where results go."""
    parser.add_argument("--name", help="of the file of results, by default that of the script and of the network")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the file goes (benchmarks/results)"
    )


def result_name(args: argparse.Namespace, *parts: str) -> str:
    """Return the name asked for, or that of the script, the network and what else tells runs apart."""
    words = (Path(sys.argv[0]).stem, Path(args.model).stem, *parts)
    return args.name or re.sub(r"[^\w.]+", "_", "_".join(words))


def write_results(
    args: argparse.Namespace,
    name: str,
    title: str,
    columns: Mapping[str, str],
    rows: Sequence[Sequence[Cell]],
    note: str = "",
    plot: str | None = None,
) -> None:
    """Print a table and write it into ``args.results``, with what is needed to measure it again.

    Args:
        args: From a parser with :func:`add_result_options`.
        name: Of the file, from :func:`result_name`.
        title: Above the table.
        columns: Their titles, and how :meth:`str.format` shows their numbers; nothing where cells are text.
        rows: One cell a column.
        note: What else the reader should know.
        plot: File of a plot of the table.
    """
    rows = [[_plain(cell) for cell in row] for row in rows]
    print(f"\n{title}\n\n{table(columns, rows)}", flush=True)
    about = {
        "name": name,
        "title": title,
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": f"{processor('cpu')}, {available_cores()} cores",
        "onnxruntime": ort.__version__,
        "state": _state(),
        "date": datetime.date.today().isoformat(),
        "note": note,
        "plot": plot and Path(os.path.relpath(plot, args.results.parent)).as_posix(),
        "columns": dict(columns),
        "rows": rows,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / f"{name}.json").write_text(_dump(about), encoding="utf-8")


def table(columns: Mapping[str, str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table in Markdown, numbers at the right."""
    lines = [list(columns), *([_shown(*pair) for pair in zip(row, columns.values(), strict=True)] for row in rows)]
    widths = [max(3, *(len(line[index]) for line in lines)) for index in range(len(columns))]
    forms = list(columns.values())
    rule = ["-" * width if not form else "-" * (width - 1) + ":" for width, form in zip(widths, forms, strict=True)]
    texts = [
        [
            cell.rjust(width) if form else cell.ljust(width)
            for cell, width, form in zip(line, widths, forms, strict=True)
        ]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (texts[0], rule, *texts[1:]))


def _shown(cell: Cell, form: str) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, str):
        return cell.replace("|", "\\|")
    if isinstance(cell, Sequence):
        value, low, high = (_shown(one, form) for one in cell)
        return f"{value} ({low} .. {high})" if low else value
    return (form or "{}").format(cell)


def _plain(cell: Any) -> Any:
    """Return what JSON holds: numbers of six digits, None in place of what is no number."""
    if isinstance(cell, list | tuple):
        return [_plain(one) for one in cell]
    if hasattr(cell, "item"):  # NumPy's
        cell = cell.item()
    if isinstance(cell, float):
        return float(f"{cell:.6g}") if math.isfinite(cell) else None
    return cell


def _dump(about: Mapping[str, Any]) -> str:
    """Return JSON with a line for every field and every row."""
    fields = [f"  {json.dumps(key)}: {json.dumps(about[key])}" for key in about if key != "rows"]
    rows = ",\n".join(f"    {json.dumps(row)}" for row in about["rows"])
    return "{\n" + ",\n".join([*fields, f'  "rows": [\n{rows}\n  ]']) + "\n}\n"


def _state() -> str | None:
    """Return the commit of the code, marked where files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None

"""``onnxlowrank cache``."""

from __future__ import annotations

import json
import logging
from typing import Annotated

import typer

from onnxlowrank.cli.app import app
from onnxlowrank.measure.cache import Cache

EXAMPLE = """
Example:

\b
  onnxlowrank cache --json
  onnxlowrank cache --clear

The environment variable ONNXLOWRANK_CACHE names another folder for the file.
"""


@app.command(epilog=EXAMPLE)
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Forget all of them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how many measured times are remembered, where, and under which conditions they were measured."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    timings = Cache()
    if clear:
        removed = timings.clear()
        print(
            json.dumps({"path": str(timings.path), "removed": removed}) if as_json else f"forgotten: {removed} timings"
        )
        return
    summary = timings.summary()
    if as_json:
        print(json.dumps(summary.to_dict(), indent=2))
        return
    print(f"file     {summary.path}\nsize     {summary.size / 1e3:.1f} kB\ntimings  {summary.timings}")
    for where, count in summary.by_conditions:
        threads = f"{where.threads} thread{'s' * (where.threads > 1)}"
        print(f"{count:7}  {where.provider}, {threads}, onnxruntime {where.onnxruntime}, {where.processor}")

"""``onnxlowrank sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxlowrank.cli.app import app, bars
from onnxlowrank.cli.options import (
    AsJson,
    AsMarkdown,
    Calibration,
    Channels,
    Crop,
    Html,
    Layout,
    Mean,
    Passes,
    Preset,
    Provider,
    Resize,
    Scale,
    Seed,
    Std,
    Verbose,
    check_form,
    preprocess_of,
    show,
    start_log,
    this_command,
)
from onnxlowrank.cli.parsing import names, numbers
from onnxlowrank.report.sweep import sweep_report
from onnxlowrank.studies.sweep import sweep as run

EXAMPLE = """
Example:

\b
  onnxlowrank sweep models/vgg_cifar10.onnx --folder points --speedup 2,3,4 \\
      --calibration models/cifar10_calibration.npz --evaluate models/cifar10_test.npz

Interrupted, it goes on where it stopped when it is run again.
"""


@app.command(epilog=EXAMPLE)
def sweep(
    model: Annotated[Path, typer.Argument(help="The trained network, an ONNX file.", metavar="MODEL", readable=False)],
    folder: Annotated[
        Path, typer.Option(help="Keeps the networks and their reports.", metavar="PATH", readable=False)
    ] = Path("sweep"),
    speedup: Annotated[str, typer.Option(help="How many times faster the networks are to become.")] = "1.5,2,3,4,5",
    calibration: Calibration = None,
    evaluate: Annotated[
        str | None, typer.Option(help="Inputs, best with labels, to compare all networks on.", metavar="PATH")
    ] = None,
    provider: Provider = "cpu",
    threads: Annotated[int, typer.Option(help="Threads latency is measured with.")] = 1,
    passes: Passes = None,
    jobs: Annotated[
        int, typer.Option(help="Processes that share the points; several need cores of their own to measure well.")
    ] = 1,
    preprocess: Preset = "imagenet",
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    resize: Resize = None,
    crop: Crop = None,
    layout: Layout = None,
    channels: Channels = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
    html: Html = None,
    verbose: Verbose = False,
) -> None:
    """Optimise to several speed-ups: accuracy against measured speed-up, as a table and a curve."""
    start_log(verbose)
    check_form(as_json, as_markdown, html, model)
    with bars(verbose) as progress:
        found = run(
            model,
            folder,
            speedups=numbers("--speedup", speedup) or (),
            calibration=calibration,
            evaluate=evaluate,
            preprocess=preprocess_of(preprocess, mean, std, scale, resize, crop, layout, channels),
            provider=provider,
            threads=threads,
            passes=None if passes is None else names(passes),
            seed=seed,
            jobs=jobs,
            progress=progress,
        )
    show(sweep_report(found, this_command()), found.to_dict(), as_json, as_markdown, html)

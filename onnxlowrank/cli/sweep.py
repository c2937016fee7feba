"""``onnxlowrank sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxlowrank.cli.app import app
from onnxlowrank.cli.groups import ImageOptions, ReportOptions, with_groups
from onnxlowrank.cli.options import (
    Calibration,
    CustomOps,
    Int8Weights,
    Measures,
    Merit,
    Passes,
    Precision,
    Provider,
    Seed,
    Shape,
    this_command,
)
from onnxlowrank.cli.parsing import measures, names, numbers, shape
from onnxlowrank.cli.stages import stages
from onnxlowrank.cli.writing import expect
from onnxlowrank.goal import FLOAT32
from onnxlowrank.graph.custom_ops import custom_operators
from onnxlowrank.report.sweep import sweep_report
from onnxlowrank.studies.sweep import files_of
from onnxlowrank.studies.sweep import sweep as run

EXAMPLE = """
Example:

\b
  onnxlowrank sweep models/vgg_cifar10.onnx --folder points --speedup 2,3,4 \\
      --calibration models/cifar10_calibration.npz --evaluate models/cifar10_test.npz

Interrupted, it goes on where it stopped when it is run again.
"""


@app.command(epilog=EXAMPLE)
@with_groups
def sweep(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="The trained network, an ONNX file.", metavar="MODEL", readable=False)],
    *,
    folder: Annotated[
        Path, typer.Option(help="Keeps the networks and their reports.", metavar="PATH", readable=False)
    ] = Path("sweep"),
    speedup: Annotated[str, typer.Option(help="How many times faster the networks are to become.")] = "1.5,2,3,4,5",
    calibration: Calibration = None,
    evaluate: Annotated[
        str | None, typer.Option(help="Inputs, best with labels, to compare all networks on.", metavar="PATH")
    ] = None,
    shape_: Shape = None,
    custom_ops: CustomOps = None,
    metric: Merit = None,
    measured: Measures = None,
    provider: Provider = "cpu",
    threads: Annotated[int, typer.Option(help="Threads latency is measured with.")] = 1,
    precision: Precision = FLOAT32,
    int8_weights: Int8Weights = None,
    passes: Passes = None,
    jobs: Annotated[
        int, typer.Option(help="Processes that share the points; several need cores of their own to measure well.")
    ] = 1,
    images: ImageOptions,
    seed: Seed = 0,
    output: ReportOptions,
) -> None:
    """Optimise to several speed-ups: accuracy against measured speed-up, as a table and a curve."""
    speedups = numbers("--speedup", speedup) or ()
    points = files_of(folder, speedups)
    data = {"--calibration": calibration, "--evaluate": evaluate}
    output.begin(context, [model], data, points if folder.is_dir() else None)
    expect(context, points.values())
    with custom_operators(custom_ops or ()), stages(output.verbose) as progress:
        found = run(
            model,
            folder,
            speedups=speedups,
            calibration=calibration,
            evaluate=evaluate,
            preprocess=images.read(),
            shapes=dict(shape(text) for text in shape_ or ()),
            metric=metric,
            outputs=measures(measured or ()),
            provider=provider,
            threads=threads,
            precision=precision,
            int8_weights=int8_weights,
            passes=None if passes is None else names(passes),
            seed=seed,
            jobs=jobs,
            progress=progress,
        )
    output.show(sweep_report(found, this_command()), found.to_dict())

"""``onnxlowrank analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxlowrank.cli.app import app
from onnxlowrank.cli.groups import ImageOptions, ReportOptions, with_groups
from onnxlowrank.cli.options import AnalysedPrecision, Calibration, CustomOps, Passes, Seed, Shape, this_command
from onnxlowrank.cli.parsing import names, shape
from onnxlowrank.cli.stages import stages
from onnxlowrank.goal import FLOAT32
from onnxlowrank.graph.custom_ops import custom_operators
from onnxlowrank.report.analyze import analysis_report
from onnxlowrank.studies.analyze import analyze as run

EXAMPLE = """
Example:

\b
  onnxlowrank analyze models/vgg_cifar10.onnx --calibration models/cifar10_calibration.npz
"""


@app.command(epilog=EXAMPLE)
@with_groups
def analyze(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="The network, an ONNX file.", metavar="MODEL", readable=False)],
    *,
    calibration: Calibration = None,
    shape_: Shape = None,
    custom_ops: CustomOps = None,
    passes: Passes = None,
    precision: AnalysedPrecision = FLOAT32,
    images: ImageOptions,
    seed: Seed = 0,
    output: ReportOptions,
) -> None:
    """Show what a network has to give: spectra of its responses, suitable passes, error against cost."""
    output.begin(context, [model], {"--calibration": calibration})
    with custom_operators(custom_ops or ()), stages(output.verbose) as progress:
        found = run(
            model,
            calibration=calibration,
            shapes=dict(shape(text) for text in shape_ or ()),
            preprocess=images.read(),
            precision=precision,
            passes=None if passes is None else names(passes),
            seed=seed,
            progress=progress,
        )
    output.show(analysis_report(found, this_command()), found.to_dict())

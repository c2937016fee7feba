"""``onnxlowrank analyze``."""

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
    Resize,
    Scale,
    Seed,
    Shape,
    Std,
    Verbose,
    check_form,
    preprocess_of,
    show,
    start_log,
    this_command,
)
from onnxlowrank.cli.parsing import names, shape
from onnxlowrank.report.analyze import analysis_report
from onnxlowrank.studies.analyze import analyze as run

EXAMPLE = """
Example:

\b
  onnxlowrank analyze models/vgg_cifar10.onnx --calibration models/cifar10_calibration.npz
"""


@app.command(epilog=EXAMPLE)
def analyze(
    model: Annotated[Path, typer.Argument(help="The network, an ONNX file.", metavar="MODEL", readable=False)],
    calibration: Calibration = None,
    shape_: Shape = None,
    passes: Passes = None,
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
    """Show what a network has to give: spectra of its responses, suitable passes, error against cost."""
    start_log(verbose)
    check_form(as_json, as_markdown, html, model)
    with bars(verbose) as progress:
        found = run(
            model,
            calibration=calibration,
            shapes=dict(shape(text) for text in shape_ or ()),
            preprocess=preprocess_of(preprocess, mean, std, scale, resize, crop, layout, channels),
            passes=None if passes is None else names(passes),
            seed=seed,
            progress=progress,
        )
    show(analysis_report(found, this_command()), found.to_dict(), as_json, as_markdown, html)

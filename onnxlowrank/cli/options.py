"""Options that several commands have."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxlowrank.cli.app import console
from onnxlowrank.cli.parsing import numbers, size
from onnxlowrank.errors import OptionError
from onnxlowrank.graph.load import check_destination, write_atomically
from onnxlowrank.inputs.preprocess import Preprocess, preprocess_from_options
from onnxlowrank.passes import pass_names
from onnxlowrank.report.content import Report
from onnxlowrank.report.html import html as to_html
from onnxlowrank.report.markdown import markdown
from onnxlowrank.report.terminal import print_report

_KINDS = (
    "a folder of images, an .npz with uint8 'images', .npy or .npz feeds, ONNX test data, or module:attribute naming a "
    "CalibrationDataReader."
)

Calibration = Annotated[str | None, typer.Option(help=f"Sample inputs: {_KINDS}", metavar="PATH")]
Passes = Annotated[str | None, typer.Option(help=f"Methods to choose from: {', '.join(pass_names())}.")]
Preset = Annotated[str, typer.Option("--preprocess", help="Of images: imagenet, unit, caffe or raw.")]
Mean = Annotated[str | None, typer.Option(help="Of the pixels as fed, e.g. 123.7,116.8,103.9.")]
Std = Annotated[str | None, typer.Option(help="Likewise, e.g. 1,1,1.")]
Scale = Annotated[float | None, typer.Option(help="Factor of the pixels before --mean and --std.")]
Resize = Annotated[str | None, typer.Option(help="Size before the crop, e.g. 256 or 256x320.")]
Crop = Annotated[str | None, typer.Option(help="Size of the centre crop, e.g. 224.")]
Layout = Annotated[str | None, typer.Option(help="nchw or nhwc; read from the model by default.")]
Channels = Annotated[str | None, typer.Option(help="rgb or bgr.")]
Provider = Annotated[
    str,
    typer.Option(
        help="Where latency is measured: cpu, or cuda with onnxruntime's options, e.g. cuda:prefer_nhwc=1:use_tf32=0."
    ),
]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Shape = Annotated[
    list[str] | None,
    typer.Option("--shape", help="Of a random input, e.g. input=1x3x224x224; may be repeated.", metavar="INPUT=SHAPE"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]
Html = Annotated[
    Path | None, typer.Option(help="Also write the report as one HTML file.", metavar="PATH", readable=False)
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")]


def start_log(verbose: bool) -> None:
    """Log to standard error."""
    level, form = logging.INFO if verbose else logging.WARNING, "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=level, format=form, datefmt="%H:%M:%S")


def preprocess_of(
    preset: str,
    mean: str | None,
    std: str | None,
    scale: float | None,
    resize: str | None,
    crop: str | None,
    layout: str | None,
    channels: str | None,
) -> Preprocess:
    """Return how images become inputs."""
    return preprocess_from_options(
        preset,
        mean=numbers("--mean", mean),
        std=numbers("--std", std),
        scale=scale,
        resize=size("--resize", resize),
        crop=size("--crop", crop),
        layout=layout,
        channels=channels,
    )


def check_form(as_json: bool, as_markdown: bool, html: Path | None, *models: Path) -> None:
    """Refuse what cannot be shown, or written without loss of a model, before the work begins."""
    if as_json and as_markdown:
        raise OptionError("--json and --markdown both print the report; give one of them")
    if html is not None:
        for model in models:
            check_destination(model, html)


def show(report: Report, values: dict[str, Any], as_json: bool, as_markdown: bool, html: Path | None) -> None:
    """Print a report in the form asked for, and write it as HTML if that is asked for too."""
    if html is not None:
        write_atomically(html, to_html(report).encode())
    if as_json:
        print(json.dumps(values, indent=2))
    elif as_markdown:
        print(markdown(report), end="")
    else:
        print_report(report, console())


def this_command() -> str:
    """Return the command line that is running, to be repeated."""
    return shlex.join(["onnxlowrank", *sys.argv[1:]])

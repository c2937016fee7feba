"""Single options that several commands have."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from onnxlowrank.passes import pass_names

_KINDS = (
    "a folder of images, an .npz with uint8 'images', .npy or .npz feeds, ONNX test data, or module:attribute naming a "
    "CalibrationDataReader."
)

Calibration = Annotated[str | None, typer.Option(help=f"Sample inputs: {_KINDS}", metavar="PATH")]
Precision = Annotated[
    str,
    typer.Option(
        help="float32; int8: also quantised (QDQ), with ranges of --calibration, and planned as such: goals are then "
        "met by the int8 network; mixed: int8 but for layers that this hurts most for the time it saves; fp16: half "
        "precision, for cuda."
    ),
]
AnalysedPrecision = Annotated[
    str,
    typer.Option(help="float32; int8: also what int8 alone gives, by the stopwatch, and what it costs by layer."),
]
Int8Weights = Annotated[
    str | None,
    typer.Option(
        help="8bit; 7bit: right on processors without VNNI too, which add products in 16 bits. 8bit by default where "
        "this one has VNNI."
    ),
]
Passes = Annotated[
    str | None,
    typer.Option(
        help=f"Methods to choose from: {', '.join(pass_names())}; all for every one. By default all that do not prune."
    ),
]
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


Measures = Annotated[
    list[str] | None,
    typer.Option(
        "--output",
        help="How an output is measured: classes, values or ignore; a name alone counts, and outputs not named then do "
        "not. By default classes where a Softmax or labels say so; may be repeated.",
        metavar="NAME[=MEASURE]",
    ),
]
Merit = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="Also compare a figure of merit, more is better: top1, top5 (class scores), psnr (images), iou (masks), "
        "boxes (detections), cosine (embeddings) or text (CTC), against labels or else MODEL's own answers; or what a "
        "function module:function makes of the outputs (a list with a dictionary of arrays by name for every input) "
        "and the labels.",
        metavar="NAME",
    ),
]
CustomOps = Annotated[
    list[str] | None,
    typer.Option(
        "--custom-ops", help="A library of custom operators for onnxruntime; may be repeated.", metavar="LIBRARY"
    ),
]


def this_command() -> str:
    """Return the command line that is running, to be repeated."""
    return shlex.join(["onnxlowrank", *sys.argv[1:]])

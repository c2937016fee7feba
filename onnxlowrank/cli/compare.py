"""``onnxlowrank compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxlowrank.cli.app import app
from onnxlowrank.cli.groups import ImageOptions, ReportOptions, with_groups
from onnxlowrank.cli.options import CustomOps, Measures, Merit, Seed, Shape, this_command
from onnxlowrank.cli.parsing import counts, measures, names, shape
from onnxlowrank.cli.stages import stages
from onnxlowrank.graph.custom_ops import custom_operators
from onnxlowrank.report.compare import comparison_report
from onnxlowrank.studies.compare import compare as run

EXAMPLE = """
Example:

\b
  onnxlowrank compare models/vgg_cifar10.onnx fast.onnx --threads 1,2 --batch 1,8 \\
      --inputs models/cifar10_test.npz --html compared.html

A metric of your own is a function of the outputs of a network, a list with a dictionary of arrays by name for every
input, and of the labels (None without): it returns a number.
"""


@app.command(epilog=EXAMPLE)
@with_groups
def compare(
    context: typer.Context,
    models: Annotated[
        list[Path], typer.Argument(help="ONNX files; the first is what the others are compared with.", readable=False)
    ],
    *,
    inputs: Annotated[
        str | None,
        typer.Option(
            help="Inputs, best with labels, as for optimize --calibration; random by default.", metavar="PATH"
        ),
    ] = None,
    shape_: Shape = None,
    custom_ops: CustomOps = None,
    metric: Merit = None,
    measured: Measures = None,
    provider: Annotated[str, typer.Option(help="One or more, e.g. cpu,cuda,cuda:use_tf32=0.")] = "cpu",
    threads: Annotated[str, typer.Option(help="Numbers of threads, e.g. 1,2.")] = "1",
    batch: Annotated[str, typer.Option(help="Samples an input, e.g. 1,8; the first input's own by default.")] = "",
    seconds: Annotated[float, typer.Option(help="About how long to measure every condition.")] = 10.0,
    images: ImageOptions,
    seed: Seed = 0,
    output: ReportOptions,
) -> None:
    """Measure networks in turns: latency with its uncertainty, throughput, memory, size, and how outputs differ."""
    output.begin(context, models, {"--inputs": inputs, "--metric": metric})
    with custom_operators(custom_ops or ()), stages(output.verbose) as progress:
        found = run(
            models,
            inputs=inputs,
            shapes=dict(shape(text) for text in shape_ or ()),
            preprocess=images.read(),
            metric=metric,
            outputs=measures(measured or ()),
            providers=names(provider),
            threads=counts("--threads", threads),
            batches=counts("--batch", batch) if batch else (),
            seconds=seconds,
            seed=seed,
            progress=progress,
        )
    output.show(comparison_report(found, this_command()), found.to_dict())

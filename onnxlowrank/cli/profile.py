"""``onnxlowrank profile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxlowrank.cli.app import app
from onnxlowrank.cli.groups import ImageOptions, ReportOptions, with_groups
from onnxlowrank.cli.options import CustomOps, Provider, Shape, this_command
from onnxlowrank.cli.parsing import shape
from onnxlowrank.graph.custom_ops import custom_operators
from onnxlowrank.report.profile import profile_report
from onnxlowrank.studies.profile import profile as run

EXAMPLE = """
Example:

\b
  onnxlowrank profile models/vgg_cifar10.onnx --threads 1
"""


@app.command(epilog=EXAMPLE)
@with_groups
def profile(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="The network, an ONNX file.", metavar="MODEL", readable=False)],
    *,
    inputs: Annotated[
        str | None,
        typer.Option(help="Inputs, as for optimize --calibration; a random one by default.", metavar="PATH"),
    ] = None,
    shape_: Shape = None,
    custom_ops: CustomOps = None,
    provider: Provider = "cpu",
    threads: Annotated[int, typer.Option(help="Number of threads.")] = 1,
    seconds: Annotated[float, typer.Option(help="About how long to run the network.")] = 5.0,
    images: ImageOptions,
    output: ReportOptions,
) -> None:
    """Show where a network spends its time, by its own names of nodes, and how much of it is arithmetic."""
    output.begin(context, [model], {"--inputs": inputs})
    with custom_operators(custom_ops or ()):
        found = run(
            model,
            inputs=inputs,
            shapes=dict(shape(text) for text in shape_ or ()),
            preprocess=images.read(),
            provider=provider,
            threads=threads,
            seconds=seconds,
        )
    output.show(profile_report(found, this_command()), found.to_dict())

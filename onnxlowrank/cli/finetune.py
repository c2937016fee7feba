"""``onnxlowrank finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxlowrank.cli.app import app
from onnxlowrank.cli.groups import ImageOptions, ReportOptions, with_groups
from onnxlowrank.cli.options import CustomOps, Measures, Seed, this_command
from onnxlowrank.cli.parsing import measures, names
from onnxlowrank.cli.stages import stages
from onnxlowrank.destinations import OUTPUT
from onnxlowrank.graph.custom_ops import custom_operators
from onnxlowrank.report.finetune import finetuning_report
from onnxlowrank.studies.finetune import finetune as run
from onnxlowrank.tune.weights import ALL

EXAMPLE = """
Example:

\b
  onnxlowrank finetune models/vgg_cifar10.onnx fast.onnx tuned.onnx \\
      --data models/cifar10_calibration.npz --evaluate models/cifar10_test.npz --minutes 10

OUTPUT is OPTIMISED with other weights: what does best on an eighth of --data, which is held out, or OPTIMISED itself
where nothing does better. Ctrl-C and SIGTERM end the training; the best network so far is written then.
It takes PyTorch: pip install 'onnxlowrank[finetune]'.
"""


@app.command(epilog=EXAMPLE)
@with_groups
def finetune(
    context: typer.Context,
    original: Annotated[
        Path, typer.Argument(help="The network that was optimised, an ONNX file.", metavar="ORIGINAL", readable=False)
    ],
    optimised: Annotated[
        Path, typer.Argument(help="What it became, float32 or int8 (QDQ).", metavar="OPTIMISED", readable=False)
    ],
    written: Annotated[Path, typer.Argument(help="Where to write what it becomes.", metavar="OUTPUT", readable=False)],
    *,
    data: Annotated[
        str,
        typer.Option(
            help="Inputs to learn from, as for optimize --calibration; the more the better, labels or not.",
            metavar="PATH",
        ),
    ],
    evaluate: Annotated[
        str | None,
        typer.Option(
            help="Inputs, best with labels, on which both networks are compared with ORIGINAL.", metavar="PATH"
        ),
    ] = None,
    tune: Annotated[
        str,
        typer.Option(
            help="all: every layer, end to end (Zhang 2015); chains: what stands in place of layers; above: the layers "
            "behind all that is approximated (Denton 2014)."
        ),
    ] = ALL,
    minutes: Annotated[
        float | None, typer.Option(help="How long to train at most; 10, unless --steps says so.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="How many steps at most; without --minutes, equal runs give equal networks.")
    ] = None,
    labels: Annotated[
        bool,
        typer.Option(
            "--labels/--no-labels",
            help="Whether labels of --data count as much as ORIGINAL's answers. By default they do not: ORIGINAL is "
            "followed closer then.",
        ),
    ] = False,
    augment: Annotated[
        str | None,
        typer.Option(help="How images are changed: flip,shift (both by default) or none; other inputs never are."),
    ] = None,
    custom_ops: CustomOps = None,
    measured: Measures = None,
    images: ImageOptions,
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
    seed: Seed = 0,
    output: ReportOptions,
) -> None:
    """Train weights of an optimised network, by labels or from ORIGINAL's answers to inputs without any."""
    read = {"--data": data, "--evaluate": evaluate}
    output.begin(context, [original, optimised], read, {OUTPUT: written})
    with custom_operators(custom_ops or ()), stages(output.verbose) as progress:
        found = run(
            original,
            optimised,
            written,
            data=data,
            evaluate=evaluate,
            preprocess=images.read(),
            outputs=measures(measured or ()),
            tune=tune,
            minutes=minutes,
            steps=steps,
            labels=labels,
            augment=None if augment is None else names(augment),
            device=device,
            seed=seed,
            progress=progress,
        )
    output.show(finetuning_report(found, f"{written.name}, fine-tuned", this_command()), found.to_dict())
    if found.tuned.is_interrupted:
        raise KeyboardInterrupt

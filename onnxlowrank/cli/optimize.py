"""``onnxlowrank optimize``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from onnxlowrank.cli.app import app, console
from onnxlowrank.cli.ending import NOT_REACHED
from onnxlowrank.cli.groups import Html, ImageOptions, Verbose, start_log, with_groups
from onnxlowrank.cli.options import (
    Calibration,
    CustomOps,
    Int8Weights,
    Measures,
    Merit,
    Passes,
    Precision,
    Provider,
    Shape,
    this_command,
)
from onnxlowrank.cli.parsing import COUNTS, SIZES, TIMES, by_hand, measures, names, quantity, shape
from onnxlowrank.cli.stages import INT8_SHARES, SHARES, stages
from onnxlowrank.cli.writing import as_html, begin_writing, write_and_show
from onnxlowrank.destinations import OUTPUT
from onnxlowrank.goal import FLOAT32, QUANTISED
from onnxlowrank.graph.custom_ops import custom_operators
from onnxlowrank.pipeline import optimize as run
from onnxlowrank.report.optimize import optimisation_report
from onnxlowrank.report.terminal import print_report
from onnxlowrank.text import printable

EXAMPLE = """
Example:

\b
  onnxlowrank optimize models/vgg_cifar10.onnx fast.onnx \\
      --speedup 2 --calibration models/cifar10_calibration.npz

Exit code: 0 the goal was reached, 3 it was not (the best network is written), 2 bad input (nothing is written),
4 OUTPUT is written but not all the rest, 128 + n signal n came first (130 is Ctrl-C); a line says what was written.
"""


@app.command(epilog=EXAMPLE)
@with_groups
def optimize(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="The trained network, an ONNX file.", metavar="MODEL", readable=False)],
    output: Annotated[Path, typer.Argument(help="Where to write the faster one.", metavar="OUTPUT", readable=False)],
    *,
    speedup: Annotated[
        float | None, typer.Option(help="How many times faster it is to become; 2 if no other goal is given.")
    ] = None,
    latency: Annotated[
        str | None, typer.Option(help="Goal: at most so many milliseconds, e.g. 12ms.", metavar="TIME")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Goal: as fast as possible, with at most so many points less accuracy on --evaluate (without labels: "
            "per cent of the inputs in another class; with --metric: so much less of it).",
            metavar="POINTS",
        ),
    ] = None,
    max_macs: Annotated[
        str | None,
        typer.Option(
            help="Goal: at most so many multiply-accumulates a sample in the whole network, e.g. 500M.", metavar="COUNT"
        ),
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="Goal: a file of at most this size, e.g. 20MB.", metavar="SIZE")
    ] = None,
    target: Annotated[
        str, typer.Option(help="latency: of the whole network, measured; macs: of the convolutions, counted.")
    ] = "latency",
    dequantize: Annotated[
        bool,
        typer.Option("--dequantize", help="MODEL may be quantised (QDQ): a float32 network is made of it."),
    ] = False,
    calibration: Calibration = None,
    evaluate: Annotated[
        str | None, typer.Option(help="Inputs, best with labels, to compare the two networks on.", metavar="PATH")
    ] = None,
    shape_: Shape = None,
    custom_ops: CustomOps = None,
    metric: Merit = None,
    measured: Measures = None,
    images: ImageOptions,
    provider: Provider = "cpu",
    threads: Annotated[int, typer.Option(help="Threads latency is measured with.")] = 1,
    precision: Precision = FLOAT32,
    int8_weights: Int8Weights = None,
    passes: Passes = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Layers to consider, e.g. 'conv4*'; may be repeated.", metavar="PATTERN")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Layers to keep; may be repeated.", metavar="PATTERN")
    ] = None,
    rank: Annotated[
        list[str] | None,
        typer.Option(
            help="Ranks by hand, e.g. conv3_2=48x64, conv1=monochromatic:6, or fc6=95% to keep that share of the "
            "response; may be repeated.",
            metavar="LAYER=[PASS:]RANKS",
        ),
    ] = None,
    selection: Annotated[
        str,
        typer.Option(
            help="exact: least effect on the output, measured layer by layer; energy: the greedy choice of Zhang 2015; "
            "uniform: all layers cut alike."
        ),
    ] = "exact",
    kernel_metric: Annotated[
        str, typer.Option(help="Of kernel errors, before the refit to responses: data, frobenius or mahalanobis.")
    ] = "data",
    linear: Annotated[bool, typer.Option("--linear", help="Fit before the activations, not through them.")] = False,
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="Fit every layer on the original network's features.")
    ] = False,
    finetune: Annotated[
        float | None,
        typer.Option(
            help="Train the network that was found, end to end, for so many minutes on --calibration; takes "
            "pip install 'onnxlowrank[finetune]'. See onnxlowrank finetune.",
            metavar="MINUTES",
        ),
    ] = None,
    cascade: Annotated[
        bool,
        typer.Option(
            "--cascade",
            help="With --finetune: approximate layer after layer, and train what is behind each before the next "
            "(Denton 2014); the minutes are shared.",
        ),
    ] = False,
    tune: Annotated[
        str | None,
        typer.Option(
            help="blocks: fit all layers again once all are there, kept ones among them; takes several times as long "
            "as the fit, and never comes out worse on calibration inputs held out for it."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sampled positions.")] = 0,
    report: Annotated[
        Path | None, typer.Option(help="Also write the report as JSON.", metavar="PATH", readable=False)
    ] = None,
    html: Html = None,
    verbose: Verbose = False,
) -> None:
    """Write a network that runs faster in onnxruntime, at almost the same accuracy: give one goal."""
    start_log(verbose)
    written = {OUTPUT: output, "--report": report, "--html": html}
    begin_writing(context, written, [model], {"--calibration": calibration, "--evaluate": evaluate})
    how = images.read()
    shares = INT8_SHARES if precision in QUANTISED else SHARES
    with custom_operators(custom_ops or ()), stages(verbose, shares) as progress:
        result = run(
            model,
            output,
            speedup=speedup,
            latency=quantity("--latency", latency, TIMES),
            max_drop=max_drop,
            max_macs=quantity("--max-macs", max_macs, COUNTS),
            max_size=quantity("--max-size", max_size, SIZES),
            target=target,
            dequantize=dequantize,
            calibration=calibration,
            evaluate=evaluate,
            preprocess=how,
            provider=provider,
            threads=threads,
            precision=precision,
            int8_weights=int8_weights,
            passes=None if passes is None else names(passes),
            only=only or (),
            exclude=exclude or (),
            ranks=dict(by_hand(text) for text in rank or ()),
            selection=selection,
            shapes=dict(shape(text) for text in shape_ or ()),
            metric=metric,
            outputs=measures(measured or ()),
            kernel_metric=kernel_metric,
            nonlinear=not linear,
            asymmetric=not symmetric,
            tune=tune,
            seed=seed,
            finetune=finetune,
            cascade=cascade,
            progress=progress,
        )
    shown = optimisation_report(result, f"{model.name}, optimised", this_command())

    def show() -> None:
        print_report(shown, console())
        print(f"written: {printable(str(output))} ({result.seconds:.0f} s)")

    as_json = f"{json.dumps(result.to_dict(), indent=2)}\n".encode()
    write_and_show([(report, lambda: as_json), (html, lambda: as_html(shown))], show)
    if result.is_interrupted:
        raise KeyboardInterrupt
    if not result.reached:
        raise typer.Exit(NOT_REACHED)

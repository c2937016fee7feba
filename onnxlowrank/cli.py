"""The command line: options in, one call of the Python API, tables out."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import string
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from onnxlowrank.calibrate.preprocess import preprocess_from_options
from onnxlowrank.choose import ByHand
from onnxlowrank.cost.cache import Cache
from onnxlowrank.errors import OnnxLowRankError, OptionError
from onnxlowrank.graph.load import check_destination, write_atomically
from onnxlowrank.passes import pass_names
from onnxlowrank.pipeline import optimize as run
from onnxlowrank.progress import Advance
from onnxlowrank.report.table import print_result

app = typer.Typer(
    help="Makes trained ONNX networks faster in onnxruntime by low-rank decomposition, without training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_LOG = logging.getLogger(__name__)

BAD_INPUT, NOT_REACHED, INTERRUPTED = 2, 3, 130

EXAMPLE = """
Example:

\b
  onnxlowrank optimize models/vgg_cifar10.onnx fast.onnx \\
      --speedup 2 --calibration models/cifar10_calibration.npz

Exit code: 0 the goal was reached, 3 it was not (the best network is written), 2 bad input (nothing is written).
"""

CACHE_EXAMPLE = """
Example:

\b
  onnxlowrank cache --json
  onnxlowrank cache --clear

The environment variable ONNXLOWRANK_CACHE names another folder for the file.
"""


def main() -> None:
    """Run the command line; bad input ends in one sentence on standard error and exit code 2."""
    try:
        app()
    except OnnxLowRankError as error:
        sentence = " ".join(str(error).split())
        print(f"onnxlowrank: {sentence}{'' if sentence.endswith('.') else '.'}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # so typer ends on Ctrl-C, without a word
            print("onnxlowrank: interrupted, nothing was written.", file=sys.stderr)
        raise


def _version(wanted: bool) -> None:
    if wanted:
        print(f"onnxlowrank {importlib.metadata.version('onnxlowrank')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command(epilog=EXAMPLE)
def optimize(
    model: Annotated[Path, typer.Argument(help="The trained network, an ONNX file.", metavar="MODEL", readable=False)],
    output: Annotated[Path, typer.Argument(help="Where to write the faster one.", metavar="OUTPUT", readable=False)],
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
            "per cent of the inputs in another class).",
            metavar="POINTS",
        ),
    ] = None,
    max_macs: Annotated[
        str | None, typer.Option(help="Goal: at most so many multiply-accumulates, e.g. 500M.", metavar="COUNT")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="Goal: a file of at most this size, e.g. 20MB.", metavar="SIZE")
    ] = None,
    target: Annotated[
        str, typer.Option(help="latency: of the whole network, measured; macs: of the convolutions, counted.")
    ] = "latency",
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Sample inputs: a folder of images, an .npz with uint8 'images', .npy or .npz feeds, ONNX test data, "
            "or module:attribute naming a CalibrationDataReader.",
            metavar="PATH",
        ),
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option(help="Inputs, best with labels, to compare the two networks on.", metavar="PATH")
    ] = None,
    preprocess: Annotated[str, typer.Option(help="Of images: imagenet, unit, caffe or raw.")] = "imagenet",
    mean: Annotated[str | None, typer.Option(help="Of the pixels as fed, e.g. 123.7,116.8,103.9.")] = None,
    std: Annotated[str | None, typer.Option(help="Likewise, e.g. 1,1,1.")] = None,
    scale: Annotated[float | None, typer.Option(help="Factor of the pixels before --mean and --std.")] = None,
    resize: Annotated[str | None, typer.Option(help="Size before the crop, e.g. 256 or 256x320.")] = None,
    crop: Annotated[str | None, typer.Option(help="Size of the centre crop, e.g. 224.")] = None,
    layout: Annotated[str | None, typer.Option(help="nchw or nhwc; read from the model by default.")] = None,
    channels: Annotated[str | None, typer.Option(help="rgb or bgr.")] = None,
    provider: Annotated[str, typer.Option(help="cpu or cuda: where latency is measured.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads latency is measured with.")] = 1,
    passes: Annotated[str | None, typer.Option(help=f"Methods to choose from: {', '.join(pass_names())}.")] = None,
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
    metric: Annotated[
        str, typer.Option(help="Of kernel errors, before the refit to responses: data, frobenius or mahalanobis.")
    ] = "data",
    linear: Annotated[bool, typer.Option("--linear", help="Fit before the activations, not through them.")] = False,
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="Fit every layer on the original network's features.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the sampled positions.")] = 0,
    report: Annotated[
        Path | None, typer.Option(help="Also write the report as JSON.", metavar="PATH", readable=False)
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")] = False,
) -> None:
    """Write a network that runs faster in onnxruntime, at almost the same accuracy: give one goal."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s")
    if report is not None:
        check_destination(model, report)
        if os.path.realpath(report) == os.path.realpath(output):
            raise OptionError(f"--report {report} is the output itself; choose another path")
    how = preprocess_from_options(
        preprocess,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        scale=scale,
        resize=_size("--resize", resize),
        crop=_size("--crop", crop),
        layout=layout,
        channels=channels,
    )
    with _bars(verbose) as progress:
        result = run(
            model,
            output,
            speedup=speedup,
            latency=_quantity("--latency", latency, _TIMES),
            max_drop=max_drop,
            max_macs=_quantity("--max-macs", max_macs, _COUNTS),
            max_size=_quantity("--max-size", max_size, _SIZES),
            target=target,
            calibration=calibration,
            evaluate=evaluate,
            preprocess=how,
            provider=provider,
            threads=threads,
            passes=None if passes is None else [name.strip() for name in passes.split(",")],
            only=only or (),
            exclude=exclude or (),
            ranks=dict(_rank(text) for text in rank or ()),
            selection=selection,
            metric=metric,
            nonlinear=not linear,
            asymmetric=not symmetric,
            seed=seed,
            progress=progress,
        )
    print_result(result, _console())
    print(f"written: {output} ({result.seconds:.0f} s)")
    if report is not None:
        text = json.dumps(result.to_dict(), indent=2) + "\n"
        write_atomically(report, text.encode())
    if not result.reached:
        raise typer.Exit(NOT_REACHED)


@app.command(epilog=CACHE_EXAMPLE)
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Forget all of them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how many measured times are remembered, where, and under which conditions they were measured."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    timings = Cache()
    if clear:
        removed = timings.clear()
        print(
            json.dumps({"path": str(timings.path), "removed": removed}) if as_json else f"forgotten: {removed} timings"
        )
        return
    summary = timings.summary()
    if as_json:
        print(json.dumps(summary.to_dict(), indent=2))
        return
    print(f"file     {summary.path}\nsize     {summary.size / 1e3:.1f} kB\ntimings  {summary.timings}")
    for where, count in summary.by_conditions:
        threads = f"{where.threads} thread{'s' * (where.threads > 1)}"
        print(f"{count:7}  {where.provider}, {threads}, onnxruntime {where.onnxruntime}, {where.processor}")


class _Bars:
    """Progress bars on standard error, and a line of the log for every stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def stage(self, title: str, total: float) -> Advance:
        _LOG.info("%s", title)
        task = self._progress.add_task(title, total=total)
        return lambda amount: self._progress.advance(task, amount)


@contextmanager
def _bars(verbose: bool) -> Iterator[_Bars]:
    """Yield bars that are gone when the work is done; there are none beside a log or where there is no terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description:10}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    hidden = verbose or not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as progress:
        yield _Bars(progress)


def _console() -> Console:
    """Return a console as wide as the terminal, or wide enough for the tables where there is none."""
    return Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=140)


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option} {text} is no list of numbers; write e.g. {option} 0.5,0.5,0.5") from None


def _size(option: str, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        sizes = [int(part) for part in text.split("x")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise OptionError(f"{option} {text} is no size; write e.g. {option} 256 or {option} 256x320 (height x width)")
    return sizes[0], sizes[-1]


_TIMES = {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3}
_COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
_SIZES = {"": 1.0, "B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _quantity(option: str, text: str | None, units: Mapping[str, float]) -> float | None:
    if text is None:
        return None
    number = text.strip().rstrip(string.ascii_letters)
    unit = text.strip()[len(number) :]
    try:
        return float(number) * units[unit]
    except (ValueError, KeyError):
        known = ", ".join(filter(None, units))
        raise OptionError(f"{option} {text} is not understood; write a number and one of {known}") from None


def _rank(text: str) -> tuple[str, ByHand]:
    layer, separator, asked = text.rpartition("=")
    method, _, ranks = asked.rpartition(":")
    try:
        share = float(ranks.removesuffix("%")) / 100 if ranks.endswith("%") else 0.0
        setting = () if ranks.endswith("%") else tuple(int(part) for part in ranks.split("x"))
    except ValueError:
        separator = ""
    if not (separator and layer):
        raise OptionError(
            f"--rank {text} is not understood; write --rank LAYER=64, LAYER=48x64, LAYER=svd:32x64 or LAYER=95%"
        )
    return layer, ByHand(setting, share, method or None)

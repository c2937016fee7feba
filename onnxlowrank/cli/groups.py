"""Options that several commands share, described once: a parameter of a command may be a dataclass of options."""

from __future__ import annotations

import functools
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from onnxlowrank.cli.app import console
from onnxlowrank.cli.parsing import numbers, size
from onnxlowrank.cli.writing import as_html, begin_writing, write_and_show
from onnxlowrank.errors import OptionError
from onnxlowrank.inputs.preprocess import Preprocess, preprocess_from_options
from onnxlowrank.report.content import Report
from onnxlowrank.report.markdown import markdown
from onnxlowrank.report.terminal import print_report
from onnxlowrank.text import printable

Html = Annotated[
    Path | None, typer.Option(help="Also write the report as one HTML file.", metavar="PATH", readable=False)
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")]


@dataclass(frozen=True)
class ImageOptions:
    """How images become inputs."""

    preprocess: Annotated[str, typer.Option(help="Of images: imagenet, unit, caffe or raw.")] = "imagenet"
    mean: Annotated[str | None, typer.Option(help="Of the pixels as fed, e.g. 123.7,116.8,103.9.")] = None
    std: Annotated[str | None, typer.Option(help="Likewise, e.g. 1,1,1.")] = None
    scale: Annotated[float | None, typer.Option(help="Factor of the pixels before --mean and --std.")] = None
    resize: Annotated[str | None, typer.Option(help="Size before the crop, e.g. 256 or 256x320.")] = None
    crop: Annotated[str | None, typer.Option(help="Size of the centre crop, e.g. 224.")] = None
    layout: Annotated[str | None, typer.Option(help="nchw or nhwc; read from the model by default.")] = None
    channels: Annotated[str | None, typer.Option(help="rgb or bgr.")] = None

    def read(self) -> Preprocess:
        """Return what the options say."""
        return preprocess_from_options(
            self.preprocess,
            mean=numbers("--mean", self.mean),
            std=numbers("--std", self.std),
            scale=self.scale,
            resize=size("--resize", self.resize),
            crop=size("--crop", self.crop),
            layout=self.layout,
            channels=self.channels,
        )


@dataclass(frozen=True)
class ReportOptions:
    """In what form a report is shown."""

    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False
    html: Html = None
    verbose: Verbose = False

    def begin(
        self,
        context: typer.Context,
        models: Sequence[Path],
        data: Mapping[str, str | None],
        kept: Mapping[str, Path] | None = None,
    ) -> None:
        """Start the log; refuse what cannot be shown, or written without loss of an input, before the work begins.

        Args:
            context: Of the command.
            models: The networks that are read.
            data: By option, from where else the command reads.
            kept: What else the command is to write.
        """
        start_log(self.verbose)
        if self.as_json and self.as_markdown:
            raise OptionError("--json and --markdown both print the report; give one of them")
        begin_writing(context, {**(kept or {}), "--html": self.html}, models, data)

    def show(self, report: Report, values: dict[str, Any]) -> None:
        """Write a report as HTML if that is asked for, and print it in the form asked for."""

        def show() -> None:
            if self.as_json:
                print(json.dumps(values, indent=2))
            elif self.as_markdown:
                print(markdown(report), end="")
            else:
                print_report(report, console())

        write_and_show([(self.html, lambda: as_html(report))], show)


def start_log(verbose: bool) -> None:
    """Log to standard error; of libraries, warnings alone."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("onnxlowrank").setLevel(logging.INFO if verbose else logging.WARNING)


class _Printable(logging.Formatter):
    """Writes names as they may be shown in a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command as typer is to see it: in place of every dataclass stand the options that are its fields."""
    own = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {name: one.annotation for name, one in own.items() if is_dataclass(one.annotation)}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **made)

    parameters: list[inspect.Parameter] = []
    for name, parameter in own.items():
        if name not in groups:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        hints = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
            )
            for field in fields(groups[name])
        ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    del run.__wrapped__
    return run

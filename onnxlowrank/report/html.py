"""Reports as one HTML file that needs nothing else: no network, no scripts, light and dark, screen and paper."""

from __future__ import annotations

import jinja2
from markupsafe import Markup

from onnxlowrank.report.content import Report

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("onnxlowrank.report", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def html(report: Report) -> str:
    """Return the report as HTML; texts are escaped, figures are taken as they are."""
    figures = [(figure.title, Markup(figure.svg)) for figure in report.figures()]
    return _TEMPLATES.get_template("report.html").render(report=report.printable(), figures=figures)

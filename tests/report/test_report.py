"""Reports in every form: what they hold is there, and nothing of it is taken for markup."""

import io
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from onnxlowrank.report.content import Figure, Report, Table
from onnxlowrank.report.figures import bars, curves, distributions, pictures, points
from onnxlowrank.report.html import html
from onnxlowrank.report.markdown import markdown
from onnxlowrank.report.terminal import print_report

NASTY = "<b>&|[red]`x`"


def report(figures=()):
    table = Table(f"table {NASTY}", ("name", "ms"), [(NASTY, "1.5"), ("other", "2.5")])
    about = [("processor", NASTY)]
    return Report("title", f"headline {NASTY}", [table], lambda: figures, [f"note {NASTY}"], about, "onnxlowrank x")


class Reader(HTMLParser):
    """Collects the text, the tags and what is fetched from elsewhere."""

    def __init__(self):
        super().__init__()
        self.text, self.tags, self.elsewhere, self.open = "", [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.elsewhere += [value for name, value in attributes if name in ("src", "href") and value[:1] != "#"]
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_data(self, data):
        self.text += data


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_terminal_shows_everything_as_it_is():
    console = Console(file=io.StringIO(), width=140)
    print_report(report(), console)
    text = console.file.getvalue()
    assert text.count(NASTY) == 4  # title, cell, note and headline
    assert "2.5" in text


def test_markdown_tables_have_as_many_cells_as_columns():
    text = markdown(report())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3] * 4
    assert "```sh\nonnxlowrank x\n```" in text


def test_html_escapes_texts_and_needs_nothing_from_elsewhere():
    reader = read(html(report([bars("c", "ms", ["a", NASTY], {"x": [1, 2], "y": [2, 1]})])))
    assert reader.text.count(NASTY) >= 6
    assert "b" not in reader.tags
    assert "script" not in reader.tags
    assert reader.elsewhere == []


@pytest.mark.parametrize(
    "figure",
    [
        distributions("d", {"one": [1.0, 2.0, 3.0], "other": [2.0, 3.0, 9.0]}),
        bars("b", "ms", ["conv", "fc"], {"before": [2.0, 1.0], "after": [1.0, 1.0]}),
        curves("c", "x", "y", {f"layer {i}": ([0.0, 1.0], [0.1, 1.0 + i]) for i in range(20)}, log_y=True),
        pictures("p", {"before": np.random.default_rng(0).normal(size=(5, 3, 3, 3)), "after": np.zeros((5, 3, 3, 3))}),
        points("q", {"before": np.random.default_rng(0).normal(size=(20, 3)), "after": np.zeros((20, 3))}),
    ],
    ids=lambda figure: figure.title,
)
def test_figures_are_svg_in_the_colour_of_the_page(figure: Figure):
    root = ElementTree.fromstring(figure.svg)
    assert root.tag.endswith("svg")
    assert "currentColor" in figure.svg or figure.title == "p"
    assert "#010203" not in figure.svg
    assert "#000000" not in figure.svg


def test_equal_figures_are_equal_bytes():
    one, other = (curves("c", "x", "y", {"a": ([1.0, 2.0], [3.0, 4.0])}) for _ in range(2))
    assert one.svg == other.svg

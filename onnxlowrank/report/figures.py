"""Pictures of reports as SVG: black is the colour of the page's text, so they suit light and dark pages."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.report.content import Figure
from onnxlowrank.text import printable

# After Okabe & Ito 2008: told apart by the colour-blind, and on white as on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
_INK = "#010203"  # becomes the colour of the page's text
_WIDTH = 7.5  # inches
_ROW = 0.28  # inches
_STYLE: dict[Any, Any] = {
    "figure.constrained_layout.wspace": 0.1,
    "svg.fonttype": "none",
    "svg.hashsalt": "onnxlowrank",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.25,
    "grid.color": _INK,
    "legend.frameon": False,
}


def distributions(title: str, times: Mapping[str, Sequence[float]]) -> Figure:
    """Return box plots of milliseconds by label: median, quartiles, and the 1st and 99th percentile."""
    with _drawn(title, _ROW * len(times) + 0.9) as ((axes,), figure):
        axes.boxplot(
            list(times.values()),
            orientation="horizontal",
            whis=(1, 99),
            showfliers=False,
            medianprops={"color": COLOURS[1], "linewidth": 2},
            **{part: {"color": _INK} for part in ("boxprops", "whiskerprops", "capprops")},
        )
        axes.set_yticks(range(1, len(times) + 1), list(map(_label, times)))
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel("milliseconds a run: quartiles, median, 1st and 99th percentile")
        axes.grid(axis="x")
    return figure[0]


def bars(title: str, unit: str, labels: Sequence[str], groups: Mapping[str, Sequence[float]]) -> Figure:
    """Return horizontal bars, one a label and group."""
    height = 0.8 / len(groups)
    with _drawn(title, 0.75 * _ROW * len(labels) * max(len(groups), 1.3) + 1.0) as ((axes,), figure):
        places = np.arange(len(labels))
        for index, (name, values) in enumerate(groups.items()):
            axes.barh(
                places + (index - (len(groups) - 1) / 2) * height,
                values,
                height,
                label=_label(name),
                color=COLOURS[index],
            )
        axes.set_yticks(places, list(map(_label, labels)))
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlabel(unit)
        axes.grid(axis="x")
        if len(groups) > 1:
            axes.legend(loc="lower right")
    return figure[0]


def curves(
    title: str, x: str, y: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], log_y: bool = False
) -> Figure:
    """Return lines through points."""
    with _drawn(title, 4.0) as ((axes,), figure):
        for index, (name, (across, up)) in enumerate(lines.items()):
            style = ("-", "--", ":")[index // len(COLOURS) % 3]
            axes.plot(across, up, style, marker="o", markersize=3.5, label=_label(name))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if log_y:
            axes.set_yscale("log")
        axes.grid()
        if len(lines) > 1:
            columns = 1 if len(lines) <= 10 else 2
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small", ncols=columns)
    return figure[0]


def pictures(title: str, grids: Mapping[str, NDArray[np.floating]]) -> Figure:
    """Return grids of little images ``[n, height, width, 3]``, each grid scaled to its own range, side by side."""
    with _drawn(title, 0.3 + _WIDTH / len(grids), columns=len(grids)) as (every, figure):
        for axes, (name, images) in zip(every, grids.items(), strict=True):
            axes.imshow(_tiled(images), interpolation="nearest")
            axes.set_title(_label(name), fontsize=9, color=_INK)
            axes.set_axis_off()
    return figure[0]


def points(title: str, clouds: Mapping[str, NDArray[np.floating]]) -> Figure:
    """Return points ``[n, 3]`` in the space of red, green and blue, one cloud beside the other, on the same scale."""
    largest = max(float(np.abs(cloud).max(initial=1e-12)) for cloud in clouds.values())
    with _drawn(title, _WIDTH / max(len(clouds), 2), columns=len(clouds), projection="3d") as (every, figure):
        for axes, (name, cloud) in zip(every, clouds.items(), strict=True):
            colours = np.clip(0.5 + cloud / (2 * largest), 0, 1)
            axes.scatter(*cloud.T, c=colours, s=4, edgecolors=_INK, linewidths=0.15)
            axes.set(xlim=(-largest, largest), ylim=(-largest, largest), zlim=(-largest, largest))
            axes.set(xlabel="red", ylabel="green", zlabel="blue", xticks=[0], yticks=[0], zticks=[0])
            axes.set_title(_label(name), fontsize=9)
            axes.set_box_aspect(None, zoom=0.75)  # room for the labels
            for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
                axis.set_pane_color((0, 0, 0, 0))
    return figure[0]


def _label(name: str) -> str:
    """Return a name as a label that matplotlib shows as it is: no formula, and no label to be left out of a legend."""
    shown = printable(name).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _tiled(images: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return one RGBA image of all, in rows and columns, a pixel apart; the range becomes 0 to 1, zero is grey."""
    n, height, width, _ = images.shape
    side = int(np.ceil(np.sqrt(n)))
    largest = np.abs(images).max(initial=1e-12)
    sheet = np.zeros((side * (height + 1) - 1, side * (width + 1) - 1, 4))
    for index, image in enumerate(images):
        top, left = index // side * (height + 1), index % side * (width + 1)
        place = sheet[top : top + height, left : left + width]
        place[..., :3], place[..., 3] = 0.5 + image / (2 * largest), 1
    return sheet


@contextmanager
def _drawn(
    title: str, height: float, columns: int = 1, projection: str | None = None
) -> Iterator[tuple[NDArray[np.object_], list[Figure]]]:
    """Yield axes to draw on, and a list that holds the figure once that is done."""
    import matplotlib as mpl  # half a second, for those who ask for pictures
    from cycler import cycler
    from matplotlib.figure import Figure as Canvas

    done: list[Figure] = []
    with mpl.rc_context({**_STYLE, "axes.prop_cycle": cycler(color=COLOURS)}):
        canvas = Canvas(figsize=(_WIDTH, height), layout="constrained")
        yield canvas.subplots(1, columns, squeeze=False, subplot_kw={"projection": projection})[0], done
        text = io.StringIO()
        canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    done.append(Figure(title, svg[svg.index("<svg") :].replace(_INK, "currentColor")))

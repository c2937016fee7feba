"""How far outputs differ, in words and tables: what was not compared is said to be so."""

from __future__ import annotations

from onnxlowrank.evaluate.agreement import Agreement
from onnxlowrank.evaluate.figure_of_merit import metric_title
from onnxlowrank.evaluate.intervals import Interval
from onnxlowrank.report.content import Table

NOT_COMPARED = "not compared"
ERROR = ".4f"
"""How relative errors are shown."""
_SMALL = 1e-3


def agreement_rows(agreement: Agreement) -> list[tuple[str, str, str]]:
    """Return what is said of the whole network: a label, before, after; before is the original run twice."""
    error = with_interval(agreement.relative_error, agreement.error_interval, ERROR)
    noise = agreement.noise
    rows = [
        ("output difference, relative", "" if noise is None else figure(noise.relative_error, ERROR), error),
        (
            "output difference, largest",
            "" if noise is None else figure(noise.largest_difference, ".4g"),
            figure(agreement.largest_difference, ".4g"),
        ),
    ]
    if agreement.top1_agreement is not None:
        same = with_interval(agreement.top1_agreement, agreement.top1_interval, ".2%")
        itself = "" if noise is None or noise.top1_agreement is None else figure(noise.top1_agreement, ".2%")
        rows.append((f"same top-1 class (of {agreement.inputs})", itself, same))
    if agreement.accuracy is not None:
        one, other = agreement.accuracy
        rows.append((f"top-1 accuracy (of {agreement.inputs})", f"{100 * one:.2f} %", f"{100 * other:.2f} %"))
        if agreement.drop_interval is not None:
            low, high = agreement.drop_interval
            rows.append(("points of it lost, 95 % interval", "", f"{low:.2f} .. {high:.2f}"))
    if agreement.merit is not None:
        merit = agreement.merit
        rows.append((metric_title(merit.name), f"{merit.before:.6g}", f"{merit.after:.6g}"))
        if merit.drop_interval is not None:
            low, high = merit.drop_interval
            rows.append((f"{merit.name} lost, 95 % interval", "", f"{low:.4g} .. {high:.4g}"))
    return rows


def noise_note(agreement: Agreement) -> str | None:
    """Return what there is to say of a network that draws random numbers; None where it gives the same every time."""
    noise = agreement.noise
    if noise is None:
        return None
    if noise.relative_error is None:
        return "the original draws random numbers, what of the difference is its own noise could not be told"
    itself = f"relative output error {figure(noise.relative_error, ERROR)}"
    if noise.top1_agreement is not None:
        itself += f", same top-1 class on {figure(noise.top1_agreement, '.1%')}"
    return f"the original draws random numbers: part of the difference is its own noise (run twice: {itself})"


def cost_text(agreement: Agreement) -> str:
    """Return what a network gave for its speed: its accuracy if that is known, else how far its outputs changed."""
    if agreement.merit is not None:
        merit = agreement.merit
        return (
            f"{metric_title(merit.name)} {merit.before:.6g} -> {merit.after:.6g}{_lost(merit.drop_interval, '.4g', '')}"
        )
    if agreement.accuracy is not None:
        before, after = agreement.accuracy
        lost = _lost(agreement.drop_interval, ".1f", " points")
        return f"top-1 accuracy {100 * before:.2f} % -> {100 * after:.2f} %{lost}"
    noise = agreement.noise
    if agreement.top1_agreement is not None:
        same = with_interval(agreement.top1_agreement, agreement.top1_interval, ".1%")
        itself = _of_itself(None if noise is None else noise.top1_agreement, ".1%")
        return f"same top-1 class on {same} of {agreement.inputs} inputs{itself}"
    if agreement.relative_error is None:
        return "outputs not compared"
    error = with_interval(agreement.relative_error, agreement.error_interval, ERROR)
    return f"relative output error {error}{_of_itself(None if noise is None else noise.relative_error, ERROR)}"


def _of_itself(noise: float | None, form: str) -> str:
    """Return what the figure is of the original run twice, where that is not the best there is."""
    return "" if noise is None else f", {figure(noise, form)} where the original is run twice"


def _lost(interval: Interval | None, form: str, unit: str) -> str:
    return "" if interval is None else f" ({interval[0]:{form}} .. {interval[1]:{form}}{unit} lost)"


def output_table(agreement: Agreement) -> Table:
    """Return the outputs one by one, and the tensors that those are judged by which hold no real numbers."""
    columns = ("output", "judged by", "measure", "loss", "relative error", "largest", "equal entries", "rows")
    rows = []
    for output in agreement.outputs:
        deciding = [one for one in agreement.judged if output.name in one.outputs]
        equal = "" if output.equal is None else f"{output.equal:.2%}"
        counts = "" if output.rows is None else f"{output.rows[0]} -> {output.rows[1]}"
        for index, one in enumerate(deciding):
            figures = (figure(one.loss, ".4g"), figure(one.relative_error, ".4g"), figure(one.largest, ".4g"))
            by = "itself" if one.tensor == output.name else one.tensor
            rows.append((output.name, by, one.measure, *figures, *((equal, counts) if not index else ("", ""))))
        if not deciding:
            errors = (figure(output.relative_error, ".4g", ""), figure(output.largest, ".4g", ""))
            rows.append((output.name, "", output.why_not or "ignored", "", *errors, equal, counts))
    return Table("Outputs", columns, rows, frozenset({0, 1, 2}))


def is_plain(agreement: Agreement) -> bool:
    """Return whether there is one output, judged by itself: then the whole network's figures say everything."""
    return len(agreement.outputs) == 1 and [one.tensor for one in agreement.judged] == [agreement.outputs[0].name]


def figure(value: float | None, form: str, missing: str = NOT_COMPARED) -> str:
    """Return a number as text; one that is None was not compared."""
    if value is None:
        return missing
    if form == ERROR and 0 < abs(value) < _SMALL:  # which would read as none
        form = ".2g"
    return format(value, form).replace("%", " %")


def with_interval(value: float | None, interval: Interval | None, form: str) -> str:
    """Return a number and its interval of 95 %."""
    if value is None or interval is None:
        return figure(value, form)
    low, high = (figure(end, form) for end in interval)
    return f"{figure(value, form)} ({low} .. {high})"

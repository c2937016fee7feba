"""The report of a fine-tuning."""

from __future__ import annotations

from functools import partial

from onnxlowrank.report.agreement import agreement_rows, cost_text
from onnxlowrank.report.content import Figure, Report, Table
from onnxlowrank.report.environment import environment
from onnxlowrank.report.figures import curves
from onnxlowrank.studies.finetune import Finetuned
from onnxlowrank.tune.training import FINISHED, INTERRUPTED, NOT_FINITE, TIME

_ENDED = {
    FINISHED: "",
    TIME: ", then the time was up",
    INTERRUPTED: ", then it was interrupted",
    NOT_FINITE: ", then the loss stayed infinite or NaN",
}


def finetuning_report(found: Finetuned, title: str, command: str = "") -> Report:
    """Return the report of a fine-tuning.

    Args:
        found: What came of it.
        title: Of the report.
        command: How to repeat it.
    """
    return Report(
        title,
        _headline(found),
        [_training(found), _outputs(found)],
        partial(_figures, found),
        found.notes,
        environment((found.device,), ()),
        command,
    )


def _headline(found: Finetuned) -> str:
    tuned = found.tuned
    took = f"{tuned.steps} steps, {tuned.seconds / 60:.1f} min{_ENDED[tuned.ended]}"
    if not tuned.is_better:
        return f"Nothing better than OPTIMISED was found, so OUTPUT is the same network ({took})."
    return (
        f"Loss on inputs held out {tuned.figures[0]:.4g} -> {tuned.figures[1]:.4g} ({took}): {cost_text(found.after)}."
    )


def _training(found: Finetuned) -> Table:
    tuned = found.tuned
    loss = "labels and ORIGINAL's answers, half each" if tuned.labelled else "ORIGINAL's answers"
    nodes = tuned.trained.nodes
    rows = [
        ("trained", f"{found.mode}: {len(nodes)} nodes, {nodes[0]} .. {nodes[-1]}"),
        ("learnt from", f"{loss}; {tuned.samples[0]} samples of {found.source}"),
        ("also compared inside", ", ".join(tuned.hints) or "nothing"),
        ("inputs changed by", ", ".join(tuned.augmented) or "nothing"),
        ("learning rate found", f"{tuned.rate:.2g} of the size of every tensor"),
        (f"loss on the {tuned.samples[1]} samples held out", f"{tuned.figures[0]:.4g} -> {tuned.figures[1]:.4g}"),
    ]
    return Table("Training", ("", ""), rows, frozenset({0, 1}))


def _outputs(found: Finetuned) -> Table:
    """Return how far both networks are from the original."""
    before, after = agreement_rows(found.before), agreement_rows(found.after)
    rows = []
    for (label, first, one), (_, _, other) in zip(before, after, strict=True):
        rows.append((label, first, one, other))
    columns = ("", "ORIGINAL", "OPTIMISED", "OUTPUT")
    return Table(f"Against ORIGINAL, on {found.after.source}", columns, rows)


def _figures(found: Finetuned) -> list[Figure]:
    history = found.tuned.history
    if not history:
        return []
    shares, losses = ([one[side] for one in history] for side in (0, 1))
    line = ([100 * share for share in [0.0, *shares]], [found.tuned.figures[0], *losses])
    return [curves("Loss on inputs held out", "training (%)", "loss", {"": line})]

"""What to tell of a network whose outputs changed much: which layers did it, and what losing half would cost."""

from __future__ import annotations

from onnxlowrank.evaluate.agreement import Agreement
from onnxlowrank.passes.base import Plan
from onnxlowrank.plan.tradeoff import Tradeoff

_MUCH_ACCURACY = 0.02  # top-1
_MANY_CLASSES = 0.05  # of the inputs are in another one
_LARGE_ERROR = 0.2  # relative
_NAMED = 3
"""How many layers are named."""


def is_much_lost(agreement: Agreement) -> bool:
    """Return whether the outputs changed more than most users would take."""
    if agreement.accuracy is not None:
        return agreement.accuracy[0] - agreement.accuracy[1] > _MUCH_ACCURACY
    if agreement.top1_agreement is not None:
        return agreement.top1_agreement < 1 - _MANY_CLASSES
    return agreement.relative_error is not None and agreement.relative_error > _LARGE_ERROR


def loss_note(agreement: Agreement, plan: Plan, tradeoff: Tradeoff | None, speedup: float | None) -> str:
    """Return what changed the outputs most, by prediction.

    Args:
        agreement: How far the outputs differ.
        plan: Of the network.
        tradeoff: What it was chosen from.
        speedup: That was reached, where a speed-up is the goal.
    """
    note = "the outputs changed a lot"
    if tradeoff is not None:
        dearest = [f"{layer} ({100 * share:.0f} %)" for layer, share in tradeoff.costliest(plan, _NAMED)]
        note += f"; most of the predicted loss is that of {', '.join(dearest)}" if dearest else ""
        # losses are divergences or squared errors: at half the error a quarter of them is left
        share = 0.5 if agreement.top1_agreement is not None else 0.25
        half = None if speedup is None else tradeoff.speedup_at(share, plan, speedup)
        note += f"; --speedup {half:.3g} is predicted to lose about half as much" if half else ""
    return f"{note}; ask for less, or give more calibration inputs"

"""What to tell of a network whose outputs changed much: which layers did it, and what losing half would cost."""

from __future__ import annotations

import math

from onnxlowrank.evaluate.agreement import Agreement
from onnxlowrank.goal import CONV_MACS, SPEEDUP, TOO_FAST, Goal
from onnxlowrank.graph.widen import is_half
from onnxlowrank.measure.chain_timer import ChainTimer
from onnxlowrank.passes.base import Plan
from onnxlowrank.plan.builder import FOLDED_IS_ENOUGH, INT8_IS_ENOUGH, FittedNetwork
from onnxlowrank.plan.counted import macs_speedup
from onnxlowrank.plan.network import Network
from onnxlowrank.plan.tradeoff import Tradeoff

_MUCH_ACCURACY = 0.02  # top-1
_MANY_CLASSES = 0.05  # of the inputs are in another one
_LARGE_ERROR = 0.2  # relative
_FASTER_BY_FOLDING = 1.02
_NAMED = 3
"""How many layers are named."""


def is_much_lost(agreement: Agreement) -> bool:
    """Return whether the outputs changed more than most users would take, beyond their own noise."""
    noise = agreement.noise
    if agreement.accuracy is not None:
        return agreement.accuracy[0] - agreement.accuracy[1] > _MUCH_ACCURACY
    if agreement.top1_agreement is not None:
        at_best = 1.0 if noise is None or noise.top1_agreement is None else noise.top1_agreement
        return agreement.top1_agreement < at_best - _MANY_CLASSES
    own = 0.0 if noise is None or noise.relative_error is None else noise.relative_error
    return agreement.relative_error is not None and agreement.relative_error > math.hypot(own, _LARGE_ERROR)


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


def folding_notes(network: Network, alone: FittedNetwork | None) -> list[str]:
    """Return what is to be said of constants that were folded; ``alone`` is the network with nothing else done."""
    if network.int8 is not None or alone is None or alone.speedup < _FASTER_BY_FOLDING:
        return []
    return [
        f"{network.folded_away} constant factors and addends were folded into convolutions, which is "
        f"{alone.speedup:.2f}x by itself and loses nothing"
    ]


def warnings_of(
    goal: Goal, fitted: FittedNetwork, network: Network, timer: ChainTimer, agreement: Agreement
) -> list[str]:
    """Return what the user should hear when times or counts are uncertain, the goal is overshot, or much is lost."""
    warnings = []
    if network.int8 is not None and network.int8.weight_bits == 8:
        warnings.append(
            "int8 weights have 8 bits: on x86 processors without VNNI sums of products overflow and OUTPUT computes "
            "something else; --int8-weights 7bit computes the same everywhere"
        )
    if network.half is not None and network.target.kind == "cpu" and not is_half(network.original):
        warnings.append(
            "half precision is for --provider cuda and does not pay on the CPU, where onnxruntime computes in float32 "
            "between Casts"
        )
    uncounted = [f"{one.name} ({one.reason})" for one in network.kept if not one.is_counted]
    if uncounted:
        warnings.append(
            f"there are more multiply-accumulates than are reported, not all could be counted of {'; '.join(uncounted)}"
        )
    is_kept = fitted.reason in (INT8_IS_ENOUGH, FOLDED_IS_ENOUGH)
    if goal.kind == SPEEDUP and fitted.speedup > TOO_FAST * goal.value and not is_kept:
        warnings.append(
            f"{fitted.speedup:.2f}x is more than was asked for, and costs accuracy: times scatter too much to come "
            "closer, or no plan lies between; a new run on an idle machine may find one"
        )
    if timer.noisy:
        warnings.append(
            f"{timer.noisy} of the {timer.timed} chains that were tried in place of layers could be timed to no better "
            "than 2 %; if other work shared the machine, 'onnxlowrank cache --clear' and a new run on an idle one give "
            "a better plan"
        )
    if agreement.not_compared:
        warnings.append(
            f"the outputs were not compared: {agreement.not_compared}; look at what they are worth yourself"
        )
    if is_much_lost(agreement):
        speedup = {SPEEDUP: fitted.speedup, CONV_MACS: macs_speedup(network, fitted)}.get(goal.kind)
        warnings.append(loss_note(agreement, fitted.plan, fitted.tradeoff, speedup))
    return warnings

"""What an optimisation is to reach."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxlowrank.errors import OptionError

TARGETS = ("latency", "macs")
DEFAULT_SPEEDUP = 2.0

SPEEDUP, LATENCY, MAX_DROP = "speedup", "latency", "max_drop"
CONV_MACS, MAX_MACS, MAX_SIZE = "conv_macs", "max_macs", "max_size"
COUNTED = (CONV_MACS, MAX_MACS, MAX_SIZE)
"""The goals that are counted, not measured."""
FLOAT32, INT8, FP16, MIXED = "float32", "int8", "fp16", "mixed"
PRECISIONS = (FLOAT32, INT8, FP16, MIXED)
"""What networks compute in."""
QUANTISED = (INT8, MIXED)
WEIGHT_BITS = {"7bit": 7, "8bit": 8}
"""Of int8 weights: 7 for +-64, so that sums of two products fit 16 bits."""
TOO_FAST = 1.1
"""Networks faster than this times what was asked for gave away accuracy."""


@dataclass(frozen=True)
class Goal:
    """A goal.

    Attributes:
        kind: ``speedup``: so many times faster; ``latency``: at most so many milliseconds; ``max_drop``: as fast as
            possible, losing at most so many points of accuracy, or of agreement with the original where there are no
            labels; ``conv_macs``: so many times fewer multiply-accumulates in the convolutions, also those that are no
            layers; ``max_macs``: at most so many in the whole network, for one sample; ``max_size``: at most so many
            bytes of file.
        value: How much.
    """

    kind: str
    value: float


def goal_of(
    speedup: float | None,
    target: str,
    latency: float | None,
    max_drop: float | None,
    max_macs: float | None,
    max_size: float | None,
) -> Goal:
    """Return the one goal that is asked for.

    Raises:
        OptionError: If there are several, or if it makes no sense.
    """
    if target not in TARGETS:
        raise OptionError(f"--target {target} is unknown; choose from {', '.join(TARGETS)}")
    given = {SPEEDUP: speedup, LATENCY: latency, MAX_DROP: max_drop, MAX_MACS: max_macs, MAX_SIZE: max_size}
    asked = {kind: value for kind, value in given.items() if value is not None} or {SPEEDUP: DEFAULT_SPEEDUP}
    if len(asked) > 1:
        options = " and ".join(f"--{kind.replace('_', '-')}" for kind in asked)
        raise OptionError(f"{options} are goals of their own; give one of them")
    kind, value = next(iter(asked.items()))
    if kind == SPEEDUP:
        if not (math.isfinite(value) and value > 1):
            raise OptionError(f"--speedup {value:g} makes no sense; give a number above 1, e.g. 2")
        return Goal(CONV_MACS if target == "macs" else SPEEDUP, value)
    if target == "macs":
        raise OptionError(f"--target macs is about --speedup, not about --{kind.replace('_', '-')}")
    if not (math.isfinite(value) and value > 0):
        raise OptionError(f"--{kind.replace('_', '-')} {value:g} makes no sense; give a number above 0")
    return Goal(kind, value)

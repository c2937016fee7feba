"""Texts of options to values; what is not understood ends in one sentence."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

from onnxlowrank.errors import OptionError
from onnxlowrank.plan.manual_ranks import ManualRank


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Return the numbers of a list like ``0.5,0.5``."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option} {text} is no list of numbers; write e.g. {option} 0.5,0.5,0.5") from None


def counts(option: str, text: str) -> tuple[int, ...]:
    """Return the whole numbers of a list like ``1,2``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option} {text} is no list of whole numbers; write e.g. {option} 1,2") from None


def names(text: str) -> list[str]:
    """Return the words of a list like ``channel,spatial``."""
    return [name.strip() for name in text.split(",")]


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Return the input and the dimensions of ``input=1x3x224x224``."""
    name, _, dimensions = text.rpartition("=")
    try:
        sizes = tuple(int(part) for part in dimensions.split("x"))
    except ValueError:
        sizes = ()
    if not name or min(sizes, default=0) < 1:
        raise OptionError(f"--shape {text} is not understood; write e.g. --shape input=1x3x224x224")
    return name, sizes


def size(option: str, text: str | None) -> tuple[int, int] | None:
    """Return height and width of ``256`` or ``256x320``."""
    if text is None:
        return None
    try:
        sizes = [int(part) for part in text.split("x")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise OptionError(f"{option} {text} is no size; write e.g. {option} 256 or {option} 256x320 (height x width)")
    return sizes[0], sizes[-1]


def measures(texts: Sequence[str]) -> dict[str, str]:
    """Return how outputs are measured, of texts like ``scores=classes`` or ``boxes``."""
    found = {}
    for text in texts:
        name, separator, kind = text.rpartition("=")
        found[name if separator else text] = kind if separator else "auto"
    return found


TIMES = {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3}
COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
SIZES = {"": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def quantity(option: str, text: str | None, units: Mapping[str, float]) -> float | None:
    """Return a number with one of the units, in the smallest; no two differ in case alone, so ``40k`` is ``40K``."""
    if text is None:
        return None
    factors = {unit.lower(): factor for unit, factor in units.items()}
    number = text.strip().rstrip(string.ascii_letters)
    unit = text.strip()[len(number) :]
    try:
        return float(number) * factors[unit.lower()]
    except (ValueError, KeyError):
        known = ", ".join(filter(None, units))
        raise OptionError(f"{option} {text} is not understood; write a number and one of {known}") from None


def by_hand(text: str) -> tuple[str, ManualRank]:
    """Return the layer and what ``--rank`` asks for in it."""
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
    return layer, ManualRank(setting, share, method or None)

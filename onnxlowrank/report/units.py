"""Numbers as people read them: in units that fit them."""

from __future__ import annotations

_PREFIXES = ("", "K", "M", "G", "T", "P")


def scale(value: float) -> tuple[float, str]:
    """Return the factor and the prefix of the unit in which a number has one to three digits before the point."""
    power = 0
    while abs(value) >= 999.95 * 1000**power and power < len(_PREFIXES) - 1:
        power += 1
    return 1000.0**power, _PREFIXES[power]


def amount(value: float, unit: str = "") -> str:
    """Return four digits of a number with its unit: ``153.6 KMACs``, ``15.35 MB``; those below a thousand in full."""
    factor, prefix = scale(value)
    number = f"{value / factor:.4g}" if prefix else f"{value:.0f}"
    return f"{number} {prefix}{unit}".rstrip()

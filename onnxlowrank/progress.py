"""How long work says how far it is; the command line draws bars, the library is silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Advance = Callable[[float], None]


class Progress(Protocol):
    """Told of every stage before it starts."""

    def stage(self, title: str, total: float) -> Advance:
        """Start a stage of ``total`` units and return the function that is called with the units just done."""
        ...

    def tell(self, standing: str) -> None:
        """Say how the stage that is on stands, in a few words."""
        ...


class Silent:
    """Shows nothing."""

    def stage(self, title: str, total: float) -> Advance:
        """Return a function that does nothing."""
        return lambda amount: None

    def tell(self, standing: str) -> None:
        """Say nothing."""

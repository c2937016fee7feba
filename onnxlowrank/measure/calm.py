"""Tells when other work shares the machine.

It slows large layers and small ones, networks and what they become, down by different factors. So ratios of times are
other ones while it lasts, however often two networks take turns, and it lasts for seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_DISTURBED = 1.2
"""How much longer than at best a network takes where other work shares the machine; by a tenth it does by chance."""


class Calm:
    """Tells when other work shares the machine, by how long one network takes."""

    def __init__(self) -> None:
        self._best = np.inf

    def quiet(self, medians: Sequence[float]) -> list[int]:
        """Return which of some sessions were not disturbed: the network took about as long as it did at best."""
        self._best = min(self._best, *medians)
        return [index for index, median in enumerate(medians) if median <= _DISTURBED * self._best]

    def settle(self, medians: Sequence[float]) -> None:
        """Take the best of these for the best from now on: the machine does not become as fast again."""
        self._best = min(medians)

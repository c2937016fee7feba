"""How long training goes on, and how large its steps are meanwhile."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

_WARM_UP = 0.05
"""Of the whole, in which the learning rate rises."""


@dataclass
class Budget:
    """Steps, or minutes, or both: what comes first ends it.

    Attributes:
        steps: At most; None for any number.
        minutes: At most; None for any.
    """

    steps: int | None
    minutes: float | None
    _done: int = 0
    _since: float = field(default_factory=lambda: time.monotonic())

    def step(self) -> None:
        """Count a step."""
        self._done += 1

    @property
    def done(self) -> int:
        """Steps counted."""
        return self._done

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._since

    @property
    def share(self) -> float:
        """What of the whole is done: by steps alone where these are given, so that equal runs give equal networks."""
        if self.steps is not None:
            return min(self._done / self.steps, 1.0)
        assert self.minutes is not None
        return min(self.seconds / (60 * self.minutes), 1.0)

    @property
    def is_over(self) -> bool:
        """Whether it is used up."""
        late = self.minutes is not None and self.seconds >= 60 * self.minutes
        return late or self.share >= 1

    @property
    def seconds_left(self) -> float | None:
        """About how long it goes on; None before anything is done."""
        found = [] if self.minutes is None else [60 * self.minutes - self.seconds]
        if self.steps is not None and self._done:
            found.append(self.seconds / self._done * (self.steps - self._done))
        return max(min(found), 0.0) if found else None


def cosine(share: float) -> float:
    """Return the factor of the learning rate: from 0 to 1 in the first steps, then down to 0 as a cosine."""
    if share < _WARM_UP:
        return max(share / _WARM_UP, 1e-2)
    return 0.5 * (1 + math.cos(math.pi * (share - _WARM_UP) / (1 - _WARM_UP)))

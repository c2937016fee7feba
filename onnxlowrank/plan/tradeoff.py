"""What a plan could have been: why layers are in it as they are, which lose most, and what losing less would cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from onnxlowrank.passes.base import KEEP, Plan
from onnxlowrank.plan.selection import Choices, Losses, Select

_HALVINGS = 8


@dataclass(frozen=True, eq=False)
class Tradeoff:
    """What a selection had to choose from.

    Attributes:
        offer: Returns the items of every layer, as they are known in the end.
        whole: Cost of the network as it is, in the units of the items.
        fixed: What of it belongs to no layer.
        losses: What candidates take from the network.
        select: Makes plans.
    """

    offer: Callable[[], Choices]
    whole: float
    fixed: float
    losses: Losses
    select: Select

    @cached_property
    def choices(self) -> Choices:
        """The items of every layer."""
        return self.offer()

    def kept_because(self, layer: str) -> str:
        """Return why the selection kept a layer that had settings to choose from."""
        if not any(item.candidate.method != KEEP for item in self.choices[layer]):
            return "none of its chains is faster, as far as they were measured"
        return "no setting saves enough for its loss"

    def costliest(self, plan: Plan, count: int) -> list[tuple[str, float]]:
        """Return the layers of a plan that are predicted to lose most, each with its share of the whole loss."""
        losses = {layer: self.losses.of(candidate) for layer, candidate in plan.items() if candidate.method != KEEP}
        total = sum(losses.values())
        dearest = sorted(losses, key=lambda layer: -losses[layer])[:count]
        return [(layer, losses[layer] / total) for layer in dearest] if total > 0 else []

    def speedup_at(self, share: float, plan: Plan, speedup: float) -> float | None:
        """Return the predicted speed-up of a plan that loses no more than a share of what another one does.

        Args:
            share: Of the loss.
            plan: The other plan.
            speedup: Its speed-up; the one returned is between 1 and this.

        Returns:
            The largest speed-up found; None where there is none.
        """
        allowed = share * self._loss(plan)
        low, high = 1.0, speedup
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            found = self.select(self.choices, self.whole / middle - self.fixed)
            low, high = (middle, high) if self._loss(found) <= allowed else (low, middle)
        return low if low > 1 else None

    def _loss(self, plan: Plan) -> float:
        return sum(map(self.losses.of, plan.values()))

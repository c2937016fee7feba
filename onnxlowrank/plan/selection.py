"""What selections choose from: candidates with what they cost and what they lose, in any units."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from onnxlowrank.passes.base import Candidate, Plan


class Losses(Protocol):
    """What candidates are predicted to take from the network; over the layers of a plan it adds up."""

    def of(self, candidate: Candidate) -> float:
        """Return what a candidate takes; 0 where it takes nothing."""

    def refine(self, plan: Plan) -> Collection[str]:
        """Look closer at what a plan is made of; return the layers whose predictions are other ones now."""


class EnergyLosses:
    """The losses of Zhang 2015, Eq. 13: ``-log E``, whatever the layer."""

    def of(self, candidate: Candidate) -> float:
        """Return what a candidate adds to ``-log`` of the product of energies."""
        return lost_energy(candidate)

    def refine(self, plan: Plan) -> Collection[str]:
        """Return nothing: energies are what they are."""
        return ()


@dataclass(frozen=True)
class Item:
    """A candidate to choose from.

    Attributes:
        candidate: What is chosen.
        cost: What its layer then costs: milliseconds, multiply-accumulates or bytes.
        loss: What it takes from the network; those of all layers add up.
    """

    candidate: Candidate
    cost: float
    loss: float


Choices = Mapping[str, Sequence[Item]]
"""For every layer its items, "keep" among them."""

Select = Callable[[Choices, float], Plan]
"""Makes a plan of choices and the highest summed cost; where even the cheapest ones exceed it, of these."""


def lost_energy(candidate: Candidate) -> float:
    """Return what a candidate adds to ``-log`` of the product of energies (Zhang 2015, Eq. 13)."""
    return -math.log(max(candidate.energy, 1e-12))


def choices_of(
    candidates: Mapping[str, Sequence[Candidate]], cost: Callable[[Candidate], float], losses: Losses
) -> dict[str, list[Item]]:
    """Return candidates with a cost that is counted."""
    return {layer: [Item(one, cost(one), losses.of(one)) for one in items] for layer, items in candidates.items()}


def pareto(choices: Sequence[Item]) -> list[Item]:
    """Return the items that no other beats in both cost and loss, from the dearest to the cheapest."""
    front: list[Item] = []
    for item in sorted(choices, key=lambda item: (item.cost, item.loss)):
        if not front or item.loss < front[-1].loss:
            front.append(item)
    return front[::-1]

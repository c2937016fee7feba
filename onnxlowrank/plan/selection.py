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


class Energies:
    """The losses of Zhang 2015, Eq. 13: ``-log E``, whatever the layer."""

    def of(self, candidate: Candidate) -> float:
        """Return what a candidate adds to ``-log`` of the product of energies."""
        return lost_energy(candidate)

    def refine(self, plan: Plan) -> Collection[str]:
        """Return nothing: energies are what they are."""
        return ()


@dataclass(frozen=True)
class Offer:
    """A candidate to choose from.

    Attributes:
        candidate: What is on offer.
        cost: What its layer then costs: milliseconds, multiply-accumulates or bytes.
        loss: What it takes from the network; those of all layers add up.
    """

    candidate: Candidate
    cost: float
    loss: float


Offers = Mapping[str, Sequence[Offer]]
"""For every layer its offers, "keep" among them."""

Select = Callable[[Offers, float], Plan]
"""Makes a plan of offers and the highest summed cost; where even the cheapest ones exceed it, of these."""


def lost_energy(candidate: Candidate) -> float:
    """Return what a candidate adds to ``-log`` of the product of energies (Zhang 2015, Eq. 13)."""
    return -math.log(max(candidate.energy, 1e-12))


def offers_of(
    candidates: Mapping[str, Sequence[Candidate]], cost: Callable[[Candidate], float], losses: Losses
) -> dict[str, list[Offer]]:
    """Return candidates with a cost that is counted."""
    return {layer: [Offer(one, cost(one), losses.of(one)) for one in offered] for layer, offered in candidates.items()}


def pareto(offers: Sequence[Offer]) -> list[Offer]:
    """Return the offers that no other beats in both cost and loss, from the dearest to the cheapest."""
    front: list[Offer] = []
    for offer in sorted(offers, key=lambda offer: (offer.cost, offer.loss)):
        if not front or offer.loss < front[-1].loss:
            front.append(offer)
    return front[::-1]

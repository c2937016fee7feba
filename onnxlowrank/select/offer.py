"""What selections choose from: candidates with what they cost and what they lose, in any units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxlowrank.passes.base import Candidate

Plan = dict[str, Candidate]
"""One candidate for every layer."""

Loss = Callable[[Candidate], float]
"""Predicts what a candidate takes from the network; 0 where it takes nothing."""


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
    candidates: Mapping[str, Sequence[Candidate]], cost: Callable[[Candidate], float], loss: Loss
) -> dict[str, list[Offer]]:
    """Return candidates with a cost that is counted."""
    return {layer: [Offer(one, cost(one), loss(one)) for one in offered] for layer, offered in candidates.items()}


def pareto(offers: Sequence[Offer]) -> list[Offer]:
    """Return the offers that no other beats in both cost and loss, from the dearest to the cheapest."""
    front: list[Offer] = []
    for offer in sorted(offers, key=lambda offer: (offer.cost, offer.loss)):
        if not front or offer.loss < front[-1].loss:
            front.append(offer)
    return front[::-1]

"""What is minimised: how far tensors of the network are from the original's, and from labels where there are some.

    classes      T^2 KL(p_T, q_T) of the class probabilities at a temperature T (Hinton, Vinyals & Dean 2015)
    values       |q - p|^2 over the variance of p
    labels       the cross-entropy of the class probabilities, averaged with the first of these
    hints        values of tensors inside, in front of layers (Romero et al. 2015), averaged, on top

The first two are the measures that plans are made by (:mod:`onnxlowrank.evaluate.objective`), summed over the tensors
that outputs are judged by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.tune.libraries import Torch, functional, torch

_HINT_WEIGHT = 30.0
"""Of the hints: with as few samples as most users have they say more than the outputs do, and more evenly."""


@dataclass(frozen=True)
class Term:
    """One tensor of either network.

    Attributes:
        tensor: Its name in the network that is trained.
        reference: Its name in the original.
        axis: Of class scores; None where values are compared.
        temperature: Of class scores.
        are_probabilities: Whether scores are such.
        scale: Mean squared distance of the original's values from their means.
    """

    tensor: str
    reference: str
    axis: int | None = None
    temperature: float = 1.0
    are_probabilities: bool = False
    scale: float = 1.0

    def distance(self, mine: Torch, reference: Torch) -> Torch:
        """Return the mean distance of a tensor from the original's."""
        if self.axis is None:
            return functional.mse_loss(mine, reference) / self.scale
        p, q = (self.log_probabilities(one, self.temperature) for one in (reference, mine))
        return self.temperature**2 * (p.exp() * (p - q)).sum(-1).mean()

    def log_probabilities(self, scores: Torch, temperature: float = 1.0) -> Torch:
        """Return the log probabilities of class scores as rows ``[n, classes]``."""
        assert self.axis is not None
        rows = scores.movedim(self.axis, -1).flatten(0, -2)
        logs = torch.log(torch.clamp(rows, min=1e-12)) if self.are_probabilities else rows
        return functional.log_softmax(logs / temperature, dim=-1)


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        judged: What outputs are judged by.
        hints: Tensors inside.
        labelled: Whether labels count: half, in the place of half of the first class scores.
        hint_weight: Of the mean of the hints.
    """

    judged: tuple[Term, ...]
    hints: tuple[Term, ...] = ()
    labelled: bool = False
    hint_weight: float = _HINT_WEIGHT

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors of the network that is trained."""
        return tuple(dict.fromkeys(term.tensor for term in (*self.judged, *self.hints)))

    @property
    def judged_tensors(self) -> tuple[str, ...]:
        """Those of them that outputs are judged by."""
        return tuple(dict.fromkeys(term.tensor for term in self.judged))

    @property
    def references(self) -> tuple[str, ...]:
        """The tensors of the original."""
        return tuple(dict.fromkeys(term.reference for term in (*self.judged, *self.hints)))

    def figure(
        self, mine: Mapping[str, Torch], reference: Mapping[str, Torch], labels: NDArray[np.int64] | None
    ) -> Torch:
        """Return what networks are judged by, on inputs held out as well: all but the hints, a mean over samples."""
        total = 0.0
        for index, term in enumerate(self.judged):
            distance = term.distance(mine[term.tensor], reference[term.reference])
            if self.labelled and labels is not None and index == self.labelled_term:
                logs = term.log_probabilities(mine[term.tensor])
                wanted = torch.from_numpy(labels).to(logs.device)
                distance = (distance + functional.nll_loss(logs, wanted)) / 2
            total = total + distance
        return total

    @property
    def labelled_term(self) -> int:
        """The position of the class scores that labels are about."""
        return next(index for index, term in enumerate(self.judged) if term.axis is not None)

    def loss(
        self, mine: Mapping[str, Torch], reference: Mapping[str, Torch], labels: NDArray[np.int64] | None
    ) -> Torch:
        """Return what gradients are taken of."""
        found = self.figure(mine, reference, labels)
        if not self.hints or not self.hint_weight:
            return found
        hints: Sequence[Torch] = [term.distance(mine[term.tensor], reference[term.reference]) for term in self.hints]
        return found + self.hint_weight * sum(hints) / len(hints)

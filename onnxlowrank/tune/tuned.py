"""What fine-tuning gives back: the network and how it was trained."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto

from onnxlowrank.tune.training import INTERRUPTED
from onnxlowrank.tune.weights import Trained


@dataclass(frozen=True, eq=False)
class Tuned:
    """A network that was fine-tuned.

    Attributes:
        model: The network; that which was given, where nothing better was found.
        trained: What was trained of it.
        figures: What it is judged by on the inputs held out, before and after: less is better.
        steps: Made.
        rate: Learning rate, relative to the size of every tensor.
        seconds: Of training.
        ended: Why it ended, see :class:`onnxlowrank.tune.training.Outcome`.
        history: Share of the work done and the figure.
        hints: Tensors inside that were compared too.
        labelled: Whether labels counted.
        augmented: How inputs were changed.
        samples: How many were learnt from, and how many held out.
    """

    model: ModelProto
    trained: Trained
    figures: tuple[float, float]
    steps: int
    rate: float
    seconds: float
    ended: str
    history: tuple[tuple[float, float], ...]
    hints: tuple[str, ...]
    labelled: bool
    augmented: tuple[str, ...]
    samples: tuple[int, int]

    @property
    def is_better(self) -> bool:
        """Whether anything better was found."""
        return self.figures[1] < self.figures[0]

    @property
    def note(self) -> str:
        """What there is to say of it, in a sentence."""
        took = f"{self.seconds / 60:.1f} min, {self.steps} steps"
        if not self.is_better:
            return f"fine-tuning found nothing better on {self.samples[1]} inputs held out ({took})"
        one, other = self.figures
        return f"fine-tuned ({took}): loss on {self.samples[1]} inputs held out {one:.4g} -> {other:.4g}"

    @property
    def is_interrupted(self) -> bool:
        """Whether the user or a signal ended it."""
        return self.ended == INTERRUPTED

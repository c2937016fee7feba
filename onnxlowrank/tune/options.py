"""How networks are fine-tuned: the options of :func:`onnxlowrank.finetune`, described once."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from onnxlowrank.errors import OptionError
from onnxlowrank.tune.augment import KINDS
from onnxlowrank.tune.libraries import check_installed, torch
from onnxlowrank.tune.weights import ALL, MODES

NONE = "none"
DEFAULT_MINUTES = 10.0
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class TuneOptions:
    """How networks are fine-tuned.

    Attributes:
        tune: What is trained: ``all``, ``chains`` or ``above``; see :func:`onnxlowrank.tune.weights.trained_weights`.
        minutes: How long at most; None leaves that to ``steps``.
        steps: How many steps at most; with these alone equal runs give equal networks. None leaves that to ``minutes``.
        labels: Whether labels count.
        augment: How images are changed: of ``flip`` and ``shift``; None takes both, ``none`` neither.
        device: Of PyTorch, ``cpu`` or ``cuda``.
        seed: Of everything random.
    """

    tune: str = ALL
    minutes: float | None = None
    steps: int | None = None
    labels: bool = False
    augment: Collection[str] | None = None
    device: str = "cpu"
    seed: int = 0

    @property
    def kinds(self) -> frozenset[str]:
        """How images are changed."""
        return frozenset(KINDS if self.augment is None else self.augment) - {NONE}

    def check(self, time: str = "--minutes") -> None:
        """Check what can be checked without the networks.

        Args:
            time: The option that says how long.

        Raises:
            OptionError: If an option makes no sense, or PyTorch is not installed.
        """
        if self.tune not in MODES:
            raise OptionError(f"--tune {self.tune} is unknown; choose from {', '.join(MODES)}")
        if self.minutes is not None and not (math.isfinite(self.minutes) and self.minutes > 0):
            raise OptionError(f"{time} {self.minutes:g} makes no sense; give a number above 0, e.g. 10")
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"--steps {self.steps} makes no sense; give 1 or more")
        unknown = sorted(set(self.augment or ()) - {*KINDS, NONE})
        if unknown:
            raise OptionError(f"--augment {unknown[0]} is unknown; choose from {', '.join((*KINDS, NONE))}")
        if self.seed < 0:
            raise OptionError(f"--seed {self.seed} makes no sense; give 0 or more")
        if self.device not in DEVICES:
            raise OptionError(f"--device {self.device} is unknown; choose from {', '.join(DEVICES)}")
        check_installed()
        if self.device == "cuda" and not torch.cuda.is_available():
            raise OptionError("--device cuda: PyTorch finds no GPU on this machine; use --device cpu")

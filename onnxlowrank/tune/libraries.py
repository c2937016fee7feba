"""PyTorch, loaded at its first use: it may be missing, and what does not train is to begin without it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from onnxlowrank.errors import OptionError

_MISSING = "fine-tuning needs PyTorch, which is not installed; install it with pip install 'onnxlowrank[finetune]'"

Torch = Any
"""An object of PyTorch, which may be missing, and its types with it."""


class _Lazy:
    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(_imported(self._module), name)


torch: Any = _Lazy("torch")
functional: Any = _Lazy("torch.nn.functional")


def check_installed() -> None:
    """Raise OptionError where PyTorch is missing; it is looked for, not loaded, which takes seconds."""
    try:
        found = find_spec("torch")
    except ValueError:  # barred
        found = None
    if found is None:
        raise OptionError(_MISSING)


def _imported(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise OptionError(_MISSING) from error

"""PyTorch, loaded at its first use: it may be missing, and what does not train is to begin without it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from onnxlowrank.errors import OptionError

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
    """Raise OptionError where PyTorch is missing."""
    _imported("torch")


def _imported(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise OptionError(
            "fine-tuning needs PyTorch, which is not installed; install it with pip install 'onnxlowrank[finetune]'"
        ) from error

"""Adam (Kingma & Ba 2015), every tensor at a rate relative to its size."""

from __future__ import annotations

from collections.abc import Iterable

from onnxlowrank.tune.libraries import Torch, torch

_FIRST, _SECOND = 0.9, 0.999
"""What is kept of the running means of gradients and of their squares."""
_SMALLEST = 1e-3
"""Size of a tensor that is smaller, such as a bias of zeros."""
_EPSILON = 1e-30


class Adam:
    """The state of an optimisation; PyTorch's own optimisers load its compiler, which takes seconds."""

    def __init__(self, parameters: Iterable[Torch]) -> None:
        self._parameters = list(parameters)
        self._sizes = [max(float(one.detach().square().mean().sqrt()), _SMALLEST) for one in self._parameters]
        self._means = [torch.zeros_like(one) for one in self._parameters]
        self._squares = [torch.zeros_like(one) for one in self._parameters]
        self._steps = 0

    def clear(self) -> None:
        """Forget gradients."""
        for one in self._parameters:
            one.grad = None

    def step(self, rate: float) -> None:
        """Change every parameter by about this share of its size."""
        self._steps += 1
        first, second = 1 - _FIRST**self._steps, 1 - _SECOND**self._steps
        with torch.no_grad():
            for value, size, mean, square in zip(
                self._parameters, self._sizes, self._means, self._squares, strict=True
            ):
                if value.grad is None:
                    continue
                mean.lerp_(value.grad, 1 - _FIRST)
                square.mul_(_SECOND).addcmul_(value.grad, value.grad, value=1 - _SECOND)
                value.addcdiv_(mean, (square / second).sqrt_().add_(_EPSILON), value=-rate * size / first)

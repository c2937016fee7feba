"""From a decomposition under the separable form of a metric to one under its exact form."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from onnxlowrank.decompose.metric import Kernel, Metric
from onnxlowrank.decompose.spectrum import Float64Array

Factors = TypeVar("Factors")

_GROWTH = 1.2
"""Of the step after every success."""


def refine(
    metric: Metric,
    kernel: Kernel,
    solve: Callable[[Float64Array, Factors | None], Factors],
    compose: Callable[[Factors], Float64Array],
    iterations: int = 8,
    tolerance: float = 1e-3,
) -> Factors:
    """Minimise the exact form of a metric over a low-rank set, given a solver for the Frobenius norm.

    The set must be one that whitening maps to itself. The first solution is the paper's recipe in the separable form.
    Then, in the space of whitened kernels, where ``M`` has become ``N``, each iteration solves for the target

        X + s N (W - X)

    of the current approximation ``X``. With a step ``s`` up to the inverse of the largest eigenvalue of ``N`` its
    squared distance bounds the exact form from above (majorisation); for a diagonal ``N`` up to 1 and ``s = 1`` this
    is the EM algorithm for weighted low rank of Srebro & Jaakkola 2003. Longer steps usually do better: they begin
    with that of steepest descent, grow while the exact form falls, and are halved, and the solution dropped, when it
    rises. The minimum found is a local one.

    Args:
        metric: Where it is separable, the first solution is the best one and the only one.
        kernel: ``W [F, C, T]``.
        solve: Returns factors close to a target ``[F, C, T]``, from the factors of the solution so far, if any.
        compose: Returns the kernel ``[F, C, T]`` of factors.
        iterations: Largest number of solutions after the first.
        tolerance: Relative fall of the exact form that ends it.

    Returns:
        Factors of a whitened kernel; the metric's ``unwhiten`` methods map them to those of a kernel.
    """
    whitened = metric.whiten(kernel)
    best = solve(whitened, None)
    if metric.is_separable:
        return best
    approximation = compose(best)
    gradient = metric.relative_gradient(whitened - approximation)
    value = float(np.vdot(whitened - approximation, gradient))
    if value <= 0:  # nothing is lost
        return best
    step = float(np.vdot(gradient, gradient) / np.vdot(gradient, metric.relative_gradient(gradient)))
    for _ in range(iterations):
        factors = solve(approximation + step * gradient, best)
        candidate = compose(factors)
        its_gradient = metric.relative_gradient(whitened - candidate)
        fall = value - float(np.vdot(whitened - candidate, its_gradient))
        converged = abs(fall) <= tolerance * value
        if fall > 0:
            best, approximation, gradient, value = factors, candidate, its_gradient, value - fall
            step *= _GROWTH
        else:
            step /= 2
        if converged:
            break
    return best

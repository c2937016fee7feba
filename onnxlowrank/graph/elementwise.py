"""What several elementwise nodes make of one tensor: a GELU, in whatever way it was written.

Exporters write ``x (1 + erf(x / sqrt(2))) / 2`` in many orders, or its approximation by tanh. So the nodes are not
compared with patterns but computed, at points that tell, and the result is compared with the function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from onnxlowrank.decompose.activation import Smooth
from onnxlowrank.graph.index import Index, is_standard

_Floats = NDArray[np.float64]
_OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Erf": lambda x: scipy.special.erf(x),
    "Tanh": np.tanh,
}
_GELU = Smooth("gelu")
_POINTS = np.linspace(-6, 6, 241)
_TOLERANCE = 1e-3
"""The approximation by tanh is off by half as much."""
_MOST_NODES = 12


def gelu(index: Index, tensor: str) -> Smooth | None:
    """Return GELU if that is what all that reads a tensor makes of it, None otherwise."""
    values: dict[str, _Floats] = {tensor: _POINTS}
    done: list[int] = []
    for position in range(min(index.readers.get(tensor, [len(index.nodes)])), len(index.nodes)):
        node = index.nodes[position]
        if values.keys().isdisjoint(node.input):
            continue
        operands = [values.get(name, _scalar(index, name)) for name in node.input]
        if (
            node.op_type not in _OPERATORS
            or not is_standard(node, node.op_type)
            or any(one is None for one in operands)
        ):
            return None
        with np.errstate(all="ignore"):
            values[node.output[0]] = _OPERATORS[node.op_type](*operands)
        done.append(position)
        inner = [name for name in values if name != node.output[0]]
        closed = all(set(index.readers.get(name, ())) <= set(done) and name not in index.outputs for name in inner)
        if closed and np.abs(values[node.output[0]] - _GELU(_POINTS)).max() < _TOLERANCE:
            return _GELU
        if len(done) == _MOST_NODES:
            return None
    return None


def _scalar(index: Index, name: str) -> _Floats | None:
    """Return a constant of one entry."""
    array = index.array(name)
    return array.astype(np.float64).reshape(()) if array is not None and array.size == 1 else None

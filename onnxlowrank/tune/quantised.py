"""QuantizeLinear and DequantizeLinear in PyTorch, so that int8 networks (QDQ) are trained as they compute.

Integers are held as real numbers that are whole: rounding has the gradient of what it rounds (straight through, Bengio,
Leonard & Courville 2013), and none outside the range (Krishnamoorthi 2018, Sec. 3.2). Of a weight or bias that is
stored as integers these are what is trained, in steps: the network reads the nearest ones, scales and zero points stay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxlowrank.graph.index import attributes, is_standard
from onnxlowrank.graph.outside import values
from onnxlowrank.graph.walk import readers
from onnxlowrank.tune.call import Call, Inputs, Operator
from onnxlowrank.tune.libraries import Torch, torch

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_PAIR = f"{_Q}+{_DQ}"

INTEGERS = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.INT32)
"""Of weights and biases that are trained."""
_NARROW = 64
"""Largest size of weights of 7 bits: sums of two products fit 16 bits."""
_EXACT = 2**31 - 2**7
"""The largest int32 that float32 holds."""

Bounds = tuple[int, int]


def is_quantised(nodes: Iterable[NodeProto]) -> bool:
    """Return whether any of these nodes rounds."""
    return any(is_standard(node, _Q) for node in nodes)


def dequantised_constants(model: ModelProto) -> dict[str, TensorProto]:
    """Return the constants of integers that DequantizeLinears read, by name."""
    read = {node.input[0] for node in model.graph.node if is_standard(node, _DQ)}
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if is_standard(node, "Constant"):
            found.update((node.output[0], one.t) for one in node.attribute if one.name == "value")
    fed = {info.name for info in model.graph.input}
    return {name: one for name, one in found.items() if name in read - fed and one.data_type in INTEGERS}


def bounds_of(model: ModelProto) -> dict[str, Bounds]:
    """Return between which integers every constant that is dequantised may be.

    Those of int8 are as symmetric as they are in the whole of the network, and within +-64 where all are.
    """
    constants = {name: values(tensor) for name, tensor in dequantised_constants(model).items()}
    weights = [one for one in constants.values() if one.dtype == np.int8 and one.size]
    low = min((int(one.min()) for one in weights), default=0)
    high = max((int(one.max()) for one in weights), default=0)
    is_narrow = low >= -_NARROW and high <= _NARROW
    int8 = (-_NARROW, _NARROW) if is_narrow else (-127 if low > -128 else -128, 127)
    found = {}
    for name, one in constants.items():
        info = np.iinfo(one.dtype)
        found[name] = int8 if one.dtype == np.int8 else (max(int(info.min), -_EXACT), min(int(info.max), _EXACT))
    return found


def has_wide_weights(model: ModelProto) -> bool:
    """Return whether int8 weights of a network are beyond +-64."""
    kinds = {name: tensor.data_type for name, tensor in dequantised_constants(model).items()}
    return any(kinds[name] == TensorProto.INT8 and high > _NARROW for name, (_, high) in bounds_of(model).items())


def rounded(steps: Torch, bounds: Bounds) -> Torch:
    """Return the nearest integers, with the gradient of ``steps``, which are put back between the bounds."""
    with torch.no_grad():
        steps.clamp_(*bounds)
    return _straight(steps)


def source_of(tensor: str, writers: Mapping[str, NodeProto]) -> str:
    """Return what a tensor is but for rounding: in front of its pairs of QuantizeLinear and DequantizeLinear."""
    while tensor in writers and is_standard(writers[tensor], _DQ):
        quantised = writers.get(writers[tensor].input[0])
        if quantised is None or not is_standard(quantised, _Q):
            break
        tensor = quantised.input[0]
    return tensor


def with_pairs(nodes: Sequence[NodeProto], kept: Collection[str]) -> list[NodeProto]:
    """Return nodes in which what is quantised, and only dequantised with the same scale, is one node a time.

    Args:
        nodes: In graph order.
        kept: Tensors that are to be computed.
    """
    reading = readers(nodes)
    quantised = {
        node.output[0]: node
        for node in nodes
        if is_standard(node, _Q)
        and node.output[0] not in kept
        and all(
            is_standard(one, _DQ) and one.input[1:] == node.input[1:] and attributes(one) == attributes(node)
            for one in reading.get(node.output[0], ())
        )
    }
    return list(_joined(nodes, quantised))


def _joined(nodes: Sequence[NodeProto], quantised: Mapping[str, NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        if is_standard(node, _DQ) and node.input[0] in quantised:
            its = quantised[node.input[0]]
            pair = helper.make_node(_PAIR, its.input, node.output, node.name)
            pair.attribute.extend(node.attribute)
            yield pair
        elif not (is_standard(node, _Q) and node.output[0] in quantised):
            yield node


def _quantise(call: Call, x: Inputs) -> Torch:
    data, zero = x[0], _zero(x)
    scale = _by_map(x[1], data, call)
    info = torch.iinfo(zero.dtype)
    shift = _by_map(zero.to(data.device, data.dtype), data, call)
    return _straight(torch.clamp(data / scale, info.min - shift, info.max - shift)) + shift


def _dequantise(call: Call, x: Inputs) -> Torch:
    scale, zero = x[1], _zero(x)
    steps = x[0].to(scale.device, scale.dtype)
    shift = _by_map(zero.to(scale.device, scale.dtype), steps, call)
    return (steps - shift) * _by_map(scale, steps, call)


def _pair(call: Call, x: Inputs) -> Torch:
    """Quantise and dequantise: at once where there is one scale."""
    data, scale, zero = x[0], x[1], _zero(x)
    if scale.numel() > 1:
        return _dequantise(call, [_quantise(call, x), *x[1:]])
    info, shift = torch.iinfo(zero.dtype), int(zero)
    return _rounding()(data, float(scale), info.min - shift, info.max - shift)


@cache
def _rounding() -> Any:
    """Return what rounds to steps within a range, in few passes over memory; PyTorch's own takes six times as long."""

    class Rounding(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, data: Torch, scale: float, low: int, high: int) -> Torch:
            context.save_for_backward(data)
            context.ends = low * scale, high * scale
            return (data / scale).round_().clamp_(low, high).mul_(scale)

        @staticmethod
        def backward(context: Any, gradient: Torch) -> tuple[Torch, None, None, None]:
            (data,) = context.saved_tensors
            return torch.ops.aten.hardtanh_backward(gradient, data, *context.ends), None, None, None

    return Rounding.apply


def _straight(steps: Torch) -> Torch:
    return steps + (torch.round(steps) - steps).detach()


def _zero(x: Inputs) -> Torch:
    """Return the zero point, 0 where there is none: of uint8 for what is quantised, else of the integers at hand."""
    if len(x) > 2 and x[2] is not None:
        return x[2]
    return torch.zeros((), dtype=torch.uint8)


def _by_map(value: Torch, data: Torch, call: Call) -> Torch:
    """Return one value a map in the shape that is broadcast along the axis of maps."""
    if call.get("block_size", 0):
        raise NotImplementedError("quantisation in blocks")
    if value.numel() == 1:
        return value.reshape(())
    shape = [1] * data.ndim
    shape[call.get("axis", 1)] = value.numel()
    return value.reshape(shape)


OPERATORS: dict[str, Operator] = {_Q: _quantise, _DQ: _dequantise}
"""By their names; those of the default domain."""
PAIR: Mapping[str, Operator] = {_PAIR: _pair}
"""What :func:`with_pairs` makes of two of them."""

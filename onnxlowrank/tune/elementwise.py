"""Elementwise operators, reductions and Softmax in PyTorch, as ONNX defines them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

from onnx import TensorProto

from onnxlowrank.tune.call import Call, Inputs, Operator, together
from onnxlowrank.tune.libraries import Torch, functional, torch


def _unary(name: str) -> Operator:
    return lambda call, x: getattr(torch, name)(x[0])


def _binary(name: str) -> Operator:
    return lambda call, x: getattr(torch, name)(*together(x[0], x[1]))


def _many(name: str) -> Operator:
    return lambda call, x: reduce(getattr(torch, name), together(*x))


def _divide(call: Call, x: Inputs) -> Torch:
    a, b = together(x[0], x[1])
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _modulo(call: Call, x: Inputs) -> Torch:
    a, b = together(x[0], x[1])
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


def _power(call: Call, x: Inputs) -> Torch:
    a, b = together(x[0], x[1])
    return torch.pow(a, b).to(a.dtype)


def _clip(call: Call, x: Inputs) -> Torch:
    bounds = []
    for position, name in ((1, "min"), (2, "max")):
        given = call.setting(name, x, position)
        bounds.append(given[0] if isinstance(given, list) else given)
    return x[0] if bounds == [None, None] else torch.clamp(x[0], *bounds)


def _gelu(call: Call, x: Inputs) -> Torch:
    return functional.gelu(x[0], approximate=call.get("approximate", "none"))


def _slope(call: Call, x: Inputs) -> Torch:
    return torch.where(x[0] < 0, x[0] * x[1], x[0])


def _hard_sigmoid(call: Call, x: Inputs) -> Torch:
    return torch.clamp(call.get("alpha", 0.2) * x[0] + call.get("beta", 0.5), 0, 1)


def _celu(call: Call, x: Inputs) -> Torch:
    return functional.celu(x[0], call.get("alpha", 1.0))


def _selu(call: Call, x: Inputs) -> Torch:
    alpha, gamma = call.get("alpha", 1.67326319217681884765625), call.get("gamma", 1.05070102214813232421875)
    return gamma * torch.where(x[0] > 0, x[0], alpha * (torch.exp(torch.clamp(x[0], max=0)) - 1))


def _thresholded(call: Call, x: Inputs) -> Torch:
    return torch.where(x[0] > call.get("alpha", 1.0), x[0], torch.zeros_like(x[0]))


def _mean(call: Call, x: Inputs) -> Torch:
    return reduce(torch.add, together(*x)) / len(x)


def _softmax(function: str) -> Operator:
    def compute(call: Call, x: Inputs) -> Torch:
        apply = getattr(torch, function)
        axis = call.get("axis", -1 if call.opset >= 13 else 1)
        if call.opset >= 13:
            return apply(x[0], axis)
        axis %= x[0].ndim
        rows = x[0].reshape(math.prod(x[0].shape[:axis]), -1)
        return apply(rows, 1).reshape(x[0].shape)

    return compute


_DTYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.BOOL: "bool",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
}


def _cast(call: Call, x: Inputs) -> Torch:
    return x[0].to(getattr(torch, _DTYPES[call.get("to")]))


def _cast_like(call: Call, x: Inputs) -> Torch:
    return x[0].to(x[1].dtype)


def _where(call: Call, x: Inputs) -> Torch:
    return torch.where(*together(*x[:3]))


def _axes(call: Call, x: Inputs) -> list[int] | None:
    """Return the axes a reduction is over; None for no reduction at all."""
    axes = call.setting("axes", x, 1)
    if axes is None or not len(axes):
        return None if call.get("noop_with_empty_axes", 0) else list(range(x[0].ndim))
    return list(axes)


def _reduction(compute: Callable[[Torch, list[int], bool], Torch]) -> Operator:
    def reduced(call: Call, x: Inputs) -> Torch:
        axes = _axes(call, x)
        return x[0] if axes is None else compute(x[0], axes, bool(call.get("keepdims", 1)))

    return reduced


def _product(x: Torch, axes: list[int], keep: bool) -> Torch:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _argument(name: str) -> Operator:
    def compute(call: Call, x: Inputs) -> Torch:
        axis, keep = call.get("axis", 0), bool(call.get("keepdims", 1))
        return getattr(torch, name)(x[0], axis, keepdim=keep)

    return compute


def _cumulated(call: Call, x: Inputs) -> Torch:
    axis = int(x[1])
    values = x[0].flip(axis) if call.get("reverse", 0) else x[0]
    found = torch.cumsum(values, axis)
    if call.get("exclusive", 0):
        found = found - values
    return found.flip(axis) if call.get("reverse", 0) else found


OPERATORS: dict[str, Operator] = {
    **{
        name: _unary(name.lower())
        for name in (
            *("Abs", "Neg", "Exp", "Log", "Sqrt", "Sin", "Cos", "Tan", "Tanh", "Sigmoid", "Erf", "Floor", "Ceil"),
            *("Round", "Reciprocal", "Relu", "Sign", "Atan", "Asin", "Acos", "Sinh", "Cosh", "IsNaN", "IsInf"),
        )
    },
    "Not": _unary("logical_not"),
    "Add": _binary("add"),
    "Sub": _binary("sub"),
    "Mul": _binary("mul"),
    "Div": _divide,
    "Mod": _modulo,
    "Pow": _power,
    "Equal": _binary("eq"),
    "Less": _binary("lt"),
    "LessOrEqual": _binary("le"),
    "Greater": _binary("gt"),
    "GreaterOrEqual": _binary("ge"),
    "And": _binary("logical_and"),
    "Or": _binary("logical_or"),
    "Xor": _binary("logical_xor"),
    "Min": _many("minimum"),
    "Max": _many("maximum"),
    "Sum": _many("add"),
    "Mean": _mean,
    "Clip": _clip,
    "LeakyRelu": lambda call, x: functional.leaky_relu(x[0], call.get("alpha", 0.01)),
    "PRelu": _slope,
    "Elu": lambda call, x: functional.elu(x[0], call.get("alpha", 1.0)),
    "Celu": _celu,
    "Selu": _selu,
    "ThresholdedRelu": _thresholded,
    "Softplus": lambda call, x: functional.softplus(x[0]),
    "Softsign": lambda call, x: functional.softsign(x[0]),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda call, x: functional.hardswish(x[0]),
    "Mish": lambda call, x: functional.mish(x[0]),
    "Gelu": _gelu,
    "Swish": lambda call, x: x[0] * torch.sigmoid(call.get("alpha", 1.0) * x[0]),
    "Softmax": _softmax("softmax"),
    "LogSoftmax": _softmax("log_softmax"),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Where": _where,
    "ReduceMean": _reduction(lambda x, axes, keep: torch.mean(x, axes, keepdim=keep)),
    "ReduceSum": _reduction(lambda x, axes, keep: torch.sum(x, axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: torch.amax(x, axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: torch.amin(x, axes, keepdim=keep)),
    "ReduceProd": _reduction(_product),
    "ReduceL1": _reduction(lambda x, axes, keep: torch.sum(x.abs(), axes, keepdim=keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.sqrt(torch.sum(x.square(), axes, keepdim=keep))),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: torch.sum(x.square(), axes, keepdim=keep)),
    "ReduceLogSumExp": _reduction(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "ArgMax": _argument("argmax"),
    "ArgMin": _argument("argmin"),
    "CumSum": _cumulated,
}
"""By their names; those of the default domain."""

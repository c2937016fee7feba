"""Convolutions, matrix products, pooling, normalisation and resampling in PyTorch, as ONNX defines them."""

from __future__ import annotations

import math
from typing import Any

from onnxlowrank.tune.call import Call, Inputs, Operator
from onnxlowrank.tune.libraries import Torch, functional, torch

Pads = list[tuple[int, int]]


def _pads(call: Call, size: list[int], kernel: list[int], strides: list[int], dilations: list[int]) -> Pads:
    """Return what is padded on either side of every spatial axis."""
    automatic = call.get("auto_pad", "NOTSET")
    axes = len(kernel)
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for length, k, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
            total = max((-(-length // stride) - 1) * stride + dilation * (k - 1) + 1 - length, 0)
            small, large = total // 2, total - total // 2
            found.append((small, large) if automatic == "SAME_UPPER" else (large, small))
        return found
    pads = [0] * (2 * axes) if automatic == "VALID" else call.get("pads", [0] * (2 * axes))
    return [(pads[axis], pads[axis + axes]) for axis in range(axes)]


def _padded(x: Torch, pads: Pads, value: float = 0.0) -> Torch:
    return functional.pad(x, [side for pair in reversed(pads) for side in pair], value=value)


def _conv(call: Call, x: Inputs) -> Torch:
    data, weight, bias = x[0], x[1], x[2] if len(x) > 2 else None
    kernel = list(weight.shape[2:])
    strides, dilations = (call.get(name, [1] * len(kernel)) for name in ("strides", "dilations"))
    pads = _pads(call, list(data.shape[2:]), kernel, strides, dilations)
    if all(low == high for low, high in pads):
        padding = [low for low, _ in pads]
    else:
        data, padding = _padded(data, pads), [0] * len(kernel)
    apply = getattr(functional, f"conv{len(kernel)}d")
    return apply(data, weight, bias, strides, padding, dilations, call.get("group", 1))


def _conv_transpose(call: Call, x: Inputs) -> Torch:
    data, weight, bias = x[0], x[1], x[2] if len(x) > 2 else None
    kernel = list(weight.shape[2:])
    axes = len(kernel)
    strides, dilations = (call.get(name, [1] * axes) for name in ("strides", "dilations"))
    extra = call.get("output_padding", [0] * axes)
    group = call.get("group", 1)
    apply = getattr(functional, f"conv_transpose{axes}d")
    whole = apply(data, weight, bias, strides, 0, extra, group, dilations)  # cropped by the pads below
    automatic, wanted = call.get("auto_pad", "NOTSET"), call.get("output_shape")
    if wanted is None and automatic in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(data.shape[2:], strides, strict=True)]
    if wanted is None:
        pads = [0] * (2 * axes) if automatic == "VALID" else call.get("pads", [0] * (2 * axes))
        crops = [(pads[axis], pads[axis + axes]) for axis in range(axes)]
    else:
        crops = []
        for have, want in zip(whole.shape[2:], wanted[-axes:], strict=True):
            total = have - want
            small, large = total // 2, total - total // 2
            crops.append((small, large) if automatic == "SAME_UPPER" else (large, small))
    return _padded(whole, [(-low, -high) for low, high in crops])


def _gemm(call: Call, x: Inputs) -> Torch:
    a, b = x[0], x[1]
    product = (a.T if call.get("transA", 0) else a) @ (b.T if call.get("transB", 0) else b)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    product = product if alpha == 1 else alpha * product
    if len(x) < 3 or x[2] is None:
        return product
    return product + (x[2] if beta == 1 else beta * x[2])


def _window(call: Call, data: Torch) -> tuple[list[int], list[int], list[int], Pads]:
    """Return kernel, strides, dilations and pads of a pooling; with ``ceil_mode`` the pads reach to the last window."""
    kernel = list(call.get("kernel_shape"))
    strides, dilations = (list(call.get(name, [1] * len(kernel))) for name in ("strides", "dilations"))
    pads = _pads(call, list(data.shape[2:]), kernel, strides, dilations)
    return kernel, strides, dilations, pads


def _reach(size: int, kernel: int, stride: int, dilation: int, pad: tuple[int, int]) -> int:
    """Return how much further the last window of ``ceil_mode`` reaches than what is padded; it begins within that."""
    span = dilation * (kernel - 1) + 1
    room = size + sum(pad) - span
    count = -(-room // stride) + 1
    if (count - 1) * stride >= size + pad[0]:
        count -= 1
    return max((count - 1) * stride - room, 0)


def _extended(call: Call, data: Torch, window: tuple[list[int], list[int], list[int], Pads]) -> Pads:
    kernel, strides, dilations, pads = window
    if not call.get("ceil_mode", 0):
        return pads
    more = [_reach(*one) for one in zip(list(data.shape[2:]), kernel, strides, dilations, pads, strict=True)]
    return [(low, high + extra) for (low, high), extra in zip(pads, more, strict=True)]


def _max_pool(call: Call, x: Inputs) -> Torch:
    window = _window(call, x[0])
    kernel, strides, dilations, _ = window
    data = _padded(x[0], _extended(call, x[0], window), -math.inf)
    return getattr(functional, f"max_pool{len(kernel)}d")(data, kernel, strides, 0, dilations)


def _average_pool(call: Call, x: Inputs) -> Torch:
    window = _window(call, x[0])
    kernel, strides, dilations, pads = window
    if max(dilations) > 1:
        raise NotImplementedError("AveragePool with dilations")
    extended = _extended(call, x[0], window)
    apply = getattr(functional, f"avg_pool{len(kernel)}d")
    sums = apply(_padded(x[0], extended), kernel, strides)
    if not any(side for pair in extended for side in pair):
        return sums
    ones = torch.ones((1, 1, *x[0].shape[2:]), dtype=x[0].dtype, device=x[0].device)
    if call.get("count_include_pad", 0):
        ones = _padded(ones, pads, 1.0)
        extended = [(0, whole[1] - some[1]) for whole, some in zip(extended, pads, strict=True)]
    return sums / apply(_padded(ones, extended), kernel, strides)


def _global(name: str) -> Operator:
    return lambda call, x: getattr(torch, name)(x[0], list(range(2, x[0].ndim)), keepdim=True)


def _by_map(values: Torch, data: Torch) -> Torch:
    return values.reshape(1, -1, *[1] * (data.ndim - 2))


def _batch_norm(call: Call, x: Inputs) -> Torch:
    if call.get("training_mode", 0):
        raise NotImplementedError("BatchNormalization in training mode")
    data, scale, shift, mean, variance = x[:5]
    factor = scale / torch.sqrt(variance + call.get("epsilon", 1e-5))
    return data * _by_map(factor, data) + _by_map(shift - mean * factor, data)


def _instance_norm(call: Call, x: Inputs) -> Torch:
    return functional.instance_norm(x[0], weight=x[1], bias=x[2], eps=call.get("epsilon", 1e-5))


def _layer_norm(call: Call, x: Inputs) -> Torch:
    axis = call.get("axis", -1) % x[0].ndim
    shape = list(x[0].shape[axis:])
    bias = x[2].reshape(shape) if len(x) > 2 and x[2] is not None else None
    return functional.layer_norm(x[0], shape, x[1].expand(shape), bias, call.get("epsilon", 1e-5))


def _response_norm(call: Call, x: Inputs) -> Torch:
    alpha, beta, bias = call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    size = call.get("size")
    low = (size - 1) // 2
    squares = functional.pad(x[0].square().movedim(1, -1), [low, size - 1 - low])
    sums = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x[0] / torch.pow(bias + alpha / size * sums, beta)


def _l2_norm(call: Call, x: Inputs) -> Torch:
    return x[0] / torch.linalg.vector_norm(x[0], call.get("p", 2), call.get("axis", -1), keepdim=True)


_REPEATING = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")}
"""How ``nearest`` finds its pixels where, by a whole factor, that is to repeat them."""


def _resize(call: Call, x: Inputs) -> Torch:
    """Resize by whole factors with ``nearest``, or linearly as ``half_pixel`` and ``align_corners`` define it."""
    data, mode = x[0], call.get("mode", "nearest")
    given = x[3] if len(x) > 3 and x[3] is not None else None
    if given is not None:
        wanted = [int(size) for size in given.tolist()]
    else:
        scales = call.get("scales") if len(x) < 2 else x[1 if len(x) == 2 else 2].tolist()
        wanted = [math.floor(size * scale + 1e-6) for size, scale in zip(data.shape, scales, strict=True)]
    place = call.get("coordinate_transformation_mode", "half_pixel")
    unusual = call.get("axes") or call.get("antialias", 0) or wanted[:2] != list(data.shape[:2])
    whole = all(want % have == 0 for want, have in zip(wanted, data.shape, strict=True))
    repeats = call.opset <= 10 or (place, call.get("nearest_mode", "round_prefer_floor")) in _REPEATING
    if mode == "nearest" and whole and repeats and not unusual:
        return functional.interpolate(data, size=wanted[2:], mode="nearest")
    linear = {3: "linear", 4: "bilinear", 5: "trilinear"}.get(data.ndim)
    if mode == "linear" and linear and not unusual and place in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return functional.interpolate(data, size=wanted[2:], mode=linear, align_corners=place == "align_corners")
    raise NotImplementedError(f"Resize of mode {mode}, {place}")


def _einsum(call: Call, x: Inputs) -> Torch:
    return torch.einsum(call.get("equation"), *x)


def _dropped(call: Call, x: Inputs) -> Any:
    if len(x) > 2 and x[2] is not None and bool(x[2]):
        raise NotImplementedError("Dropout in training mode")
    return (x[0], torch.ones_like(x[0], dtype=torch.bool))[: call.outputs] if call.outputs > 1 else x[0]


OPERATORS: dict[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": lambda call, x: torch.matmul(x[0], x[1]),
    "Einsum": _einsum,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global("mean"),
    "GlobalMaxPool": _global("amax"),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LRN": _response_norm,
    "LpNormalization": _l2_norm,
    "Resize": _resize,
    "Upsample": _resize,
    "Dropout": _dropped,
}
"""By their names; those of the default domain."""

"""Operators that move, cut, join and count in PyTorch, as ONNX defines them."""

from __future__ import annotations

import math
from typing import Any

from onnx import numpy_helper

from onnxlowrank.tune.call import Call, Inputs, Operator, sizes, together
from onnxlowrank.tune.libraries import Torch, functional, torch


def _constant(call: Call, x: Inputs) -> Torch:
    for name, value in call.attributes.items():
        if name == "value":
            return torch.from_numpy(numpy_helper.to_array(value).copy())
        if name in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.int64)
        if name in ("value_float", "value_floats"):
            return torch.tensor(value, dtype=torch.float32)
    raise NotImplementedError("Constant of this kind")


def _filled(call: Call, x: Inputs) -> Torch:
    value = call.get("value")
    fill = torch.zeros(1) if value is None else torch.from_numpy(numpy_helper.to_array(value).copy())
    return fill.reshape(()).repeat(x[0].tolist()) if x[0].numel() else fill.reshape(())


def _shape(call: Call, x: Inputs) -> Torch:
    return sizes(list(x[0].shape)[call.get("start", 0) : call.get("end", None)])


def _reshape(call: Call, x: Inputs) -> Torch:
    wanted = call.setting("shape", x, 1)
    if not call.get("allowzero", 0):
        wanted = [x[0].shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x[0].reshape(wanted)


def _flatten(call: Call, x: Inputs) -> Torch:
    axis = call.get("axis", 1)
    axis = axis + x[0].ndim if axis < 0 else axis
    return x[0].reshape(math.prod(x[0].shape[:axis]), -1)


def _transpose(call: Call, x: Inputs) -> Torch:
    return x[0].permute(call.get("perm", list(reversed(range(x[0].ndim)))))


def _squeeze(call: Call, x: Inputs) -> Torch:
    axes = call.setting("axes", x, 1)
    if axes is None:
        axes = [axis for axis, size in enumerate(x[0].shape) if size == 1]
    for axis in sorted((axis % x[0].ndim for axis in axes), reverse=True):
        x = [x[0].squeeze(axis)]
    return x[0]


def _unsqueeze(call: Call, x: Inputs) -> Torch:
    axes = call.setting("axes", x, 1)
    data = x[0]
    for axis in sorted(axis % (x[0].ndim + len(axes)) for axis in axes):
        data = data.unsqueeze(axis)
    return data


def _expand(call: Call, x: Inputs) -> Torch:
    return x[0].expand(torch.broadcast_shapes(x[0].shape, tuple(x[1].tolist())))


def _concat(call: Call, x: Inputs) -> Torch:
    return torch.cat(together(*x), call.get("axis"))


def _split(call: Call, x: Inputs) -> Any:
    axis, given = call.get("axis", 0), call.setting("split", x, 1)
    if given is None:
        given = math.ceil(x[0].shape[axis] / call.get("num_outputs", call.outputs))
    return torch.split(x[0], given, axis)


def _slice(call: Call, x: Inputs) -> Torch:
    starts, ends = call.setting("starts", x, 1), call.setting("ends", x, 2)
    axes = call.setting("axes", x, 3) or list(range(len(starts)))
    steps = call.setting("steps", x, 4) or [1] * len(starts)
    data = x[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        chosen = range(data.shape[axis])[slice(start, None if step < 0 and end < -data.shape[axis] else end, step)]
        if step > 0:
            index = [slice(None)] * data.ndim
            index[axis] = slice(chosen.start, max(chosen.stop, chosen.start), step)
            data = data[tuple(index)]
        else:
            data = data.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=data.device))
    return data


def _gather(call: Call, x: Inputs) -> Torch:
    axis = call.get("axis", 0) % x[0].ndim
    size = x[0].shape[axis]
    index = x[1].to(x[0].device).to(torch.int64)
    index = torch.where(index < 0, index + size, index)
    found = x[0].index_select(axis, index.reshape(-1))
    return found.reshape(*x[0].shape[:axis], *index.shape, *x[0].shape[axis + 1 :])


def _gather_elements(call: Call, x: Inputs) -> Torch:
    axis = call.get("axis", 0)
    index = x[1].to(x[0].device).to(torch.int64)
    return torch.gather(x[0], axis, torch.where(index < 0, index + x[0].shape[axis], index))


def _pad(call: Call, x: Inputs) -> Torch:
    mode = call.get("mode", "constant")
    pads = call.setting("pads", x, 1)
    axes = call.setting("axes", x, 3) or list(range(x[0].ndim))
    value = float(x[2]) if len(x) > 2 and x[2] is not None else call.get("value", 0.0)
    sides = [(0, 0)] * x[0].ndim
    for position, axis in enumerate(axes):
        sides[axis] = pads[position], pads[position + len(axes)]
    if mode == "constant":
        return functional.pad(x[0], [side for pair in reversed(sides) for side in pair], value=value)
    if mode not in ("reflect", "edge") or any(any(pair) for pair in sides[:2]) or x[0].ndim not in (3, 4, 5):
        raise NotImplementedError(f"Pad of mode {mode}")
    flat = [side for pair in reversed(sides[2:]) for side in pair]
    return functional.pad(x[0], flat, mode="replicate" if mode == "edge" else mode)


def _depth_to_space(call: Call, x: Inputs) -> Torch:
    n, c, h, w = x[0].shape
    b = call.get("blocksize")
    if call.get("mode", "DCR") == "DCR":
        return x[0].reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)
    return x[0].reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(call: Call, x: Inputs) -> Torch:
    n, c, h, w = x[0].shape
    b = call.get("blocksize")
    return x[0].reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


def _range(call: Call, x: Inputs) -> Torch:
    return torch.arange(x[0].item(), x[1].item(), x[2].item(), dtype=x[0].dtype)


def _triangle(call: Call, x: Inputs) -> Torch:
    diagonal = int(x[1]) if len(x) > 1 and x[1] is not None else 0
    return (torch.triu if call.get("upper", 1) else torch.tril)(x[0], diagonal)


OPERATORS: dict[str, Operator] = {
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Identity": lambda call, x: x[0],
    "Shape": _shape,
    "Size": lambda call, x: torch.tensor(x[0].numel(), dtype=torch.int64),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Tile": lambda call, x: x[0].repeat(x[1].tolist()),
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Range": _range,
    "Trilu": _triangle,
}
"""By their names; those of the default domain."""

"""Multiply-accumulates by definition: of every operator whose work is that of convolutions or matrix products.

Counted are the products of an input with a weight, or of two computed matrices, that are summed: convolutions, taps in
the padding included; transposed ones, every input position times its part of the kernel; matrix products; recurrent
cells without the elementwise products of their gates. What is elementwise, pools, normalises or looks up counts not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from onnxlowrank.graph.index import attributes
from onnxlowrank.graph.recurrent import reads_blocks

Sizes = tuple[int, ...]
Shaped = Sequence[Sizes]

STANDARD, MICROSOFT, BLOCKED, CLASSICAL = "", "com.microsoft", "com.microsoft.nchwc", "ai.onnx.ml"


@dataclass(frozen=True)
class Arithmetic:
    """How an operator is counted.

    Attributes:
        macs: Returns the multiply-accumulates of one run of a node, by the shapes of its inputs and its outputs; those
            of inputs and outputs that are left out are empty.
        weights: Positions of the inputs that are its weights and biases, where they are constant.
        is_conv: Whether it is a convolution of some kind.
    """

    macs: Callable[[NodeProto, Shaped, Shaped], int]
    weights: tuple[int, ...] = (0, 1, 2)
    is_conv: bool = False


def arithmetic(node: NodeProto) -> Arithmetic | None:
    """Return how ``node`` is counted; None for an operator that multiplies and accumulates nothing, or is unknown."""
    return _OPERATORS.get((_domain(node), node.op_type))


def is_unknown(node: NodeProto) -> bool:
    """Return whether what ``node`` computes is not known: an operator that is not standard, and none listed here."""
    domain = _domain(node)
    if domain in (STANDARD, BLOCKED) or arithmetic(node) is not None:
        return False
    if domain == CLASSICAL:
        return node.op_type.startswith("SVM")
    return domain != MICROSOFT or node.op_type not in _WITHOUT_PRODUCTS


def einsum_macs(equation: str, shapes: Shaped) -> int:
    """Return the multiply-accumulates of an Einsum whose operands are contracted one by one, from the left.

    Args:
        equation: E.g. ``bij,bjk->bik``; ellipses and equations without an arrow are understood.
        shapes: Of the operands.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [_letters(term, len(shape)) for term, shape in zip(left.split(","), shapes, strict=True)]
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    often = [letter for term in terms for letter in term]
    broadcast = {letter for letter in sizes if letter.isdigit()}
    kept = set(right) | broadcast if arrow else broadcast | {one for one in sizes if often.count(one) == 1}
    total, open_axes = 0, set(terms[0])
    for position, term in enumerate(terms[1:], start=1):
        open_axes |= set(term)
        total += math.prod(sizes[letter] for letter in open_axes)
        open_axes &= kept.union(*terms[position + 1 :])
    return total


def _letters(term: str, axes: int) -> list[str]:
    """Return a letter an axis of an operand; those of its ellipsis are digits, numbered from the last."""
    before, dots, after = term.partition("...")
    covered = range(axes - len(before) - len(after)) if dots else ()
    return [*before, *(str(number) for number in reversed(covered)), *after]


def _domain(node: NodeProto) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _conv(weight: int) -> Callable[[NodeProto, Shaped, Shaped], int]:
    """Return the count of a convolution whose weight is the input at this position."""
    return lambda _, inputs, outputs: math.prod(outputs[0]) * math.prod(inputs[weight][1:])


def _transposed_conv(_: NodeProto, inputs: Shaped, outputs: Shaped) -> int:
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _product(node: NodeProto, inputs: Shaped, outputs: Shaped) -> int:
    """Return the count of a product of matrices, the first of which may be transposed."""
    transposed = bool(attributes(node).get("transA", 0)) and len(inputs[0]) > 1
    return math.prod(outputs[0]) * inputs[0][-2 if transposed else -1]


def _recurrent(node: NodeProto, inputs: Shaped, outputs: Shaped) -> int:
    """Return the count of a recurrent layer: every step of every sequence meets all weights of every direction."""
    projection = 0 if reads_blocks(node) else math.prod(inputs[1])
    return math.prod(inputs[0][:2]) * (projection + math.prod(inputs[2]))


def _einsum(node: NodeProto, inputs: Shaped, outputs: Shaped) -> int:
    return einsum_macs(attributes(node)["equation"], inputs)


def _attention(node: NodeProto, inputs: Shaped, outputs: Shaped) -> int:
    """Return the count of the two products of attention: of queries and keys, of weights and values."""
    (query, key, value), values = inputs[:3], attributes(node)
    past = inputs[4][2] if len(inputs) > 4 and inputs[4] else 0
    if len(query) == 4:
        batch, heads, steps, width = query
        return batch * heads * steps * (key[2] + past) * (width + value[3])
    batch, steps, width = query
    width_of_values: int = values["q_num_heads"] * value[2] // values["kv_num_heads"]
    return batch * steps * (key[1] + past) * (width + width_of_values)


def _linear_model(node: NodeProto, inputs: Shaped, outputs: Shaped) -> int:
    rows = 1 if len(inputs[0]) < 2 else inputs[0][0]
    return rows * len(attributes(node)["coefficients"])


_OPERATORS: dict[tuple[str, str], Arithmetic] = {
    (STANDARD, "Conv"): Arithmetic(_conv(1), (1, 2), is_conv=True),
    (STANDARD, "ConvInteger"): Arithmetic(_conv(1), (1,), is_conv=True),
    (STANDARD, "QLinearConv"): Arithmetic(_conv(3), (3, 8), is_conv=True),
    (STANDARD, "DeformConv"): Arithmetic(_conv(1), (1, 3), is_conv=True),
    (STANDARD, "ConvTranspose"): Arithmetic(_transposed_conv, (1, 2), is_conv=True),
    **{(STANDARD, op): Arithmetic(_product) for op in ("Gemm", "MatMul")},
    (STANDARD, "MatMulInteger"): Arithmetic(_product, (0, 1)),
    (STANDARD, "QLinearMatMul"): Arithmetic(_product, (0, 3)),
    **{(STANDARD, op): Arithmetic(_recurrent, (1, 2, 3, 7)) for op in ("LSTM", "GRU", "RNN")},
    (STANDARD, "Einsum"): Arithmetic(_einsum, tuple(range(8))),
    (STANDARD, "Attention"): Arithmetic(_attention, ()),
    **{(MICROSOFT, op): Arithmetic(_conv(1), (1, 2), is_conv=True) for op in ("FusedConv", "NhwcFusedConv")},
    (BLOCKED, "Conv"): Arithmetic(_conv(1), (1, 2), is_conv=True),
    **{(MICROSOFT, op): Arithmetic(_product) for op in ("FusedGemm", "FusedMatMul", "TransposeMatMul")},
    **{(MICROSOFT, op): Arithmetic(_product, (1,)) for op in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")},
    (MICROSOFT, "QGemm"): Arithmetic(_product, (3, 6)),
    (MICROSOFT, "DynamicQuantizeLSTM"): Arithmetic(_recurrent, (1, 2, 3, 7)),
    **{(CLASSICAL, op): Arithmetic(_linear_model, ()) for op in ("LinearClassifier", "LinearRegressor")},
}

_WITHOUT_PRODUCTS = {
    "BiasAdd", "BiasDropout", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "BitmaskDropout", "CDist", "CropAndResize",
    "DequantizeLinear", "EmbedLayerNormalization", "ExpandDims", "FastGelu", "GatherND", "Gelu", "GridSample",
    "GroupNorm", "Inverse", "Irfft", "MaxpoolWithMask", "NGramRepeatBlock", "NhwcMaxPool", "Pad", "QLinearAdd",
    "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul",
    "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QuantizeLinear", "QuickGelu", "Rfft",
    "RotaryEmbedding", "SampleOp", "SimplifiedLayerNormalization", "SkipGroupNorm", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization", "Tokenizer", "Trilu", "Unique",
}  # fmt: skip
"""onnxruntime's own operators that are elementwise, pool, normalise, look up or transform."""

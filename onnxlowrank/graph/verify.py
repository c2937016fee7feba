"""The last look at a network before it is written."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from onnxlowrank.errors import DefectError
from onnxlowrank.graph.outside import checkable


def verify_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Check that a network is valid ONNX and has the interface of another: names, types and ranks.

    That is what a caller must feed, and all outputs. An input that has a default, an initializer of its name, need not
    be fed: a rewritten network has none (:func:`onnxlowrank.graph.normalise.normalise`), the network as given may.

    Raises:
        DefectError: If it has not. This is a defect of onnxlowrank, not of the model; nothing is written.
    """
    try:
        onnx.checker.check_model(checkable(after))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise DefectError(f"the optimised model is not valid ONNX, please report this: {error}") from error
    for kind, values in (("input", fed), ("output", lambda model: model.graph.output)):
        had, has = (_signature(values(model)) for model in (before, after))
        if had != has:
            raise DefectError(f"the {kind}s of the optimised model differ, please report this: {had} became {has}")


def fed(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller must feed: those without a default."""
    graph = model.graph
    defaults = {tensor.name for tensor in graph.initializer}
    defaults |= {tensor.values.name for tensor in graph.sparse_initializer}
    return [value for value in graph.input if value.name not in defaults]


def _signature(values: Iterable[onnx.ValueInfoProto]) -> list[tuple[str, int, int]]:
    return [(v.name, v.type.tensor_type.elem_type, len(v.type.tensor_type.shape.dim)) for v in values]

"""The last look at a network before it is written."""

from __future__ import annotations

import onnx

from onnxlowrank.errors import DefectError
from onnxlowrank.graph.outside import checkable


def verify_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Check that a rewritten network is valid ONNX and has the inputs and outputs it had: names, types and ranks.

    Raises:
        DefectError: If it has not. This is a defect of onnxlowrank, not of the model; nothing is written.
    """
    try:
        onnx.checker.check_model(checkable(after))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise DefectError(f"the optimised model is not valid ONNX, please report this: {error}") from error
    for kind in ("input", "output"):
        had, has = (_signature(getattr(model.graph, kind)) for model in (before, after))
        initializers = {tensor.name for tensor in before.graph.initializer}
        had = [value for value in had if value[0] not in initializers]
        if had != has:
            raise DefectError(f"the {kind}s of the optimised model differ, please report this: {had} became {has}")


def _signature(values: list[onnx.ValueInfoProto]) -> list[tuple[str, int, int]]:
    return [(v.name, v.type.tensor_type.elem_type, len(v.type.tensor_type.shape.dim)) for v in values]

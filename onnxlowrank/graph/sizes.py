"""The sizes of tensors that are the same on every input, by what a network computes, not by what it says of itself."""

from __future__ import annotations

import math
from contextlib import suppress

import onnx
from onnx import ModelProto, helper

from onnxlowrank.graph.index import Shape, declared_shapes

_LARGE = 1024
"""Numbers: a constant of more is no shape and no axes, so no size depends on its values."""


def fixed_sizes(model: ModelProto) -> dict[str, Shape]:
    """Return the shapes of tensors as they follow from those of the inputs, None for what is not known or may change.

    What a file declares of tensors inside, or of its outputs, is not used: it may be wrong. Of a model too strange for
    shape inference there are those of the inputs alone.
    """
    graph = model.graph
    bare = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    bare.graph.name = graph.name
    bare.graph.node.extend(graph.node)
    bare.graph.input.extend(graph.input)
    bare.graph.output.extend(onnx.ValueInfoProto(name=one.name) for one in graph.output)
    known = {one.name for one in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in known and math.prod(tensor.dims) > _LARGE:
            bare.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            bare.graph.initializer.append(tensor)
    inferred = bare.graph
    with suppress(onnx.shape_inference.InferenceError):
        inferred = onnx.shape_inference.infer_shapes(bare).graph
    return declared_shapes([*inferred.input, *inferred.value_info, *inferred.output])

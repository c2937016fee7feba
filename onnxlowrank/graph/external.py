"""Files that hold the weights of a model, beside its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxlowrank.graph.walk import subgraphs, walk


def external_files(path: Path) -> list[Path]:
    """Return the files beside that of a model which hold its weights; none where the model cannot be read."""
    if not os.path.isfile(path):
        return []
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except Exception:  # what is wrong with the model is said when it is loaded
        return []
    outside = filter(uses_external_data, _tensors(model))
    return sorted({path.parent / ExternalDataInfo(tensor).location for tensor in outside})


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield all initializers and constants of a model."""
    nodes = [*walk(model.graph.node), *(node for function in model.functions for node in walk(function.node))]
    for graph in [model.graph, *(inner for node in nodes for inner in subgraphs(node))]:
        yield from graph.initializer
    for node in nodes:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))

"""Normalises a model: BatchNorm and constants folded, every node named, weights nowhere but in initializers.

onnxruntime folds, at its BASIC optimisation level, and writes the result as a model again; everything about the model
that is not computation is then put back as it was. Nodes keep their names. Where onnxruntime merges nodes, the result
has the name of the first (a Conv that swallows its BatchNorm stays that Conv) and the tensor name of the last.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto

from onnxlowrank.graph.affine import fold_affine
from onnxlowrank.graph.custom_ops import register_custom_operators
from onnxlowrank.graph.outside import is_large
from onnxlowrank.graph.shared_weights import merge_equal_weights, not_to_fold
from onnxlowrank.graph.unfuse import unfuse
from onnxlowrank.graph.walk import named, names, reads, rebuild, walk, with_outputs
from onnxlowrank.temporary import Scratch

_LOG = logging.getLogger(__name__)

_RENAMING = ["MatMulAddFusion"]
"""Optimisers that fold nothing, but turn MatMul + Add into a Gemm of another name."""


def normalise(model: ModelProto) -> ModelProto:
    """Return a copy of ``model`` with BatchNorm and constants folded and a unique name for every node.

    The inputs are what a caller must feed: an input that only lets callers override an initializer is dropped, and
    the initializer becomes a true constant, which can be folded. IR version 3, which demands such inputs, becomes 4.
    A weight that several nodes share stays one, and weights that are equal become one, so that they are one layer's.

    All else stays: opset imports, IR version, inputs and outputs, doc strings, metadata.

    Where onnxruntime cannot read the model, or that is beyond 2 GiB, or it would write operators the model does not
    import, nothing is folded.
    """
    prepared = unfuse(prepare(model))
    if is_large(prepared):
        _LOG.warning("the network is too large for onnxruntime to simplify, it stays as it is")
        return prepared
    try:
        folded = merge_equal_weights(fold_affine(_fold(prepared)))
        _run_onnxruntime(folded)
    except Exception as error:  # onnxruntime's errors share no base class
        reason = " ".join(str(error).split())
        _LOG.warning("onnxruntime cannot simplify the network, it stays as it is: %s", reason)
        return merge_equal_weights(prepared)
    return folded


def prepare(model: ModelProto) -> ModelProto:
    """Return a copy of ``model`` with named nodes, without Constant nodes and without inputs that have a default.

    Nothing is folded yet: these are the nodes and names that :func:`normalise` begins with.
    """
    graph = model.graph
    outputs = {output.name for output in graph.output}
    nodes, initializers = [], list(graph.initializer)
    for node in graph.node:
        tensor = _constant(node)
        if tensor is None or node.output[0] in outputs:
            nodes.append(node)
        else:
            initializers.append(tensor)
    defaults = {tensor.name for tensor in initializers}
    inputs = [info for info in graph.input if info.name not in defaults]
    prepared = rebuild(
        model, nodes=named(nodes, names(model)), initializers=initializers, inputs=inputs, outputs=graph.output
    )
    prepared.ir_version = max(4, model.ir_version)
    return prepared


def _constant(node: NodeProto) -> TensorProto | None:
    """Return the value of a Constant node as an initializer of that name, or None."""
    if node.op_type != "Constant" or node.attribute[0].name != "value":
        return None
    tensor = TensorProto()
    tensor.CopyFrom(node.attribute[0].t)
    tensor.name = node.output[0]
    return tensor


def _fold(model: ModelProto) -> ModelProto:
    """Return ``model`` as onnxruntime simplifies it, or raise ValueError if that takes operators not imported."""
    with Scratch() as scratch:
        path = scratch / "folded.onnx"
        _run_onnxruntime(with_outputs(model, not_to_fold(model)), path)  # nothing is folded into what writes an output
        folded = onnx.load(path)
    imported = {item.domain for item in model.opset_import} | {"", "ai.onnx"}
    foreign = sorted({node.domain for node in walk(folded.graph.node)} - imported)
    if foreign:
        raise ValueError(f"it would use operators of {', '.join(foreign)}")

    originals = {node.name: node for node in model.graph.node}
    nodes = [_restored(node, originals.get(node.name)) for node in folded.graph.node]
    first_use = {name: i for i, name in enumerate(dict.fromkeys(name for node in nodes for name in reads(node)))}
    return rebuild(
        model,
        nodes=named(nodes, names(folded)),
        initializers=sorted(folded.graph.initializer, key=lambda tensor: first_use.get(tensor.name, len(first_use))),
        inputs=model.graph.input,
        outputs=model.graph.output,
    )


def _restored(node: NodeProto, original: NodeProto | None) -> NodeProto:
    """Return ``node`` with the doc string and the metadata of the node it stems from."""
    if original is None:
        return node
    restored = NodeProto()
    restored.CopyFrom(node)
    restored.doc_string = original.doc_string
    del restored.metadata_props[:]
    restored.metadata_props.extend(original.metadata_props)
    return restored


def _run_onnxruntime(model: ModelProto, output: Path | None = None) -> None:
    """Load ``model`` into onnxruntime; with ``output``, simplified at BASIC level and written to that file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    register_custom_operators(options)
    if output is None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = os.fsencode(output)  # a path need not be text
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=_RENAMING
    )

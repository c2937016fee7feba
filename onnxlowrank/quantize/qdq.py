"""Writes int8 networks: QuantizeLinear and DequantizeLinear pairs around what onnxruntime computes in integers.

The pairs are set by onnxruntime's own quantizer: activations uint8, each tensor with one range; weights int8,
symmetric, each output map with its own scale; biases int32. onnxruntime then fuses a layer with the pairs around it, so
these cost nothing: a Conv becomes a QLinearConv, which ends in its ReLU where zero is the least number of the range.

Chosen here is which nodes that is done for, with what ranges, and what else the network keeps: its interface in
float32, names, metadata and opset imports. Scores that are an output of a fully connected layer stay in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorData, TensorsData

from onnxlowrank.goal import FLOAT32, FP16, INT8, MIXED
from onnxlowrank.graph.index import Index, attributes, is_standard
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.walk import in_order, readers, reads, rebuild, subgraphs, with_outputs
from onnxlowrank.quantize.aligned import with_aligned_maps
from onnxlowrank.quantize.hard_gates import HARD_GATE, as_sums, with_gates
from onnxlowrank.quantize.joined_ranges import with_joined_ranges
from onnxlowrank.quantize.ranges import Range

OPSET = 13
"""From here on a DequantizeLinear has an axis, that of the scales of a weight's output maps."""

_WEIGHTED = ("Conv", "Gemm", "MatMul")
_SUMS = ("Add", "Concat", "GlobalAveragePool")
_CLIPS = ("Relu", "Clip")
_MOVING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Pad", "Gather", "Resize")
_FOLLOWING = ("MaxPool", "AveragePool", *_MOVING)
"""These stay in integers where their input is one."""
_GATES, _PRODUCT, _LEAKY = ("Sigmoid", HARD_GATE), "Mul", "LeakyRelu"
"""Activations that onnxruntime looks up, or multiplies, in integers: SiLU, squeeze and excitation, leaky ReLU."""
_UNIT = Range(0.0, 1.0)


def quantisable(model: ModelProto, float32: Collection[str] = ()) -> list[str]:
    """Return the names of the nodes that can be computed in integers, in graph order; all others stay in float32.

    Args:
        model: A network whose nodes have unique names.
        float32: Names of nodes that shall stay as they are.
    """
    index = Index.of(model)
    inner = {
        name for node in model.graph.node for graph in subgraphs(node) for one in graph.node for name in reads(one)
    }
    return [
        node.name
        for node in index.nodes
        if node.name not in float32 and not inner.intersection([*node.input, *node.output]) and _suits(node, index)
    ]


def activations_of(model: ModelProto, nodes: Iterable[str]) -> list[str]:
    """Return the tensors that are computed, or fed, and that nodes of these names read or write."""
    chosen, constants = set(nodes), {tensor.name for tensor in model.graph.initializer}
    tensors = (name for node in model.graph.node if node.name in chosen for name in (*node.input, *node.output))
    return [name for name in dict.fromkeys(tensors) if name and name not in constants]


def quantise(
    model: ModelProto,
    ranges: Mapping[str, Range],
    float32: Collection[str] = (),
    exposed: Collection[str] = (),
    weight_bits: int = 8,
) -> ModelProto:
    """Return an int8 copy of a network.

    A node stays in float32 if the range of a tensor it reads or writes is not known, or not usable. Equal arguments
    give equal bytes.

    Args:
        model: A float32 network of opset :data:`OPSET` or newer, whose nodes have unique names.
        ranges: By activation tensor; of other tensors they are ignored.
        float32: Names of nodes that stay as they are.
        exposed: Tensors that are to be found in the result under their names.
        weight_bits: 8, or 7 for weights within +-64, with which sums of pairs of products fit 16 bits: processors
            without VNNI add them up in so many.
    """
    model, gates = with_gates(model)
    ranges = dict.fromkeys(gates, _UNIT) | dict(ranges)
    nodes = _with_ranges(model, quantisable(model, float32), ranges)
    if not nodes:
        return model
    aligned, padded = with_aligned_maps(model, nodes)
    ranges |= {name: ranges[source] for name, source in padded.items()}
    known = {name: ranges[name] for name in activations_of(aligned, nodes) if name in ranges}
    known = _followed(aligned, nodes, with_joined_ranges(aligned, nodes, known, exposed))
    outputs = [output.name for output in model.graph.output]
    copy = with_outputs(aligned, [name for name in exposed if name not in outputs])
    graph = copy.graph
    typed = {info.name for info in (*graph.input, *graph.output) if info.type.HasField("tensor_type")}
    _describe(copy, [name for name in known if name not in typed])
    copy.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")  # types are known, no files are needed
    kinds = sorted({node.op_type for node in graph.node if node.name in nodes})
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=weight_bits == 7,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, {name: _data(one) for name, one in known.items()}),
        nodes_to_quantize=nodes,
        nodes_to_exclude=[],
        op_types_to_quantize=kinds,
        extra_options={"TensorQuantOverrides": {name: _override(known[name]) for name in exposed if name in known}},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    written = quantizer.model.model.graph
    found, initializers = as_sums(in_order(written.node), written.initializer)
    quantised = rebuild(
        model,
        nodes=_float_scores(found, set(outputs)),
        initializers=initializers,
        inputs=model.graph.input,
        outputs=model.graph.output,
    )
    return quantised


def _followed(model: ModelProto, nodes: Collection[str], ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Return ranges in which what moves integers has the range of what it reads, as it is written.

    From ranges the quantiser tells which steps of weights are too fine for their bias; it is to know the true ones.
    """
    index, found = Index.of(model), dict(ranges)
    for node in index.nodes:
        moves = node.name in nodes and is_standard(node, *_FOLLOWING)
        if moves and not (node.op_type == "Pad" and _pads_with_numbers(node, index)):
            found |= {name: found[node.input[0]] for name in node.output if name in found}
    return found


def _pads_with_numbers(node: NodeProto, index: Index) -> bool:
    """Return whether a Pad puts something else than zeros, or what it reads, around."""
    if attributes(node).get("mode", "constant") != "constant" or len(node.input) < 3 or not node.input[2]:
        return False
    value = index.array(node.input[2])
    return value is None or bool(np.any(value))


def precision_of(model: ModelProto, layer: Layer) -> str:
    """Return what a layer, or the chain in its place, is computed in: ``float32``, ``fp16``, ``int8``, or ``mixed``."""
    own = {name for place in layer.places for name in place.nodes}
    pairs = {node.output[0] for node in model.graph.node if is_standard(node, "DequantizeLinear")}
    half = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    found = {
        INT8 if pairs.intersection(node.input[1:2]) else FP16 if half.intersection(node.input[1:2]) else FLOAT32
        for node in model.graph.node
        if is_standard(node, *_WEIGHTED) and own.intersection((node.name, chain_owner(node.name)))
    }
    return found.pop() if len(found) == 1 else MIXED


def chain_owner(name: str) -> str:
    """Return the name of the node in whose place a node stands as part of a chain; empty where it is of none."""
    return name.rpartition("/lowrank/")[0]


def _suits(node: NodeProto, index: Index) -> bool:
    """Return whether onnxruntime has code that computes a node in integers, and its constants can be so."""
    if is_standard(node, *_SUMS):
        return not any(name in index.constants for name in node.input) or node.op_type == "Add"
    if is_standard(node, *_CLIPS, *_FOLLOWING, *_GATES, _LEAKY):
        return node.input[0] not in index.constants
    if is_standard(node, _PRODUCT):
        return index.constants.keys().isdisjoint(node.input)
    if not is_standard(node, *_WEIGHTED) or node.input[0] in index.constants:
        return False
    weight = index.weights(node.input[1])
    if weight is None or not np.isfinite(weight).all() or weight.ndim < 2 or not _is_initializer(node.input[1], index):
        return False
    if node.op_type == "MatMul":
        return weight.ndim == 2
    if len(node.input) < 3 or not node.input[2]:
        return True
    bias = index.weights(node.input[2])
    maps = weight.shape[0 if node.op_type == "Conv" or attributes(node).get("transB") else 1]
    return bias is not None and bias.shape == (maps,) and bool(np.isfinite(bias).all())


def _is_initializer(name: str, index: Index) -> bool:
    """Return whether a constant goes by the name it is stored under."""
    return index.constants[name].name == name


def _with_ranges(model: ModelProto, nodes: Collection[str], ranges: Mapping[str, Range]) -> list[str]:
    """Return those of the nodes whose activations all have a usable range, and for which it pays.

    Activations pay between layers. In front of anything else they would lose of what they tell, for nothing: a score
    that ends the network has more than 256 values.
    """
    left = set(nodes)
    reading = readers(model.graph.node)
    outputs = {output.name for output in model.graph.output}
    while True:
        found = _in_integers(model, left, ranges)
        chosen = {node.name for node in found}
        idle = set()
        for node in found:
            behind = reading.get(node.output[0], [])
            inside = [one.name in chosen for one in behind]
            pays = any(inside) and node.output[0] not in outputs
            if node.op_type in _GATES:
                pays = pays and all(inside) and all(one.op_type == _PRODUCT for one in behind)
            if node.op_type in (*_GATES, _PRODUCT, _LEAKY) and not pays:
                idle.add(node.name)
        if not idle:
            return [node.name for node in found]
        left -= idle


def _in_integers(model: ModelProto, nodes: Collection[str], ranges: Mapping[str, Range]) -> list[NodeProto]:
    """Return those of the nodes whose activations all have a usable range.

    Clips that leave zero out stay too: onnxruntime's quantizer takes them for the ends of the range, and zero is in it.
    Where the pairs of a Clip's input cannot be used, those of its output cannot.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    found: list[NodeProto] = []
    integers: set[str] = set()
    for node in model.graph.node:
        if node.name not in nodes:
            continue
        follows = node.op_type in (*_CLIPS, *_FOLLOWING, *_GATES, _LEAKY)
        read = list(node.input[:1]) if follows or node.op_type in _WEIGHTED else list(node.input)
        tensors = [name for name in (*read, *node.output) if name and name not in constants]
        if not all(name in ranges and ranges[name].is_usable for name in tensors):
            continue
        if follows and node.input[0] not in integers:
            continue
        if node.op_type == "Clip" and not ranges[node.output[0]].low <= 0 <= ranges[node.output[0]].high:
            continue
        if node.op_type in _SUMS and not integers.intersection(node.input):
            continue
        if node.op_type == _PRODUCT and not integers.issuperset(node.input):
            continue
        found.append(node)
        integers.update(node.output)
    return found


def _describe(model: ModelProto, tensors: Iterable[str]) -> None:
    """Add to a model that tensors are float32."""
    for name in tensors:
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    for output in model.graph.output:
        if not output.type.HasField("tensor_type"):
            output.type.tensor_type.elem_type = TensorProto.FLOAT


def _data(ends: Range) -> TensorData:
    return TensorData(lowest=np.float32(ends.low), highest=np.float32(ends.high))


def _override(ends: Range) -> list[dict[str, np.float32]]:
    """Return what gives a tensor its own range, where the quantizer would take that of the ReLU behind it."""
    return [{"rmin": np.float32(ends.low), "rmax": np.float32(ends.high)}]


def _float_scores(nodes: Iterable[NodeProto], outputs: Collection[str]) -> list[NodeProto]:
    """Return nodes without the pairs between a fully connected layer and an output that nothing else reads.

    The layer may end in an Add of its bias.
    """
    nodes = list(nodes)
    writers = {name: node for node in nodes for name in node.output}
    reading = readers(nodes)
    gone: set[str] = set()
    for last in nodes:
        if not (is_standard(last, "DequantizeLinear") and last.output[0] in outputs and last.input[0] in writers):
            continue
        first = writers[last.input[0]]
        layer = writers.get(first.input[0])
        if layer is None or not is_standard(layer, "Gemm", "MatMul", "Add") or reading.get(last.output[0]):
            continue
        if layer.op_type == "Add" and all(_is_computed(name, writers) for name in layer.input):
            continue
        if len(reading[first.input[0]]) == len(reading[last.input[0]]) == 1:
            layer.output[0] = last.output[0]
            gone |= {first.name, last.name}
    return [node for node in nodes if node.name not in gone]


def _is_computed(name: str, writers: Mapping[str, NodeProto]) -> bool:
    """Return whether a tensor is no constant, nor one behind a DequantizeLinear."""
    node = writers.get(name)
    if node is None or not is_standard(node, "DequantizeLinear"):
        return node is not None
    return node.input[0] in writers

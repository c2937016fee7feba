"""Small models and helpers for the tests of the graph package."""

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

ALL_OFF = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def run(model: ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    """Run ``model`` as it stands, without any optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = ALL_OFF
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def parse(body: str, opset: int = 17, ir: int = 8, **constants: np.ndarray) -> ModelProto:
    """Return the model of ONNX text ``body``, its nodes named after their outputs, with ``constants`` as weights."""
    model = parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}]> {body}')
    for name, values in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    for node in model.graph.node:
        node.name = f"n_{node.output[0]}"
    return model


def conv_model(
    weight: np.ndarray, bias: np.ndarray | None = None, inputs: int | None = None, **attributes
) -> ModelProto:
    """Return ``x -> Conv 'conv' -> y`` with dynamic batch and sizes."""
    axes = weight.ndim - 2
    channels = inputs or weight.shape[1] * attributes.get("group", 1)
    sizes = ["h", "w", "d"][:axes]
    operands = [numpy_helper.from_array(weight, "conv.weight")]
    if bias is not None:
        operands.append(numpy_helper.from_array(bias, "conv.bias"))
    node = helper.make_node("Conv", ["x", *(o.name for o in operands)], ["y"], name="conv", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, *sizes])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", weight.shape[0], *("oh", "ow", "od")[:axes]])],
        operands,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def transposed_model(
    weight: np.ndarray, bias: np.ndarray | None = None, group: int = 1, **attributes: object
) -> ModelProto:
    """Return ``x -> ConvTranspose 'conv' -> y`` of a weight ``[F, C/group, *kernel]``, with dynamic batch and sizes."""
    model = conv_model(weight, bias, group=group, **attributes)
    parts = weight.reshape(group, -1, *weight.shape[1:])
    stored = np.concatenate([part.swapaxes(0, 1) for part in parts])
    model.graph.node[0].op_type = "ConvTranspose"
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(stored), "conv.weight"))
    return model


def residual_block() -> ModelProto:
    """Return Conv-BN-ReLU-Conv-BN + shortcut - ReLU - pool - Gemm, with all the metadata a model can carry."""
    rng = np.random.default_rng(0)
    constants = {
        "w1": normal(rng, 6, 4, 3, 3),
        "w2": normal(rng, 4, 6, 3, 3),
        "wf": normal(rng, 5, 4),
        "bf": normal(rng, 5),
    }
    for i, channels in ((1, 6), (2, 4)):
        for part in ("scale", "shift", "mean"):
            constants[f"{part}{i}"] = normal(rng, channels)
        constants[f"var{i}"] = rng.uniform(0.5, 2, channels).astype(np.float32)
    model = parse(
        """g (float[batch, 4, 8, 8] x) => (float[batch, 5] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1)
            b = BatchNormalization (a, scale1, shift1, mean1, var1)
            c = Relu (b)
            d = Conv <pads = [1, 1, 1, 1]> (c, w2)
            e = BatchNormalization (d, scale2, shift2, mean2, var2)
            f = Add (e, x)
            r = Relu (f)
            p = GlobalAveragePool (r)
            q = Flatten (p)
            y = Gemm <transB = 1> (q, wf, bf)
        }""",
        **constants,
    )
    describe(model)
    return model


def describe(model: ModelProto) -> None:
    """Give ``model`` every kind of text and metadata."""
    model.producer_name, model.producer_version, model.domain, model.model_version = "maker", "1.2", "org.x", 7
    model.doc_string, model.graph.doc_string, model.graph.name = "a model", "a graph", "residual"
    model.metadata_props.add(key="classes", value="a,b")
    model.graph.metadata_props.add(key="graph", value="g")
    for info in (*model.graph.input, *model.graph.output):
        info.doc_string = f"tensor {info.name}"
    for node in model.graph.node:
        node.doc_string = f"node {node.name}"
        node.metadata_props.add(key="source", value=node.name)


def without_body(model: ModelProto) -> bytes:
    """Return all of ``model`` but its nodes, weights and value infos, as bytes to compare."""
    rest = ModelProto()
    rest.CopyFrom(model)
    del rest.graph.node[:], rest.graph.initializer[:], rest.graph.value_info[:]
    return rest.SerializeToString(deterministic=True)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return float32 normal numbers."""
    return rng.standard_normal(shape).astype(np.float32)


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest expected value."""
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-6))


def node(model: ModelProto, name: str) -> onnx.NodeProto:
    """Return the node called ``name``."""
    return next(n for n in model.graph.node if n.name == name)


def constants_as_nodes(model: ModelProto) -> ModelProto:
    """Move the weights of a network into Constant nodes, and return it."""
    constants = [
        onnx.helper.make_node("Constant", [], [tensor.name], name=f"k_{tensor.name}", value=tensor)
        for tensor in model.graph.initializer
    ]
    nodes = [*constants, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model

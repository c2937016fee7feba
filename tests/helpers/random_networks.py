"""Networks drawn at random: all kinds of layers, of any shape, in any order, in any dialect of ONNX."""

from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import assume
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

OPSETS = range(7, 27)
"""The newest is the newest that onnxruntime 1.31 reads."""
IR_VERSIONS = range(3, 14)
SCALES = (1.0,) * 12 + (1e18, 1e-20, 0.0)
"""Of weights and inputs: ordinary most of the time, and huge, tiny, or nothing."""

NAMES = st.one_of(
    st.sampled_from(["a", "[0]*?", "x/y", "", " ", "'", "\x1b[31m", "ä\n"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6),
)


@dataclass(frozen=True)
class RandomNetwork:
    """A network and what it may be fed.

    Attributes:
        model: The network.
        feeds: A few inputs.
    """

    model: ModelProto
    feeds: list[dict[str, np.ndarray]]

    def __repr__(self) -> str:
        return onnx.printer.to_text(self.model)


@dataclass(frozen=True)
class Tensor:
    """A tensor of a network that is being drawn, with its shape for one sample, batch included."""

    name: str
    shape: tuple[int, ...]


@dataclass
class Drawing:
    """A network that is being drawn."""

    draw: st.DrawFn
    opset: int
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    def one_of(self, *values):
        return self.draw(st.sampled_from(values))

    def whole(self, low, high):
        return self.draw(st.integers(low, high))

    def name(self) -> str:
        """Return a name that no tensor has."""
        base = self.draw(NAMES)
        name, number = base, 0
        while not name or name in self.taken:
            number += 1
            name = f"{base}{number}"
        self.taken.add(name)
        return name

    def node(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes) -> Tensor:
        """Add a node, and return its output."""
        output, own = self.name(), self.draw(st.one_of(st.just(""), NAMES))
        names = {node.name for node in self.nodes}
        self.nodes.append(helper.make_node(op, inputs, [output], name="" if own in names else own, **attributes))
        return Tensor(output, shape)

    def constant(self, values: np.ndarray) -> str:
        """Add a constant: an initializer, a Constant node or behind an Identity."""
        name, how = self.name(), self.one_of("initializer", "initializer", "initializer", "Constant", "Identity")
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        if how == "Constant":
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            return name
        self.initializers.append(tensor)
        return self.node("Identity", [name], values.shape).name if how == "Identity" else name

    def weight(self, *shape: int, fan_in: int = 1) -> str:
        """Add a weight."""
        spread = self.one_of(*SCALES) * fan_in**-0.5
        values = self.rng.standard_normal(shape)
        if len(shape) > 1:  # singular values that decay, as those of trained networks do
            u, s, v = np.linalg.svd(values.reshape(shape[0], -1), full_matrices=False)
            values = ((u * s * 0.5 ** np.arange(len(s))) @ v).reshape(shape)
        return self.constant(np.asarray(values * spread, np.float32))


def _widths(most: int) -> list[int]:
    """Return numbers of maps: few, or what leaves room for a rank."""
    return [1, *(n for n in (2, 3, 5, 8, 8, 12, 16, 16) if n <= most)]


def conv(net: Drawing, x: Tensor) -> Tensor:
    """A convolution: any kernel that fits, grouped, strided, dilated, padded."""
    channels, size = x.shape[1], x.shape[2:]
    group = net.one_of(1, 1, 1, 1, 1, channels, *(g for g in (2, 3) if channels % g == 0))
    outputs = group * net.one_of(*_widths(16 // group))
    kernel = [net.one_of(1, min(2, s), min(3, s), min(3, s), min(3, s), s if s <= 6 else 5) for s in size]
    strides = [net.one_of(1, 1, 1, 1, 2, 4) for _ in size]
    dilations = [net.one_of(1, 1, 2) for _ in size]
    how = net.one_of("none", "pads", "odd", "VALID", "SAME_UPPER", "SAME_LOWER")
    if how in ("none", "VALID", "pads", "odd"):
        dilations = [d if d * (k - 1) < s else 1 for d, k, s in zip(dilations, kernel, size, strict=True)]
    pads = [0] * 2 * len(size)
    attributes = {"group": group, "strides": strides, "dilations": dilations, "kernel_shape": kernel}
    if how in ("pads", "odd"):
        pads = [net.whole(0, 3) if how == "odd" else k // 2 for _ in "ab" for k in kernel]
        attributes["pads"] = pads
    elif how != "none":
        attributes["auto_pad"] = how
    if how.startswith("SAME"):
        attributes["dilations"] = dilations = [1] * len(size)
        out = [-(-s // t) for s, t in zip(size, strides, strict=True)]
    else:
        out = [
            (s + pads[i] + pads[i + len(size)] - d * (k - 1) - 1) // t + 1
            for i, (s, k, t, d) in enumerate(zip(size, kernel, strides, dilations, strict=True))
        ]
    operands = [net.weight(outputs, channels // group, *kernel, fan_in=channels // group * int(np.prod(kernel)))]
    if net.draw(st.booleans()):
        operands.append(net.weight(outputs))
    return net.node("Conv", [x.name, *operands], (x.shape[0], outputs, *out), **attributes)


def conv_transpose(net: Drawing, x: Tensor) -> Tensor:
    """A transposed convolution."""
    channels, size = x.shape[1], x.shape[2:]
    outputs, kernel, stride = net.whole(1, 4), net.whole(1, 3), net.whole(1, 2)
    out = [(s - 1) * stride + kernel for s in size]
    weight = net.weight(channels, outputs, *[kernel] * len(size), fan_in=channels)
    return net.node("ConvTranspose", [x.name, weight], (x.shape[0], outputs, *out), strides=[stride] * len(size))


def gemm(net: Drawing, x: Tensor) -> Tensor:
    """A Gemm, its addend of any shape that broadcasts; sometimes of what it takes transposed, in this case twice."""
    if len(x.shape) != 2:
        x = net.node("Flatten", [x.name], (x.shape[0], int(np.prod(x.shape[1:]))), axis=1)
    inputs, outputs, transposed = x.shape[1], net.one_of(*_widths(16)), net.whole(0, 1)
    weight = net.weight(*((outputs, inputs) if transposed else (inputs, outputs)), fan_in=inputs)
    addends = [(outputs,), (1, outputs), (1,), (), *([None] if net.opset >= 11 else [])]
    addend = net.one_of(*addends)
    attributes = {"transB": transposed, "alpha": net.one_of(1.0, 0.5), "beta": net.one_of(1.0, 2.0, 0.0)}
    if net.whole(0, 9) == 0:
        x = net.node("Transpose", [x.name], x.shape[::-1], perm=[1, 0])
        attributes["transA"] = 1
        x = Tensor(x.name, x.shape[::-1])
    operands = [x.name, weight, *([] if addend is None else [net.weight(*addend)])]
    return net.node("Gemm", operands, (x.shape[0], outputs), **attributes)


def matmul(net: Drawing, x: Tensor) -> Tensor:
    """A product with a constant: a matrix and perhaps a bias, or a vector, or matrices."""
    inputs, outputs, how = x.shape[-1], net.one_of(*_widths(16)), net.one_of("matrix", "matrix", "biased", "odd")
    if how == "odd":
        if net.draw(st.booleans()) and len(x.shape) > 2:
            return net.node("MatMul", [x.name, net.weight(inputs, fan_in=inputs)], x.shape[:-1])
        if len(x.shape) >= 2 and net.draw(st.booleans()):
            weight = net.weight(outputs, x.shape[-2], fan_in=x.shape[-2])
            assume(len(x.shape) > 2)
            return net.node("MatMul", [weight, x.name], (*x.shape[:-2], outputs, inputs))
        weight = net.weight(*[1] * (len(x.shape) - 2), inputs, outputs, fan_in=inputs)
        return net.node("MatMul", [x.name, weight], (*x.shape[:-1], outputs))
    y = net.node("MatMul", [x.name, net.weight(inputs, outputs, fan_in=inputs)], (*x.shape[:-1], outputs))
    if how == "biased":
        operands = [y.name, net.weight(outputs)]
        return net.node("Add", operands if net.draw(st.booleans()) else operands[::-1], y.shape)
    return y


def batch_norm(net: Drawing, x: Tensor) -> Tensor:
    """A BatchNorm with statistics that make sense."""
    maps = x.shape[1]
    parts = [net.rng.uniform(0.5, 1.5, maps), *net.rng.standard_normal((2, maps)), net.rng.uniform(0.5, 2, maps)]
    constants = [net.constant(part.astype(np.float32)) for part in parts]
    return net.node("BatchNormalization", [x.name, *constants], x.shape)


def activation(net: Drawing, x: Tensor) -> Tensor:
    """An activation: one we fit through, or another."""
    op = net.one_of("Relu", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "Elu", "silu", "Identity", "Neg")
    if op == "Clip" and net.opset < 11:
        return net.node(op, [x.name], x.shape, min=0.0, max=6.0)
    if op == "Clip":
        bounds = [net.constant(np.float32(bound)) for bound in (0, 6)]
        return net.node(op, [x.name, *bounds[: net.whole(0, 2)]], x.shape)
    if op == "silu":
        return net.node("Mul", [x.name, net.node("Sigmoid", [x.name], x.shape).name], x.shape)
    return net.node(op, [x.name], x.shape)


def pool(net: Drawing, x: Tensor) -> Tensor:
    """A pooling, sometimes to one position."""
    size, op = x.shape[2:], net.one_of("MaxPool", "AveragePool", "GlobalAveragePool")
    if op.startswith("Global"):
        return net.node(op, [x.name], (*x.shape[:2], *[1] * len(size)))
    kernel = [min(2, s) for s in size]
    out = [(s - k) // k + 1 for s, k in zip(size, kernel, strict=True)]
    return net.node(op, [x.name], (*x.shape[:2], *out), kernel_shape=kernel, strides=kernel)


def joined(net: Drawing, x: Tensor, others: list[Tensor]) -> Tensor:
    """An Add, a product or a Concat with another tensor, or with itself."""
    other = net.one_of(*others)
    if other.shape == x.shape:
        return net.node(net.one_of("Add", "Add", "Mul", "Sub"), [x.name, other.name], x.shape)
    fits = len(other.shape) == len(x.shape) and other.shape[:1] + other.shape[2:] == x.shape[:1] + x.shape[2:]
    if len(x.shape) > 1 and fits:
        return net.node("Concat", [x.name, other.name], (x.shape[0], x.shape[1] + other.shape[1], *x.shape[2:]), axis=1)
    return net.node("Add", [x.name, x.name], x.shape)


def turned(net: Drawing, x: Tensor) -> Tensor:
    """The maps last, or flat."""
    if net.draw(st.booleans()):
        order = (0, *range(2, len(x.shape)), 1)
        return net.node("Transpose", [x.name], tuple(x.shape[i] for i in order), perm=order)
    return net.node("Flatten", [x.name], (x.shape[0], int(np.prod(x.shape[1:]))), axis=1)


def grow(net: Drawing, pool_of: list[Tensor]) -> Tensor:
    """Add something behind one of the tensors, the last one most of the time."""
    x = net.one_of(pool_of[-1], pool_of[-1], net.one_of(*pool_of))
    ways = [gemm, matmul, activation, activation]
    if len(x.shape) > 2:
        ways += [batch_norm, turned, *[conv] * 6, pool, conv_transpose] if len(x.shape) < 6 else []
    way = net.one_of(*ways, joined)
    return joined(net, x, pool_of) if way is joined else way(net, x)


@st.composite
def networks(draw, opsets=OPSETS, most_nodes=7) -> RandomNetwork:
    """Return a strategy for networks with a few inputs."""
    opset, ir = draw(st.sampled_from(opsets)), draw(st.sampled_from(IR_VERSIONS))
    net = Drawing(draw, opset, np.random.default_rng(draw(st.integers(0, 2**32 - 1))))
    size = draw(st.sampled_from([(), (8,), (1,), (8, 8), (8, 8), (1, 1), (3, 5), (12, 12), (9, 7), (4, 5, 4)]))
    channels, batch = net.one_of(1, 2, 3, 4, 8, 8, 12), net.one_of(None, None, 1, 2)
    x = Tensor(net.name(), (batch or 1, channels, *size))
    tensors = [x]
    for _ in range(net.whole(1, most_nodes)):
        tensors.append(grow(net, tensors))
        assume(0 < np.prod(tensors[-1].shape) < 50_000)
    read = {name for node in net.nodes for name in node.input}
    leaves = [one for one in tensors[1:] if one.name not in read]
    outputs = leaves + ([net.one_of(*tensors[1:])] if net.whole(0, 4) == 0 else [])
    outputs = list({one.name: one for one in outputs}.values())
    infos = [_info(one, batch) for one in outputs]
    constants = net.initializers
    if constants and net.whole(0, 9) == 0:  # a constant that is an output
        constant = net.one_of(*constants)
        infos.append(helper.make_tensor_value_info(constant.name, constant.data_type, list(constant.dims)))
    overridable = constants if ir == 3 else [one for one in constants if net.whole(0, 9) == 0]
    inputs = [_info(x, batch)]
    inputs += [helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)) for one in overridable]
    graph = helper.make_graph(net.nodes, net.name(), inputs, infos, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    scale, noise, shift = net.one_of(*SCALES), net.one_of(1.0, 1.0, 1.0, 0.0), net.one_of(0.0, 0.0, 1.0)
    feeds = [
        {x.name: (scale * (shift + noise * net.rng.standard_normal(x.shape))).astype(np.float32)}
        for _ in range(net.one_of(1, 4, 6))
    ]
    return RandomNetwork(model, feeds)


def _info(tensor: Tensor, batch: int | None) -> onnx.ValueInfoProto:
    """Return the description of an input or output; the batch stays open where the network leaves it so."""
    first = ["N"] if batch is None else [batch]
    return helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, first + list(tensor.shape[1:]))

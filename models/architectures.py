"""Networks written directly as ONNX: the quick-start network and the architectures of the benchmarks.

    python models/architectures.py vgg16 out.onnx

``vgg_cifar10`` takes trained weights; the networks in ``BUILDERS`` have random ones and serve to count
multiply-accumulates and to measure time. All take an ``image`` ``[N, 3, H, W]`` to ``logits`` ``[N, classes]``, with
a free batch size. A node and its output tensor have one name (``conv1_1``, ``conv1_1_bn``, ``conv1_1_relu``), and its
weights start with it (``conv1_1.weight``).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

IMAGENET_CLASSES = 1000


class Conv(NamedTuple):
    """A row of an architecture's table: a convolution and its ReLU."""

    name: str
    filters: int
    kernel: int = 3
    stride: int = 1
    pad: int = 1


class MaxPool(NamedTuple):
    """A row of an architecture's table; ``end_pad`` rounds the output size up, as Caffe does."""

    name: str
    kernel: int = 2
    stride: int = 2
    end_pad: int = 0


class Lrn(NamedTuple):
    """A row of an architecture's table: local response normalisation across 5 channels."""

    name: str


Table = tuple[Conv | MaxPool | Lrn, ...]


def vgg_table(widths: Sequence[int | str]) -> Table:
    """Name the 3x3 convolutions and the poolings of a VGG: ``conv1_1``, ``conv1_2``, ``pool1``, ``conv2_1``, ..."""
    rows: list[Conv | MaxPool | Lrn] = []
    stage, index = 1, 1
    for width in widths:
        if isinstance(width, int):
            rows.append(Conv(f"conv{stage}_{index}", width))
            index += 1
        else:
            rows.append(MaxPool(f"pool{stage}"))
            stage, index = stage + 1, 1
    return tuple(rows)


VGG_CIFAR10_WIDTHS: tuple[int | str, ...] = (48, 48, "pool", 96, 96, "pool", 192, 192, "pool", 192)

# Simonyan and Zisserman, configuration D: Table 5 of Zhang et al. (2015).
VGG16 = vgg_table(
    (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")
)

# Table 1 of Zhang et al. (2015). The pooling after conv7 is the spatial pyramid.
SPP10: Table = (
    Conv("conv1", 96, kernel=7, stride=2, pad=0),
    MaxPool("pool1", kernel=3, stride=3, end_pad=2),
    Conv("conv2", 256, kernel=5),
    MaxPool("pool2", end_pad=1),
    *(Conv(f"conv{i}", 512) for i in range(3, 8)),
)
SPP10_BINS = (6, 3, 2, 1)

# The 15 layers of Denton et al. (2014), in the order of their supplement's Table 1. What the paper leaves open was
# chosen to agree with it: the factors of its Table 2 make fc6 512*6*6 x 4096, and the times of conv2 to conv5 (2 : 1 :
# 1 : 1, with a pooling between conv3 and conv4) fit the 512, 1024, 512 maps of Zeiler and Fergus's larger network.
OVERFEAT: Table = (
    Conv("conv1", 96, kernel=7, stride=2),
    MaxPool("pool1", kernel=3, end_pad=1),
    Lrn("norm1"),
    Conv("conv2", 256, kernel=5, pad=2),
    MaxPool("pool2", kernel=3),
    Lrn("norm2"),
    Conv("conv3", 512),
    MaxPool("pool3", kernel=3),
    Conv("conv4", 1024),
    Conv("conv5", 512),
    MaxPool("pool5", kernel=3),
)

# Widths of the hidden fully connected layers fc6 and fc7 of the three networks above.
HIDDEN = (4096, 4096)

# He et al. (2016), Table 1: bottleneck width and number of blocks of conv2_x to conv5_x.
RESNET50_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))

# Sandler et al. (2018), Table 2: expansion t, channels c, repetitions n, stride s.
MOBILENET_V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class _Tensor(NamedTuple):
    """A value ``[N, channels, size, size]``; after flattening, ``[N, channels]`` with ``size`` 1."""

    name: str
    channels: int
    size: int


class _Network:
    """Collects the nodes and weights of a graph; every method appends one node and returns its output."""

    def __init__(self, weights: Mapping[str, np.ndarray] | None = None) -> None:
        """Use ``weights`` by initializer name; without them draw He-normal ones, the same at every call."""
        self._weights = weights
        self._rng = np.random.default_rng(0)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def conv(
        self,
        name: str,
        x: _Tensor,
        filters: int,
        kernel: int = 1,
        stride: int = 1,
        pad: int = 0,
        *,
        group: int = 1,
        bias: bool = True,
    ) -> _Tensor:
        inputs = [x.name, self._weight(f"{name}.weight", filters, x.channels // group, kernel, kernel)]
        if bias:
            inputs.append(self._weight(f"{name}.bias", filters))
        self._node("Conv", name, inputs, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=group)
        return _Tensor(name, filters, (x.size + 2 * pad - kernel) // stride + 1)

    def batch_norm(self, name: str, x: _Tensor) -> _Tensor:
        centres = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
        vectors = [self._weight(f"{name}.{key}", x.channels, centre=centre) for key, centre in centres.items()]
        self._node("BatchNormalization", name, [x.name, *vectors], epsilon=1e-5)
        return x._replace(name=name)

    def relu(self, name: str, x: _Tensor) -> _Tensor:
        self._node("Relu", name, [x.name])
        return x._replace(name=name)

    def relu6(self, name: str, x: _Tensor) -> _Tensor:
        bounds = [self._initializer(f"relu6.{key}", np.float32(value)) for key, value in (("min", 0), ("max", 6))]
        self._node("Clip", name, [x.name, *bounds])
        return x._replace(name=name)

    def lrn(self, name: str, x: _Tensor) -> _Tensor:
        self._node("LRN", name, [x.name], size=5)
        return x._replace(name=name)

    def max_pool(self, name: str, x: _Tensor, kernel: int, stride: int, end_pad: int = 0) -> _Tensor:
        pads = [0, 0, end_pad, end_pad]
        self._node("MaxPool", name, [x.name], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
        return x._replace(name=name, size=(x.size + end_pad - kernel) // stride + 1)

    def global_average_pool(self, name: str, x: _Tensor) -> _Tensor:
        self._node("GlobalAveragePool", name, [x.name])
        return x._replace(name=name, size=1)

    def flatten(self, name: str, x: _Tensor) -> _Tensor:
        self._node("Flatten", name, [x.name])
        return _Tensor(name, x.channels * x.size**2, 1)

    def concat(self, name: str, xs: Sequence[_Tensor]) -> _Tensor:
        self._node("Concat", name, [x.name for x in xs], axis=1)
        return xs[0]._replace(name=name, channels=sum(x.channels for x in xs))

    def add(self, name: str, x: _Tensor, y: _Tensor) -> _Tensor:
        self._node("Add", name, [x.name, y.name])
        return x._replace(name=name)

    def gemm(self, name: str, x: _Tensor, units: int, output: str | None = None) -> _Tensor:
        inputs = [x.name, self._weight(f"{name}.weight", units, x.channels), self._weight(f"{name}.bias", units)]
        self._node("Gemm", name, inputs, output, transB=1)
        return _Tensor(output or name, units, 1)

    def model(self, name: str, image: _Tensor, logits: _Tensor) -> onnx.ModelProto:
        def value(tensor: _Tensor, *shape: int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(tensor.name, onnx.TensorProto.FLOAT, ["N", *shape])

        graph = helper.make_graph(
            self._nodes,
            name,
            [value(image, image.channels, image.size, image.size)],
            [value(logits, logits.channels)],
            list(self._initializers.values()),
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="onnxlowrank"
        )

    def _node(
        self, operator: str, name: str, inputs: Sequence[str], output: str | None = None, **attributes: Any
    ) -> None:
        self._nodes.append(helper.make_node(operator, inputs, [output or name], name=name, **attributes))

    def _weight(self, name: str, *shape: int, centre: float = 0) -> str:
        if self._weights is not None:
            value = self._weights[name]
            if value.shape != shape:
                raise ValueError(f"weight {name} has shape {value.shape}, expected {shape}")
        elif len(shape) > 1:
            value = self._rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        else:
            value = self._rng.uniform(centre - 0.2, centre + 0.2, shape)
        return self._initializer(name, value.astype(np.float32, copy=False))

    def _initializer(self, name: str, value: np.ndarray | np.float32) -> str:
        self._initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name


def _features(net: _Network, x: _Tensor, table: Table, *, batch_norm: bool = False) -> _Tensor:
    """Append the rows of ``table``; with ``batch_norm`` the convolutions have no bias."""
    for row in table:
        match row:
            case Conv(name):
                x = net.conv(name, x, row.filters, row.kernel, row.stride, row.pad, bias=not batch_norm)
                if batch_norm:
                    x = net.batch_norm(f"{name}_bn", x)
                x = net.relu(f"{name}_relu", x)
            case MaxPool(name):
                x = net.max_pool(name, x, row.kernel, row.stride, row.end_pad)
            case Lrn(name):
                x = net.lrn(name, x)
    return x


def _classifier(net: _Network, x: _Tensor) -> _Tensor:
    for number, width in enumerate(HIDDEN, start=6):
        x = net.relu(f"fc{number}_relu", net.gemm(f"fc{number}", x, width))
    return net.gemm("fc8", x, IMAGENET_CLASSES, "logits")


def _average_and_classify(net: _Network, x: _Tensor, classes: int) -> _Tensor:
    return net.gemm("fc", net.flatten("flatten", net.global_average_pool("average_pool", x)), classes, "logits")


def vgg_cifar10(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Write the quick-start network to ``path``, BatchNormalization as nodes of its own.

    Args:
        path: the ONNX file.
        state: the PyTorch state dict of the network, an ``nn.Sequential`` whose modules are numbered through
            (``0.weight``, ``1.running_mean``, ...): Conv2d, BatchNorm2d, ReLU for every width and MaxPool2d for
            every ``"pool"`` of ``VGG_CIFAR10_WIDTHS``, then AdaptiveAvgPool2d, Flatten, Linear.

    Raises:
        KeyError: a weight is missing from ``state``.
        ValueError: a weight has another shape than the architecture's.
    """
    table = vgg_table(VGG_CIFAR10_WIDTHS)
    modules: list[str] = []
    for row in table:
        modules += [row.name, f"{row.name}_bn", f"{row.name}_relu"] if isinstance(row, Conv) else [row.name]
    modules += ["average_pool", "flatten", "fc"]

    weights = {}
    for name, value in state.items():
        index, key = name.split(".")
        weights[f"{modules[int(index)]}.{key}"] = value

    net, image = _Network(weights), _Tensor("image", 3, 32)
    x = _features(net, image, table, batch_norm=True)
    onnx.save(net.model("vgg_cifar10", image, _average_and_classify(net, x, 10)), path)


def overfeat() -> onnx.ModelProto:
    """The network of Denton et al. (2014): five convolutions of Zeiler and Fergus's kind, three large Gemms."""
    net, image = _Network(), _Tensor("image", 3, 224)
    x = net.flatten("flatten", _features(net, image, OVERFEAT))
    return net.model("overfeat", image, _classifier(net, x))


def spp10() -> onnx.ModelProto:
    """SPP-10 of Zhang et al. (2015), Table 1: seven convolutions, a spatial pyramid of 50 bins, three Gemms."""
    net, image = _Network(), _Tensor("image", 3, 224)
    x = _features(net, image, SPP10)
    levels = []
    for bins in SPP10_BINS:
        cell = x.size // bins
        levels.append(net.flatten(f"spp{bins}_flatten", net.max_pool(f"spp{bins}", x, cell, cell)))
    return net.model("spp10", image, _classifier(net, net.concat("spp", levels)))


def vgg16() -> onnx.ModelProto:
    """VGG-16 of Simonyan and Zisserman (2015) with its three Gemms, 553 MB."""
    net, image = _Network(), _Tensor("image", 3, 224)
    x = net.flatten("flatten", _features(net, image, VGG16))
    return net.model("vgg16", image, _classifier(net, x))


def resnet50() -> onnx.ModelProto:
    """ResNet-50 of He et al. (2016), v1: a stage's stride is that of its first 1x1 convolutions."""
    net, image = _Network(), _Tensor("image", 3, 224)

    def conv_bn(name: str, x: _Tensor, filters: int, kernel: int = 1, stride: int = 1) -> _Tensor:
        return net.batch_norm(f"{name}_bn", net.conv(name, x, filters, kernel, stride, kernel // 2, bias=False))

    x = net.relu("conv1_relu", conv_bn("conv1", image, 64, kernel=7, stride=2))
    x = net.max_pool("pool1", x, kernel=3, stride=2, end_pad=1)
    for stage, (width, blocks) in enumerate(RESNET50_STAGES, start=2):
        for block in range(1, blocks + 1):
            name = f"conv{stage}_{block}"
            stride = 2 if stage > 2 and block == 1 else 1
            y = net.relu(f"{name}a_relu", conv_bn(f"{name}a", x, width, stride=stride))
            y = net.relu(f"{name}b_relu", conv_bn(f"{name}b", y, width, kernel=3))
            y = conv_bn(f"{name}c", y, 4 * width)
            if block == 1:
                x = conv_bn(f"{name}_shortcut", x, 4 * width, stride=stride)
            x = net.relu(f"{name}_relu", net.add(f"{name}_add", y, x))
    return net.model("resnet50", image, _average_and_classify(net, x, IMAGENET_CLASSES))


def mobilenet_v2() -> onnx.ModelProto:
    """MobileNetV2 of Sandler et al. (2018), width 1: 1x1 expansion, depthwise 3x3, linear 1x1 projection."""
    net, image = _Network(), _Tensor("image", 3, 224)

    def conv_bn(name: str, x: _Tensor, filters: int, kernel: int = 1, stride: int = 1, group: int = 1) -> _Tensor:
        y = net.conv(name, x, filters, kernel, stride, kernel // 2, group=group, bias=False)
        return net.batch_norm(f"{name}_bn", y)

    x = net.relu6("stem_relu6", conv_bn("stem", image, 32, kernel=3, stride=2))
    block = 0
    for expansion, channels, repetitions, first_stride in MOBILENET_V2_STAGES:
        for stride in [first_stride] + [1] * (repetitions - 1):
            block += 1
            name, y = f"block{block}", x
            if expansion > 1:
                y = net.relu6(f"{name}_expand_relu6", conv_bn(f"{name}_expand", y, expansion * x.channels))
            y = conv_bn(f"{name}_depthwise", y, y.channels, kernel=3, stride=stride, group=y.channels)
            y = net.relu6(f"{name}_depthwise_relu6", y)
            y = conv_bn(f"{name}_project", y, channels)
            x = net.add(f"{name}_add", x, y) if stride == 1 and channels == x.channels else y
    x = net.relu6("head_relu6", conv_bn("head", x, 1280))
    return net.model("mobilenet_v2", image, _average_and_classify(net, x, IMAGENET_CLASSES))


BUILDERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "mobilenet_v2": mobilenet_v2,
    "overfeat": overfeat,
    "resnet50": resnet50,
    "spp10": spp10,
    "vgg16": vgg16,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a benchmark architecture with random weights as ONNX.")
    parser.add_argument("architecture", choices=BUILDERS)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    onnx.save(BUILDERS[args.architecture](), args.out)


if __name__ == "__main__":
    main()

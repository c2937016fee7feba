"""The ONNX builders against the figures of the papers, and against NumPy."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

SOURCE = Path(__file__).parents[1] / "models" / "architectures.py"
SPEC = importlib.util.spec_from_file_location("architectures", SOURCE)
assert SPEC is not None
assert SPEC.loader is not None
architectures = importlib.util.module_from_spec(SPEC)
sys.modules["architectures"] = architectures  # its annotations are looked up by module name
SPEC.loader.exec_module(architectures)


def run(model: onnx.ModelProto, batch: int = 2) -> np.ndarray:
    """Check ``model`` strictly and run it in onnxruntime on a batch of random images."""
    onnx.checker.check_model(model, full_check=True)
    size = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    image = np.random.default_rng(0).standard_normal((batch, *size), np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": image})[0]


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the inferred shape of every tensor for a batch of 1, and of every weight."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    single.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(single, strict_mode=True).graph
    inferred = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in graph.value_info}
    outputs = {v.name: (1, *(d.dim_value for d in v.type.tensor_type.shape.dim[1:])) for v in graph.output}
    return inferred | outputs | {w.name: tuple(w.dims) for w in graph.initializer}


def macs(model: onnx.ModelProto) -> float:
    """Count the multiply-accumulates of the Conv and Gemm nodes on one image."""
    shape = shapes(model)
    return sum(
        math.prod(shape[node.output[0]]) * math.prod(shape[node.input[1]][1:])
        for node in model.graph.node
        if node.op_type in {"Conv", "Gemm"}
    )


def walk(table: tuple, size: int = 224) -> Iterator[tuple[str, int, int, int]]:
    """Yield name, output channels, output size and multiply-accumulates of every row of a table."""
    channels = 3
    for row in table:
        count = 0
        if isinstance(row, architectures.Conv):
            size = (size + 2 * row.pad - row.kernel) // row.stride + 1
            count = row.filters * channels * row.kernel**2 * size**2
            channels = row.filters
        elif isinstance(row, architectures.MaxPool):
            size = (size + row.end_pad - row.kernel) // row.stride + 1
        yield row.name, channels, size, count


def narrow(table: tuple) -> tuple:
    """Return ``table`` with 4 filters in every convolution."""
    return tuple(row._replace(filters=4) if isinstance(row, architectures.Conv) else row for row in table)


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    """A state dict as PyTorch would name it, written out by hand."""
    rng = np.random.default_rng(1)
    convolutions = {
        0: (48, 3), 3: (48, 48), 7: (96, 48), 10: (96, 96), 14: (192, 96), 17: (192, 192), 21: (192, 192)
    }  # fmt: skip
    state: dict[str, np.ndarray] = {}
    for index, (filters, channels) in convolutions.items():
        state[f"{index}.weight"] = rng.normal(0, (2 / (9 * channels)) ** 0.5, (filters, channels, 3, 3))
        state[f"{index + 1}.weight"] = rng.uniform(0.5, 1.5, filters)
        state[f"{index + 1}.bias"] = rng.normal(0, 0.2, filters)
        state[f"{index + 1}.running_mean"] = rng.normal(0, 0.2, filters)
        state[f"{index + 1}.running_var"] = rng.uniform(0.5, 1.5, filters)
        state[f"{index + 1}.num_batches_tracked"] = np.int64(3)
    state["26.weight"] = rng.normal(0, 0.1, (10, 192))
    state["26.bias"] = rng.normal(0, 0.1, 10)
    return {name: np.asarray(value, np.float32) for name, value in state.items()}


@pytest.fixture(scope="module")
def vgg_path(state: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "vgg_cifar10.onnx"
    architectures.vgg_cifar10(path, state)
    return path


def test_vgg_cifar10_interface(vgg_path: Path) -> None:
    model = onnx.load(vgg_path)
    onnx.checker.check_model(model, full_check=True)
    assert vgg_path.stat().st_size <= 8e6
    assert model.ir_version == 8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    for value, name, shape in (
        (model.graph.input[0], "image", ["N", 3, 32, 32]),
        (model.graph.output[0], "logits", ["N", 10]),
    ):
        assert value.name == name
        assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == shape


def test_vgg_cifar10_nodes(vgg_path: Path) -> None:
    nodes = onnx.load(vgg_path).graph.node
    block = [("Conv", "{}"), ("BatchNormalization", "{}_bn"), ("Relu", "{}_relu")]
    expected = []
    for stage, convolutions in ((1, 2), (2, 2), (3, 2), (4, 1)):
        for index in range(1, convolutions + 1):
            expected += [(operator, name.format(f"conv{stage}_{index}")) for operator, name in block]
        if stage < 4:
            expected.append(("MaxPool", f"pool{stage}"))
    expected += [("GlobalAveragePool", "average_pool"), ("Flatten", "flatten"), ("Gemm", "fc")]
    assert [(node.op_type, node.name) for node in nodes] == expected
    assert all(len(node.input) == 2 for node in nodes if node.op_type == "Conv")


def test_vgg_cifar10_weights_are_those_given(vgg_path: Path, state: dict[str, np.ndarray]) -> None:
    written = {w.name: numpy_helper.to_array(w) for w in onnx.load(vgg_path).graph.initializer}
    assert len(written) == 7 * 5 + 2
    for name, source in {
        "conv1_1.weight": "0.weight",
        "conv1_1_bn.running_var": "1.running_var",
        "conv2_1.weight": "7.weight",
        "conv4_1_bn.bias": "22.bias",
        "fc.weight": "26.weight",
        "fc.bias": "26.bias",
    }.items():
        np.testing.assert_array_equal(written[name], state[source])


def test_vgg_cifar10_first_block_by_hand(vgg_path: Path, state: dict[str, np.ndarray]) -> None:
    model = onnx.load(vgg_path)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info("conv1_1_relu"))
    image = np.random.default_rng(2).standard_normal((2, 3, 32, 32), np.float32)
    logits, response = ReferenceEvaluator(model).run(["logits", "conv1_1_relu"], {"image": image})
    assert logits.shape == (2, 10)

    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    y = np.einsum("nchwij,fcij->nfhw", patches, state["0.weight"])
    scale = state["1.weight"] / np.sqrt(state["1.running_var"] + 1e-5)
    shift = state["1.bias"] - state["1.running_mean"] * scale
    expected = np.maximum(y * scale[:, None, None] + shift[:, None, None], 0)
    np.testing.assert_allclose(response, expected, atol=1e-5)


def test_vgg_cifar10_macs_and_output(vgg_path: Path) -> None:
    model = onnx.load(vgg_path)
    per_pixel = 9 * (3 * 48 + 48 * 48) * 1024 + 9 * (48 * 96 + 96 * 96) * 256 + 9 * (96 * 192 + 192 * 192) * 64
    assert macs(model) == per_pixel + 9 * 192 * 192 * 16 + 192 * 10
    assert np.ptp(run(model), axis=0).min() > 0


def test_a_weight_of_another_shape_is_refused(state: dict[str, np.ndarray], tmp_path: Path) -> None:
    wrong = state | {"3.weight": state["0.weight"]}
    with pytest.raises(ValueError, match=r"conv1_2\.weight has shape \(48, 3, 3, 3\), expected \(48, 48, 3, 3\)"):
        architectures.vgg_cifar10(tmp_path / "wrong.onnx", wrong)


def test_spp10_is_table_1_of_zhang() -> None:
    rows = {name: (size, count) for name, _, size, count in walk(architectures.SPP10)}
    total = sum(count for _, count in rows.values())
    expected = {
        "conv1": (109, 3.8), "pool1": (37, 0), "conv2": (35, 17.3), "pool2": (18, 0), "conv3": (18, 8.8),
        "conv4": (18, 17.5), "conv5": (18, 17.5), "conv6": (18, 17.5), "conv7": (18, 17.5),
    }  # fmt: skip
    assert {name: size for name, (size, _) in rows.items()} == {name: size for name, (size, _) in expected.items()}
    for name, (_, percent) in expected.items():
        assert 100 * rows[name][1] / total == pytest.approx(percent, abs=0.06)
    assert sum(bins**2 for bins in architectures.SPP10_BINS) == 50


def test_vgg16_is_table_5_of_zhang() -> None:
    rows = [row for row in walk(architectures.VGG16) if row[3]]
    total = sum(count for *_, count in rows)
    assert total == pytest.approx(15.35e9, rel=1e-3)
    percents = [0.6, 12.0, 6.0, 12.0, 6.0, 12.1, 12.1, 6.0, 12.1, 12.1, 3.0, 3.0, 3.0]
    assert [100 * count / total for *_, count in rows] == pytest.approx(percents, abs=0.06)
    assert [size for _, _, size, _ in rows] == [224] * 2 + [112] * 2 + [56] * 3 + [28] * 3 + [14] * 3
    assert [name for name, *_ in rows][-3:] == ["conv5_1", "conv5_2", "conv5_3"]


def test_overfeat_agrees_with_the_tables_of_denton() -> None:
    rows = {name: (channels, size, count) for name, channels, size, count in walk(architectures.OVERFEAT)}
    channels, size, _ = rows["pool5"]
    fc6, fc7 = architectures.HIDDEN
    for inputs, outputs, rank, reduction in (
        (channels * size**2, fc6, 250, 13.4),
        (channels * size**2, fc6, 950, 3.5),
        (fc6, fc7, 350, 5.8),
        (fc6, fc7, 650, 3.14),
    ):  # Table 2: "reduction in weights"
        assert inputs * outputs / (rank * (inputs + outputs)) == pytest.approx(reduction, rel=0.01)
    seconds = {"conv2": 0.4663, "conv3": 0.2219, "conv4": 0.1991, "conv5": 0.1958}  # supplement, Table 1, GPU
    total = sum(rows[name][2] for name in seconds)
    for name, time in seconds.items():
        assert rows[name][2] / total == pytest.approx(time / sum(seconds.values()), abs=0.03)


@pytest.mark.parametrize(
    ("name", "table", "hidden_inputs"),
    [("vgg16", "VGG16", 4 * 49), ("spp10", "SPP10", 4 * 50), ("overfeat", "OVERFEAT", 4 * 36)],
)
def test_the_large_networks_run_when_made_narrow(
    name: str, table: str, hidden_inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architectures, table, narrow(getattr(architectures, table)))
    monkeypatch.setattr(architectures, "HIDDEN", (16, 16))
    model = architectures.BUILDERS[name]()
    shape = shapes(model)
    for row_name, channels, size, _ in walk(getattr(architectures, table)):
        assert shape[row_name] == (1, channels, size, size)
    assert shape["fc6.weight"] == (16, hidden_inputs)
    assert [node.name for node in model.graph.node if node.op_type == "Gemm"] == ["fc6", "fc7", "fc8"]
    assert run(model).shape == (2, 1000)


@pytest.mark.parametrize(
    ("name", "gigamacs", "megaparameters", "convolutions"),
    [("resnet50", 3.86, 25.56, 53), ("mobilenet_v2", 0.300, 3.50, 52)],
)
def test_total_macs_and_parameters(name: str, gigamacs: float, megaparameters: float, convolutions: int) -> None:
    model = architectures.BUILDERS[name]()
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == operators.count("BatchNormalization") == convolutions
    assert macs(model) / 1e9 == pytest.approx(gigamacs, rel=0.005)
    trained = [w for w in model.graph.initializer if "running" not in w.name]
    assert sum(math.prod(w.dims) for w in trained) / 1e6 == pytest.approx(megaparameters, abs=0.01)
    logits = run(model)
    assert logits.shape == (2, 1000)
    assert np.isfinite(logits).all()
    assert np.ptp(logits) > 0


def test_names_are_unique_and_weights_repeatable() -> None:
    first, second = architectures.mobilenet_v2(), architectures.mobilenet_v2()
    assert first == second
    names = [node.name for node in first.graph.node]
    assert len(set(names)) == len(names)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.onnx"
    monkeypatch.setattr(sys, "argv", ["architectures.py", "mobilenet_v2", str(out)])
    architectures.main()
    assert onnx.load(out).graph.name == "mobilenet_v2"

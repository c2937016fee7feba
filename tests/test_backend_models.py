"""The models that ONNX tests its backends with: every one that has a layer of a kind we know, or nearly know.

Some with weights as they are, which are inputs, and all with their weights baked in.
"""

import re
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.pipeline import Feeds, check
from helpers.stopwatch import no_stopwatch
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.version_converter import convert_version

from onnxlowrank.graph.walk import opset

pytestmark = pytest.mark.slow
OPS = ("Conv", "Gemm", "MatMul", "ConvTranspose")
NEWEST_IR = 13
"""That onnxruntime 1.31 reads."""
FOLDERS = ("node", "simple", "pytorch-converted", "pytorch-operator")
GOALS = [{"target": "macs", "speedup": 1.5}, {"max_macs": 1}, {"max_macs": 1e12}]


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    no_stopwatch(monkeypatch, block=1)


@cache
def stored() -> dict[str, Path]:
    """Return the models that lie in the package, by their names; older releases have more of them."""
    data = Path(onnx.__file__).parent / "backend/test/data"
    paths = [path for folder in FOLDERS for path in (data / folder).glob("*/model.onnx")]
    return {f"{path.parts[-3]}/{path.parts[-2]}": path for path in paths}


@cache
def generated() -> dict[str, tuple[ModelProto, dict[str, np.ndarray]]]:
    """Return the models that the package makes, with their inputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [case for case in collect_testcases(None) if case.model is not None]
    return {
        f"generated/{case.name}": (
            case.model,
            {value.name: one for value, one in zip(case.model.graph.input, case.data_sets[0][0], strict=False)},
        )
        for case in cases
    }


def read(path: Path) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """Return a model of the package, with its inputs."""
    model = onnx.load(path)
    initialised = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in initialised]
    tensors = {}
    for file in (path.parent / "test_data_set_0").glob("input_*.pb"):
        number = int(re.findall(r"\d+", file.name)[0])
        tensors[names[number]] = numpy_helper.to_array(TensorProto.FromString(file.read_bytes()))
    return model, tensors


def cases() -> Iterator[tuple[str, ModelProto, dict[str, np.ndarray]]]:
    """Yield the models that have a node of interest, with what they are fed."""
    everything = {**{name: read(path) for name, path in stored().items()}, **generated()}
    for name, (model, feeds) in everything.items():
        tensors = all(isinstance(value, np.ndarray) for value in feeds.values())
        if tensors and any(node.op_type in OPS for node in model.graph.node):
            yield name, readable(model), feeds


def readable(model: ModelProto) -> ModelProto:
    """Return a model in versions that can be read: those of the stored ones are old, of the generated ones new."""
    known = convert_version(model, 11) if opset(model) < 9 else ModelProto.FromString(model.SerializeToString())
    known.ir_version = min(max(known.ir_version, 4), NEWEST_IR)
    return known


def baked(model: ModelProto, feeds: dict[str, np.ndarray]) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """Return the model with the weights among its inputs as initializers, and what is left to feed."""
    weights = {name for node in model.graph.node if node.op_type in OPS for name in node.input[1:]} & feeds.keys()
    weights -= {node.input[0] for node in model.graph.node if node.op_type in OPS}
    known = ModelProto.FromString(model.SerializeToString())
    inputs = [value for value in model.graph.input if value.name not in weights]
    del known.graph.input[:]
    known.graph.input.extend(inputs)
    known.graph.initializer.extend(numpy_helper.from_array(feeds[name], name) for name in sorted(weights))
    return known, {name: value for name, value in feeds.items() if name not in weights}


def varied(feeds: dict[str, np.ndarray]) -> Feeds:
    """Return a few inputs like these: other numbers where they are real ones."""
    rng = np.random.default_rng(0)
    return [
        {
            name: (value + 0.1 * i * rng.standard_normal(value.shape)).astype(value.dtype)
            if value.dtype.kind == "f"
            else value
            for name, value in feeds.items()
        }
        for i in range(4)
    ]


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: next(reversed(goal)))
@pytest.mark.parametrize("bake", [False, True], ids=["as it is", "baked"])
def test_every_model(bake, goal):
    looked_at = 0
    for name, model, feeds in cases():
        if bake:
            model, feeds = baked(model, feeds)
        if not feeds:
            continue
        try:
            check(model, varied(feeds), goal)
        except BaseException as error:
            error.add_note(f"model {name}")
            raise
        looked_at += 1
    assert looked_at > 100

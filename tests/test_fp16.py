"""Half-precision networks, made and given, through the whole pipeline."""

import json
from importlib import resources

import jsonschema
import numpy as np
import onnx
import pytest
from helpers.models import error, run
from helpers.stopwatch import no_stopwatch
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from test_int8 import network
from test_pipeline import smooth

from onnxlowrank import ModelError, analyze, optimize
from onnxlowrank.graph.widen import is_half, widened

HOW = {"target": "macs", "speedup": 1.5, "passes": ["channel"]}


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    no_stopwatch(monkeypatch, 4)


def weights(model):
    return {one.name: one.data_type for one in model.graph.initializer if len(one.dims) > 1}


def test_it_is_written_for_cuda(tmp_path):
    given, unseen = network(), smooth(16, seed=9)
    half = optimize(given, tmp_path / "half.onnx", calibration=smooth(24), evaluate=unseen, precision="fp16", **HOW)
    float32 = optimize(given, calibration=smooth(24), evaluate=unseen, **HOW)
    written = onnx.load(tmp_path / "half.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert set(weights(written).values()) == {TensorProto.FLOAT16}
    assert {one.type.tensor_type.elem_type for one in [*written.graph.input, *written.graph.output]} == {1}
    assert [layer.method for layer in half.layers] == [layer.method for layer in float32.layers]
    assert {layer.precision for layer in half.layers} == {"fp16"}
    assert error(run(written, x=unseen)[0], run(float32.model, x=unseen)[0]) < 0.01
    assert half.after.file_bytes < 0.65 * float32.after.file_bytes
    assert any("does not pay on the CPU" in note for note in half.notes)
    schema = json.loads(resources.files("onnxlowrank.report.schema").joinpath("optimize.json").read_text())
    jsonschema.validate(json.loads(json.dumps(half.to_dict())), schema)


def test_what_is_out_of_its_range_stays_in_float32():
    given = network()
    by_name = {one.name: one for one in given.graph.initializer}
    for name, factor in (("wa", 1e4), ("ba", 1e4), ("wc", 1e-4), ("wb", 1.0), ("bb", 1e4)):
        by_name[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(by_name[name]) * np.float32(factor), name))
    unseen = smooth(16, seed=9)
    result = optimize(
        given, calibration=smooth(24), evaluate=unseen, precision="fp16", max_macs=1e12, passes=["channel"]
    )
    precisions = {layer.name: layer.precision for layer in result.layers}
    assert precisions == {"n_a": "float32", "n_b": "float32", "n_c": "float32", "n_y": "fp16"}
    assert [bool(layer.float32_because) for layer in result.layers] == [True, True, True, False]
    assert error(run(result.model, x=unseen)[0], run(given, x=unseen)[0]) < 0.01


def test_a_half_precision_network_stays_one():
    float32 = network()
    given = convert_float_to_float16(network(), keep_io_types=False)
    data = [{"x": one["x"].astype(np.float16)} for one in feeds()]
    result = optimize(given, calibration=data, **HOW)
    assert result.reached
    assert {layer.precision for layer in result.layers} == {"fp16"}
    assert [one.type.tensor_type.elem_type for one in result.model.graph.input] == [TensorProto.FLOAT16]
    assert [one.type.tensor_type.elem_type for one in result.model.graph.output] == [TensorProto.FLOAT16]
    assert set(weights(result.model).values()) == {TensorProto.FLOAT16}
    assert not any("does not pay" in note for note in result.notes)
    wanted = optimize(float32, calibration=feeds(), **HOW)
    assert [layer.method for layer in result.layers] == [layer.method for layer in wanted.layers]
    x = feeds()[0]["x"]
    assert error(run(result.model, x=x.astype(np.float16))[0], run(wanted.model, x=x)[0]) < 0.05


def test_a_half_precision_network_is_analysed():
    given = convert_float_to_float16(network(), keep_io_types=False)
    data = [{"x": one["x"].astype(np.float16)} for one in feeds()]
    found = analyze(given, calibration=data, passes=["channel"])
    wanted = analyze(network(), calibration=feeds(), passes=["channel"])
    assert [layer.name for layer in found.layers] == [layer.name for layer in wanted.layers]
    for one, other in zip(found.layers, wanted.layers, strict=True):
        assert abs(one.rank(0.95) - other.rank(0.95)) <= 1


def feeds():
    x = smooth(24)
    return [{"x": x[index : index + 1]} for index in range(24)]


def test_widened_networks_compute_the_same():
    given = convert_float_to_float16(network(), keep_io_types=False)
    assert is_half(given)
    assert not is_half(network())
    wide = widened(given)
    onnx.checker.check_model(wide, full_check=True)
    assert not is_half(wide)
    x = smooth(4).astype(np.float16)
    assert run(wide, x=x)[0].dtype == np.float16
    assert error(run(wide, x=x)[0], run(given, x=x)[0]) < 0.02


def test_bfloat16_is_refused():
    given = network()
    weight = next(one for one in given.graph.initializer if one.name == "wb")
    weight.data_type, weight.raw_data = TensorProto.BFLOAT16, weight.raw_data[::2]
    with pytest.raises(ModelError, match="bfloat16 weights"):
        optimize(given, calibration=smooth(8), **HOW)

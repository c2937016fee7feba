"""Weights that stay outside the model, as those beyond 2 GiB: the limit is made small here."""

import numpy as np
import onnx
import pytest
from helpers.models import normal, parse

from onnxlowrank.errors import DamagedModelError
from onnxlowrank.graph.load import load, save
from onnxlowrank.graph.outside import apart, byte_count, checkable, digest, is_large, refers_elsewhere, values
from onnxlowrank.measure.sessions import all_threads, open_session
from onnxlowrank.pipeline import optimize

RNG = np.random.default_rng(0)


@pytest.fixture
def model():
    low = normal(RNG, 64, 6) @ normal(RNG, 6, 48) + normal(RNG, 64, 48) / 50
    return parse(
        """g (float[N, 16] x) => (float[N, 8] y) {
            a = Gemm <transB = 1> (x, w, b)
            r = Relu (a)
            c = Gemm <transB = 1> (r, v)
            y = MatMul (c, u)
        }""",
        w=normal(RNG, 48, 16),
        b=normal(RNG, 48),
        v=low,
        u=normal(RNG, 64, 8),
    )


@pytest.fixture
def large(model, tmp_path, monkeypatch):
    """The same model from a file, its weights outside."""
    monkeypatch.setattr("onnxlowrank.graph.outside.LARGEST_PROTOBUF", 4000)
    save(model, tmp_path / "net.onnx")
    return load(tmp_path / "net.onnx")


def test_the_model_is_small_and_its_values_are_the_same(model, large):
    assert large.ByteSize() < 2000 < 10_000 < byte_count(large)
    assert is_large(large)
    small = {tensor.name for tensor in large.graph.initializer if tensor.HasField("raw_data")}
    assert small == {"b"}
    for one, other in zip(model.graph.initializer, large.graph.initializer, strict=True):
        np.testing.assert_array_equal(values(one), values(other))
        assert not refers_elsewhere(other)
    copy = onnx.ModelProto()
    copy.CopyFrom(large)
    assert load(copy) == copy


def test_sessions_are_given_what_is_outside(model, large):
    x = normal(RNG, 3, 16)
    (expected,) = open_session(model, all_threads()).run(None, {"x": x})
    (found,) = open_session(large, all_threads()).run(None, {"x": x})
    np.testing.assert_array_equal(found, expected)


def test_what_is_inside_is_parted_where_that_is_too_large(model, large):
    skeleton, parted = apart(model)  # as a network of new weights may be
    assert set(parted) == {"w", "v", "u"}
    assert skeleton.ByteSize() < 2000
    (expected, found) = (
        open_session(one, all_threads()).run(None, {"x": np.ones((1, 16), "f")}) for one in (large, model)
    )
    np.testing.assert_array_equal(found, expected)


def test_the_checker_needs_no_files(large):
    onnx.checker.check_model(checkable(large))
    wrong = onnx.ModelProto()
    wrong.CopyFrom(large)
    wrong.graph.node[0].input[1] = "nothing"
    with pytest.raises(onnx.checker.ValidationError, match="nothing"):
        onnx.checker.check_model(checkable(wrong))


def test_digests_tell_values_apart(large, tmp_path):
    before = digest(large)
    data = bytearray((tmp_path / "net.onnx.data").read_bytes())
    data[-1] ^= 1
    (tmp_path / "net.onnx.data").write_bytes(data)
    assert digest(load(tmp_path / "net.onnx")) != before


def test_data_that_are_not_whole(large, tmp_path):
    data = (tmp_path / "net.onnx.data").read_bytes()
    (tmp_path / "net.onnx.data").write_bytes(data[:-1])
    with pytest.raises(DamagedModelError, match=r"'u' is not whole in net\.onnx\.data"):
        load(tmp_path / "net.onnx")
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(DamagedModelError, match="missing or damaged"):
        load(tmp_path / "net.onnx")


def test_the_whole_way_gives_the_same_network(model, large, tmp_path, monkeypatch):
    x = normal(RNG, 64, 16)
    asked = {"max_macs": 3000, "only": ["n_c"], "calibration": {"x": x}}
    result = optimize(tmp_path / "net.onnx", tmp_path / "out.onnx", **asked)
    written = load(tmp_path / "out.onnx")
    monkeypatch.undo()
    expected = optimize(model, **asked)
    assert [layer.setting for layer in result.layers] == [layer.setting for layer in expected.layers]
    assert any(layer.method == "fully_connected" for layer in result.layers)
    (one,), (other,) = (open_session(net, all_threads()).run(None, {"x": x}) for net in (written, expected.model))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert result.before.file_bytes == pytest.approx(expected.before.file_bytes, rel=0.1)

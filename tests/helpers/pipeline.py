"""The whole pipeline over a network, and what has to hold whatever the network."""

import numpy as np
import onnx
import onnxruntime

from onnxlowrank import OnnxLowRankError, optimize
from onnxlowrank.graph.verify import fed
from onnxlowrank.inputs.specs import input_specs

Feeds = list[dict[str, np.ndarray]]


def run(model: onnx.ModelProto, feeds: Feeds) -> list[list[np.ndarray]]:
    """Return the outputs of a network as it stands."""
    how = onnxruntime.SessionOptions()
    how.log_severity_level = 4
    how.intra_op_num_threads = 1
    how.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), how, providers=["CPUExecutionProvider"])
    return [session.run(None, one) for one in feeds]


def interface(model: onnx.ModelProto) -> list[bytes]:
    """Return what a caller has to know."""
    return [value.SerializeToString(deterministic=True) for value in (*fed(model), *model.graph.output)]


def assert_one_sentence(message: str) -> None:
    assert "please report" not in message
    assert "Traceback" not in message
    assert len(message) < 900


def check(model: onnx.ModelProto, feeds: Feeds, arguments: dict[str, object], twice: bool = False) -> None:
    """Optimise a network and look at what comes of it.

    Args:
        model: The network.
        feeds: Its inputs.
        arguments: Of ``optimize``.
        twice: Whether to look if a second time gives the same.
    """
    before = model.SerializeToString(deterministic=True)
    try:
        result = optimize(model, calibration=feeds, **arguments)
    except OnnxLowRankError as error:
        assert_one_sentence(str(error))
        return
    assert model.SerializeToString(deterministic=True) == before
    assert interface(result.model) == interface(model)
    assert input_specs(result.model) == input_specs(model)
    onnx.checker.check_model(result.model)
    kept = all(layer.method == "keep" for layer in result.layers)
    assert all(layer.kept_because for layer in result.layers if layer.method == "keep")
    if kept and arguments.get("precision") != "int8":
        assert result.model.SerializeToString(deterministic=True) == before
    for had, has in zip(run(model, feeds), run(result.model, feeds), strict=True):
        for one, other in zip(had, has, strict=True):
            if not isinstance(one, np.ndarray) or one.dtype.kind not in "fiub":
                continue
            assert one.shape == other.shape
            assert np.isfinite(other[np.isfinite(one)]).all()
    if twice:
        again = optimize(model, calibration=feeds, **arguments)
        assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)

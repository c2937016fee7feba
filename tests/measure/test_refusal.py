"""Why onnxruntime refuses a network, and what to do."""

import numpy as np
import pytest
from helpers.models import parse

from onnxlowrank.errors import FailedRunError, RefusedModelError
from onnxlowrank.measure.refusal import told
from onnxlowrank.measure.sessions import all_threads, open_session, running

UPGRADE = "upgrade onnxruntime, or convert the network with onnx.version_converter"
RELU = "g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }"
CUSTOM = "g (float[N, 3] x) => (float[N, 3] y) { y = com.acme.Twist (x) }"
UNKNOWN = "g (float[N, 3] x) => (float[N, 3] y) { y = Twist (x) }"
DOUBLE = "g (double[N, 3, 8, 8] x, double[4, 3, 3, 3] w) => (double[N, 4, 6, 6] y) { y = Conv (x, w) }"
DANGLING = "g (float[N, 3] x) => (float[N, 3] y) { y = Relu (z) }"


def custom():
    model = parse(CUSTOM)
    model.opset_import.add(domain="com.acme", version=1)
    return model


@pytest.mark.parametrize(
    ("model", "why", "advice"),
    [
        (
            parse(RELU, ir=99),
            r"\(Unsupported model IR version: 99, max supported IR version: \d+\)",
            UPGRADE,
        ),
        (
            parse(RELU, opset=99),
            r"\(ONNX Runtime only .* for domain ai.onnx is till opset \d+\)",
            UPGRADE,
        ),
        (
            custom(),
            r"com.acme:Twist",
            "the operator com.acme:Twist needs its library of custom operators: name it with --custom-ops LIBRARY",
        ),
        (parse(UNKNOWN), "Twist", "Twist is no operator of opset 17"),
        (parse(DOUBLE), r"implementation for Conv\(11\)", "convert the network to float32"),
        (parse(DANGLING), "'z'", "export it again"),
    ],
)
def test_the_whole_reason_is_told_with_advice_that_fits(model, why, advice):
    with pytest.raises(RefusedModelError, match=rf"^onnxruntime cannot load the model .*{why}.*; .*{advice}") as caught:
        open_session(model, all_threads())
    assert "ONNXRuntimeError" not in str(caught.value)
    assert ".cc" not in str(caught.value)
    if advice != "export it again":
        assert "export it again" not in str(caught.value)


def test_a_failed_run_is_told_whole():
    model = parse(
        "g (float[N, 3] x, int64[S] s) => (float[A] y) { y = Reshape (x, s) }",
    )
    feeds = {"x": np.zeros((2, 3), np.float32), "s": np.array([7])}
    session = open_session(model, all_threads())
    says = r"'x' \[2, 3\].*Input shape:\{2,3\}, requested shape:\{7\}\)"
    with pytest.raises(FailedRunError, match=says) as caught, running(feeds):
        session.run(None, feeds)
    assert ".h:" not in str(caught.value)
    assert "::" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("plain words.", "plain words"),
        ("[ONNXRuntimeError] : 1 : FAIL : Fatal error: a:B(-1)", "Fatal error: a:B(-1)"),
        (
            "[ONNXRuntimeError] : 1 : FAIL : /src/core/model.cc:256 n::A::A(x::Y&&, const std::map<int, f(int)>&) "
            "Unsupported (really)",
            "Unsupported (really)",
        ),
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code while running N node. Status Message: "
            "/src/a.h:91 ns::F<T>::F(int) [with T = float] a == b was false. It broke",
            "Non-zero status code while running N node. Status Message: It broke",
        ),
    ],
)
def test_places_in_the_source_are_left_out(said, shown):
    assert told(RuntimeError(said)) == shown

"""How sessions are opened. Where there is a GPU, onnxruntime's part is played by a stand-in."""

import time
from typing import Any

import numpy as np
import pytest
from helpers.models import conv_model, normal

from onnxlowrank.errors import OptionError, ProviderError
from onnxlowrank.measure import sessions as runtime
from onnxlowrank.measure.sessions import Target, open_session

RNG = np.random.default_rng(6)


class Session:
    def __init__(self, source: bytes, options: Any, providers: list[Any], enable_fallback: bool = True) -> None:
        assert not enable_fallback  # which would print to standard output and go on with the CPU
        (name, settings), rest = providers
        if "foo" in settings:
            raise RuntimeError("Unknown provider option: foo\nsomewhere")
        self.asked, self.rest, self.started = (name, settings), rest, name

    def get_providers(self) -> list[str]:
        return [self.started, self.rest]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.ort, "InferenceSession", Session)
    monkeypatch.setattr(runtime.ort, "get_available_providers", lambda: list(runtime.PROVIDERS.values()))
    monkeypatch.setattr(runtime.ort, "preload_dlls", lambda: None, raising=False)


def test_options_of_cuda_are_handed_on(gpu: None) -> None:
    target = Target("cuda:use_tf32=0:cudnn_conv_algo_search=HEURISTIC")
    target.check()
    session = runtime.open_session("model.onnx", target)
    assert isinstance(session, Session)
    assert session.asked == ("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})
    assert session.rest == "CPUExecutionProvider"
    plain = runtime.open_session("model.onnx", Target("cuda"))
    assert isinstance(plain, Session)
    assert plain.asked == ("CUDAExecutionProvider", {})


def test_options_that_onnxruntime_refuses(gpu: None) -> None:
    with pytest.raises(
        ProviderError, match=r"^--provider cuda:foo=1 .*Unknown provider option: foo\).*correct its options or use"
    ):
        Target("cuda:foo=1").check()


@pytest.mark.parametrize("provider", ["cpu:use_tf32=0", "cuda:", "cuda:use_tf32", "cuda:use_tf32="])
def test_options_that_are_none(gpu: None, provider: str) -> None:
    with pytest.raises(OptionError, match="is not understood; write cpu, cuda or"):
        Target(provider).check()


def test_a_gpu_that_does_not_start(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "get_providers", lambda self: [self.rest])
    with pytest.raises(ProviderError, match="CUDAExecutionProvider does not start on this machine"):
        Target("cuda").check()


def test_threads_rest_between_runs() -> None:
    session = open_session(conv_model(normal(RNG, 32, 32, 3, 3)), Target(threads=2))
    (name,) = (value.name for value in session.get_inputs())
    burnt = []
    for _ in range(5):
        session.run(None, {name: normal(RNG, 1, 32, 64, 64)})
        start = time.process_time()
        time.sleep(0.05)
        burnt.append(time.process_time() - start)
    assert min(burnt) < 0.01

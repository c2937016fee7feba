"""Networks with operators of a library: ``--custom-ops`` makes every session know them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.models import normal, parse

from onnxlowrank import OptionError, custom_operators

extensions = pytest.importorskip("onnxruntime_extensions")
LIBRARY = extensions.get_library_path()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a network whose activation is an operator of the library: what is positive, and what not."""
    folder, rng = tmp_path_factory.mktemp("custom"), np.random.default_rng(0)
    model = parse(
        """g (float[N, 32, 8, 8] x) => (float[N, 8, 8, 8] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            n, p = ai.onnx.contrib.NegPos (a)
            y = Conv (p, v)
        }""",
        w=(normal(rng, 32, 4) @ normal(rng, 4, 288) / 34).reshape(32, 32, 3, 3),
        v=normal(rng, 8, 32, 1, 1),
    )
    model.opset_import.add(domain="ai.onnx.contrib", version=1)
    onnx.save(model, folder / "net.onnx")
    np.save(folder / "x.npy", normal(rng, 24, 32, 8, 8))
    return folder


def call(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxlowrank", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)


def test_a_network_of_a_library_is_optimised_and_compared(place: Path) -> None:
    given = ("--calibration", "x.npy", "--target", "macs", "--speedup", "1.5", "--rank", "n_a=channel:16")
    library = ("--custom-ops", os.path.relpath(LIBRARY, place))
    ended = call(place, "optimize", "net.onnx", "fast.onnx", *given, *library)
    assert ended.returncode == 0, ended.stderr
    assert "channel d'=16" in ended.stdout
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(LIBRARY)
    onnxruntime.InferenceSession(place / "fast.onnx", options, providers=["CPUExecutionProvider"])
    ended = call(place, "compare", "net.onnx", "fast.onnx", "--seconds", "0.2", *library)  # in another process, too
    assert ended.returncode == 0, ended.stderr


def test_without_the_library_the_error_says_what_is_missing(place: Path) -> None:
    ended = call(place, "profile", "net.onnx")
    assert ended.returncode == 2
    assert "ai.onnx.contrib:NegPos needs its library of custom operators: name it with --custom-ops" in ended.stderr


def test_what_is_no_library_is_one_sentence(place: Path) -> None:
    ended = call(place, "profile", "net.onnx", "--custom-ops", "x.npy")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error[E300]: --custom-ops ")
    assert "x.npy cannot be loaded" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_context_ends() -> None:
    before = dict(os.environ)
    with custom_operators([LIBRARY]):
        assert dict(os.environ) != before
    assert dict(os.environ) == before
    with pytest.raises(OptionError), custom_operators(["nothing.so"]):
        pass

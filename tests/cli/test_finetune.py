"""``finetune`` as a process: what it writes and says, what it refuses, and how it is stopped."""

import json
import signal
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from helpers.int8 import quantised
from helpers.models import parse, run
from helpers.pairs import pair, samples
from helpers.processes import EARLIER, Command, finish, folders, images, start

pytest.importorskip("torch")

NETWORKS = ("finetune", "../in/net.onnx", "../in/fast.onnx", "out.onnx")
DATA = ("out.onnx", "--data", "../in/images", "--preprocess", "unit")
GOOD = (*NETWORKS[:3], *DATA)
INT8 = ("finetune", "../in/net.onnx", "../in/int8.onnx", *DATA)
DYNAMIC = """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    q, s, z = DynamicQuantizeLinear (x)  d = DequantizeLinear (q, s, z)  p = GlobalAveragePool (d)
    f = Flatten (p)  y = Gemm <transB = 1> (f, w)
}"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """On cores that other tests keep busy threads of PyTorch wait for one another."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("finetune")
    given = parent / "in"
    given.mkdir()
    for name, model in zip(("net", "fast"), pair(), strict=True):
        (given / f"{name}.onnx").write_bytes(model.SerializeToString())
    for name, model in zip(("alone", "int8"), pair(), strict=True):
        (given / f"{name}.onnx").write_bytes(quantised(model, samples(16), weight_bits=7).SerializeToString())
    dynamic = parse(DYNAMIC, w=np.ones((5, 3), np.float32))
    (given / "dynamic.onnx").write_bytes(dynamic.SerializeToString())
    images(given / "images", 48)
    images(given / "three", 3)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    np.savez(given / "wrong.npz", images=pixels, labels=np.arange(32) % 7)
    np.savez(given / "bare.npz", images=pixels)
    return parent


def test_it_writes_and_reports(command: Command) -> None:
    ended = command(*GOOD, "--steps", "25", "--evaluate", "../in/bare.npz", "--json", "--html", "r.html")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    schema = Path(__file__).parents[2] / "onnxlowrank" / "report" / "schema" / "finetune.json"
    jsonschema.validate(found, json.loads(schema.read_text()))
    assert found["loss_after"] < found["loss_before"]
    assert (found["labels"], found["augment"]) == (False, ["flip", "shift"])
    assert (found["samples"], found["held_out"], found["steps"]) == (42, 6, 25)
    assert found["after"]["relative_error"] != found["before"]["relative_error"]
    assert ended.files == ["out.onnx", "r.html"]
    assert ended.temporary == []
    given = onnx.load(ended.folder.parent / "in" / "fast.onnx")
    written = onnx.load(ended.folder / "out.onnx")
    assert [node.name for node in written.graph.node] == [node.name for node in given.graph.node]
    x = np.ones((2, 3, 8, 8), np.float32)
    assert (run(written, x=x)[0] != run(given, x=x)[0]).any()


def test_int8_networks(command: Command) -> None:
    ended = command(*INT8, "--steps", "25", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["loss_after"] < found["loss_before"]
    written = onnx.load(ended.folder / "out.onnx")
    assert "QuantizeLinear" in {node.op_type for node in written.graph.node}
    assert ended.files == ["out.onnx"]


REFUSED = {
    "another kind of int8": (("finetune", "../in/net.onnx", "../in/dynamic.onnx", *DATA), "E103", "is a Dynamic"),
    "int8 without a chain": (
        ("finetune", "../in/net.onnx", "../in/alone.onnx", *DATA, "--tune", "chains"),
        "E303",
        "all",
    ),
    "three images": ((*NETWORKS, "--data", "../in/three"), "E203", "there are only 3 images in"),
    "labels that do not fit": ((*NETWORKS, "--data", "../in/wrong.npz", "--labels"), "E203", "there is a class 6, but"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(command: Command, name: str) -> None:
    arguments, code, said = REFUSED[name]
    ended = command(*arguments)
    assert ended.code == 2
    assert f"error[{code}]" in ended.err
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert (ended.folder / "out.onnx").read_bytes() == EARLIER


def test_without_pytorch(command: Command) -> None:
    ended = command(*GOOD, before="import sys; sys.modules['torch'] = None")
    assert ended.code == 2
    assert "error[E300]: fine-tuning needs PyTorch" in ended.err
    assert "pip install 'onnxlowrank[finetune]'" in ended.err


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_signal_keeps_the_best_so_far(place: Path, tmp_path: Path) -> None:
    where = folders(place, f"{tmp_path.name} stopped")
    process = start((*GOOD, "--minutes", "3", "-v"), *where)
    assert process.stderr is not None
    for line in process.stderr:
        if "tune: held out" in line:
            break
    process.send_signal(signal.SIGTERM)
    ended = finish(process, *where)
    assert ended.code == 128 + signal.SIGTERM, ended.err
    assert "already written: out.onnx" in ended.err
    assert "then it was interrupted" in " ".join(ended.out.split())
    onnx.checker.check_model(onnx.load(where[0] / "out.onnx"))
    assert ended.temporary == []

"""What is written is read by others than onnxruntime, who give what onnxruntime gives.

Networks beyond those of this repository are those in the folder that ``ONNXLOWRANK_NETWORKS`` names. Of the readers,
those that are not installed are left out; ``onnxruntime-node`` is found where ``NODE_PATH`` says.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.models import error, normal
from helpers.processes import network
from onnx.reference import ReferenceEvaluator

from onnxlowrank import optimize
from onnxlowrank.graph.load import load
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.passes import load_passes

CLOSE = 1e-3
ROUNDED = 0.03
"""By what int8 networks may differ: a sum that lies between two steps is rounded up by one and down by another."""
HERE = Path(__file__).parents[1] / "models" / "vgg_cifar10.onnx"
ELSEWHERE = (
    sorted(Path(os.environ["ONNXLOWRANK_NETWORKS"]).glob("*.onnx")) if "ONNXLOWRANK_NETWORKS" in os.environ else []
)

IN_NODE = """
const ort = require('onnxruntime-node');
const [path, inputs] = process.argv.slice(1);
(async () => {
  const session = await ort.InferenceSession.create(path);
  const feeds = {};
  for (const [name, [shape, values]] of Object.entries(JSON.parse(require('fs').readFileSync(inputs)))) {
    feeds[name] = new ort.Tensor('float32', Float32Array.from(values), shape);
  }
  const found = await session.run(feeds);
  console.log(JSON.stringify(session.outputNames.map(name => [found[name].dims, Array.from(found[name].data)])));
})();
"""


def by_reference(path, feeds):
    return ReferenceEvaluator(str(path)).run(None, feeds)


def by_openvino(path, feeds):
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(feeds)
    return [found[output] for output in compiled.outputs]


def by_node(path, feeds):
    if shutil.which("node") is None:
        pytest.skip("there is no Node here")
    if subprocess.run(["node", "-e", "require.resolve('onnxruntime-node')"], capture_output=True).returncode:
        pytest.skip("Node finds no onnxruntime-node: set NODE_PATH")
    inputs = path.with_suffix(".json")
    inputs.write_text(json.dumps({name: [value.shape, value.ravel().tolist()] for name, value in feeds.items()}))
    ended = subprocess.run(["node", "-e", IN_NODE, str(path), str(inputs)], capture_output=True, text=True, check=True)
    return [np.array(values, np.float32).reshape(shape) for shape, values in json.loads(ended.stdout)]


def by_onnx2torch(path, feeds):
    onnx2torch, torch = pytest.importorskip("onnx2torch"), pytest.importorskip("torch")
    module = onnx2torch.convert(str(path)).eval()
    with torch.no_grad():
        found = module(*map(torch.from_numpy, feeds.values()))
    return [one.numpy() for one in (found if isinstance(found, list | tuple) else [found])]


READERS = {"onnx": by_reference, "openvino": by_openvino, "node": by_node, "onnx2torch": by_onnx2torch}


def feeds_of(model, seed):
    shapes = {spec.name: [1 if size is None else size for size in spec.shape] for spec in input_specs(model)}
    return {name: normal(np.random.default_rng(seed), *shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a function that optimises a network, once, and tells where it lies and an input."""
    folder, known = tmp_path_factory.mktemp("written"), {}

    def write(name, model, **how):
        if name not in known:
            feeds = [feeds_of(model, seed) for seed in range(12)]
            result = optimize(model, folder / f"{name}.onnx", calibration=feeds, selection="energy", **how)
            assert any(layer.method != "keep" for layer in result.layers)
            known[name] = folder / f"{name}.onnx", feeds[0]
        return known[name]

    return write


def check(reader, path, feeds, close=CLOSE):
    expected = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)
    found = READERS[reader](path, feeds)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert error(np.asarray(one), other) < close


def test_what_is_written_is_read(written):
    check("onnx", *written("all", network(), speedup=1.5, target="macs"))


@pytest.mark.parametrize("reader", ["openvino", "node"])
def test_int8_networks_are_read(written, reader):
    path, feeds = written("int8", network(), speedup=1.5, target="macs", precision="int8", int8_weights="7bit")
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)
    check(reader, path, feeds, ROUNDED)


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["openvino", "node"])
@pytest.mark.parametrize("file", [HERE, *ELSEWHERE], ids=lambda path: path.stem)
def test_real_int8_networks_are_read(written, reader, file):
    how = {"speedup": 2.0, "target": "macs", "precision": "int8", "int8_weights": "7bit"}
    check(reader, *written(f"int8_{file.stem}", load(file), **how), ROUNDED)


BY_HAND = {
    "bicluster_svd": {"n_c": (2, 2, 8, 8)},
    "bicluster_outer": {"n_c": (2, 2, 8)},
    "monochromatic": {"n_a": (4,)},
    "fully_connected": {"n_y": (4,)},
}


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("method", [one.name for one in load_passes()])
def test_what_every_pass_writes_is_read(written, reader, method):
    how = {"ranks": BY_HAND[method], "max_macs": 1e9} if method in BY_HAND else {"speedup": 1.2, "target": "macs"}
    check(reader, *written(method, network(), passes=[method], **how))


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("file", [HERE, *ELSEWHERE], ids=lambda path: path.stem)
def test_real_networks_are_read(written, reader, file):
    path, feeds = written(file.stem, load(file), speedup=2.0, target="macs")
    assert len(onnx.load(path).graph.node) > len(load(file).graph.node)
    check(reader, path, feeds)

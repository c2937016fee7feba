"""The example pass, by itself and as a third party's package, and the pages that lead to it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.models import conv_model, error, normal, run
from test_structure import MODULES, ROOMS, imports, room

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.passes.base import Pass
from onnxlowrank.progress import Silent

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "example_pass"
MODEL = ROOT / "models" / "vgg_cifar10.onnx"
NAME = "fewer_inputs"
PAGES = ("CONTRIBUTING.md", "docs/architecture.md")


def example() -> Pass:
    """Return the example pass, from its file."""
    spec = spec_from_file_location("onnxlowrank_example", EXAMPLE / "onnxlowrank_example.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FewerInputs()


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((3, 3), {"pads": [1, 1, 1, 1]}),
        ((5, 3), {"strides": [2, 1], "pads": [2, 0, 1, 1], "dilations": [1, 2]}),
        ((2, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        ((3,), {"pads": [0, 2], "strides": [3]}),
    ],
)
def test_the_chain_is_its_dense_kernel_and_at_full_rank_the_layer(kernel, attributes):
    rng = np.random.default_rng(5)
    mixed = np.einsum("kc,nc...->nk...", normal(rng, 6, 6), normal(rng, 20, 6, *(13,) * len(kernel)))
    bias, x = normal(rng, 9), mixed.astype(np.float32)
    model = conv_model(normal(rng, 9, 6, *kernel), bias, **attributes)
    inputs = Inputs(lambda index: {"x": x}, 1, len(x), "random numbers")
    layers = with_shapes(model, find_layers(model), inputs)
    (layer,), method = layers, example()
    assert method.refusal(layer) is None
    with RowStore() as store:
        about = Calibration(model, layers, {layer.name: {NAME: method}}, inputs, store)
        statistics = collect_statistics(about, Silent())[layer.name]
    lost = []
    for rank in (1, 2, 4, 6):
        chain = method.draft(layer, (rank,), statistics).chain
        computed = run(rewrite(model, layers, {layer.name: chain}), x=x)[0]
        dense = run(conv_model(chain.dense_kernel(), bias, **attributes), x=x)[0]
        assert error(computed, dense) <= 1e-5
        assert chain.macs(layer.input_shape) == method.outline(layer, (rank,)).macs(layer.input_shape)
        lost.append(statistics.lost(layer, chain))
    assert lost == sorted(lost, reverse=True)
    assert lost[0] > 0.05
    assert error(dense, run(model, x=x)[0]) <= 1e-5
    assert method.limits(layer) == (rank,)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return a folder in which the example lies as pip would have installed it, by its own pyproject.toml."""
    described = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))
    project, folder = described["project"], tmp_path_factory.mktemp("site")
    for module in described["tool"]["setuptools"]["py-modules"]:
        shutil.copy(EXAMPLE / f"{module}.py", folder)
    about = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    about.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {place}" for name, place in entries.items())]
    about.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def process(site, folder, *module_and_arguments):
    """Run ``python -m`` with the example installed."""
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "ONNXLOWRANK_CACHE": str(site / "cache")}
    command = [sys.executable, "-m", *module_and_arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_command_lists_it(site, tmp_path):
    ended = process(site, tmp_path, "onnxlowrank", "optimize", "--help")
    assert ended.returncode == 0, ended.stderr
    (listed,) = re.findall(r"Methods to choose from: ([^.]+)\.", " ".join(ended.stdout.split()))
    assert NAME in listed.split(", ")
    assert "spatial" in listed.split(", ")


def test_the_command_rewrites_layers_by_it(site, tmp_path):
    for name, count in (("calibration", 96), ("test", 200)):
        with np.load(ROOT / "models" / f"cifar10_{name}.npz") as data:
            np.savez(tmp_path / f"{name}.npz", **{key: values[:count] for key, values in data.items()})
    goal = ("--target", "macs", "--speedup", "1.5", "--selection", "energy", "--report", "r.json")
    data = ("--calibration", "calibration.npz", "--evaluate", "test.npz")
    ended = process(site, tmp_path, "onnxlowrank", "optimize", str(MODEL), "out.onnx", "--passes", NAME, *goal, *data)
    assert ended.returncode in (0, 3), ended.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["goal"]["reached"] == (ended.returncode == 0)
    became = {layer["name"]: layer for layer in report["layers"] if layer["method"] != "keep"}
    assert len(became) >= 2
    optimised = onnx.load(tmp_path / "out.onnx")
    nodes = {node.name for node in optimised.graph.node}
    for name, layer in became.items():
        assert (layer["method"], layer["rank_names"]) == (NAME, ["K"])
        assert layer["macs"][1] < layer["macs"][0]
        assert {f"{name}/lowrank/mixing", f"{name}/lowrank/core"} <= nodes
    assert report["macs_speedup"] > 1.2
    assert report["agreement"]["inputs"] == 200
    assert report["agreement"]["top1_agreement"] > 0.9
    with np.load(tmp_path / "test.npz") as data:
        mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
        image = ((data["images"].astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    before, after = (run(model, image=image)[0] for model in (onnx.load(MODEL), optimised))
    assert 0 < np.linalg.norm(after - before) < 0.3 * np.linalg.norm(before)


def test_the_suites_own_tests_of_passes_take_it(site):
    chosen = ("tests/passes/test_passes.py", "-n", "0", "-p", "no:cacheprovider", "-k", f"{NAME} and not candidates")
    ended = process(site, ROOT, "pytest", *chosen)
    assert ended.returncode == 0, ended.stdout
    assert int(re.search(r"(\d+) passed", ended.stdout)[1]) >= 4, ended.stdout


def test_the_pages_name_commands_of_this_repository():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    named = {
        path for block in blocks for path in re.findall(r"(?<![\w/.])(?:tests|docs|benchmarks|models)/[\w./-]+", block)
    }
    assert any(path.startswith("tests/") for path in named)
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    assert NAME in text


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_files_named_in_the_text_exist(page):
    """Files are named from the root of the repository or from the package's folder."""
    named = re.findall(r"`([\w./]+\.(?:py|md|toml))`", (ROOT / page).read_text(encoding="utf-8"))
    places = (ROOT, ROOT / "onnxlowrank", EXAMPLE)
    assert [path for path in named if not any((place / path).exists() for place in places)] == []


def test_the_page_knows_the_rooms_and_what_they_import():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.search(r"^\| room \|.*?(?=^$)", text, re.MULTILINE | re.DOTALL)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert [row[0].strip("`") for row in rows] == list(ROOMS)
    free = {"parallel", "progress", "boundary", "temporary", "errors", "text"}
    known = {
        row[0].strip("`"): set(ROOMS) if row[2] == "all below" else set(re.findall(r"`(\w+)`", row[2])) for row in rows
    }
    for module, path in MODULES.items():
        met = {room(name) for name in imports(path.read_text(encoding="utf-8"))}
        own = room(module)
        assert met - known[own] - free - {own} == set(), (
            f"the page does not say that {own} may know what {module} imports"
        )

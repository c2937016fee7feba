"""No destination is an input, nor another destination, whatever the links."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.models import conv_model, normal, parse
from onnx import numpy_helper
from PIL import Image

import onnxlowrank
from onnxlowrank.destinations import OUTPUT, check_destinations
from onnxlowrank.errors import OptionError
from onnxlowrank.graph.load import save

MODEL = conv_model(normal(np.random.default_rng(0), 16, 16, 3, 3))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(MODEL, "net.onnx")
    outside = onnx.ModelProto()
    outside.CopyFrom(MODEL)  # what is saved in two files is changed by that
    onnx.save_model(outside, "outside.onnx", save_as_external_data=True, location="outside.bin", size_threshold=0)
    np.savez("cal.npz", x=np.zeros((4, 3, 8, 8), np.float32))
    for name in (
        "images/a/1.png",
        "images/b/2.png",
        "sets/test_data_set_0/input_0.pb",
        "reader.py",
        "pack/__init__.py",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Image.new("RGB", (8, 8)).save("images/a/1.png")
    Path("images/notes.txt").touch()
    Path("pack/feeds.py").touch()
    return tmp_path


LINKS = {
    "itself": lambda file: file,
    "another spelling": lambda file: Path("images") / ".." / file,
    "symbolic link": lambda file: _linked("soft", lambda link: link.symlink_to(Path(file).resolve())),
    "hard link": lambda file: _linked("hard", lambda link: link.hardlink_to(file)),
}
READ = {
    "net.onnx": ("net.onnx", {}, "the input model itself"),
    "outside.onnx": ("outside.onnx", {}, "the input model itself"),
    "outside.bin": ("outside.onnx", {}, "a file of the input model's weights, of outside.onnx"),
    "cal.npz": ("net.onnx", {"--calibration": "cal.npz"}, "what --calibration reads"),
    "images/a/1.png": ("net.onnx", {"--evaluate": "images"}, "what --evaluate reads"),
    "sets/test_data_set_0/input_0.pb": ("net.onnx", {"--inputs": Path("sets")}, "what --inputs reads"),
    "reader.py": ("net.onnx", {"--calibration": "reader:feeds"}, "what --calibration reads"),
    "pack/feeds.py": ("net.onnx", {"--metric": "pack.feeds:feeds"}, "what --metric reads"),
}


def _linked(name: str, link) -> Path:
    link(Path(name))
    return Path(name)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("file", READ)
@pytest.mark.parametrize("option", [OUTPUT, "--report"])
def test_a_destination_is_no_input(place: Path, file: str, link: str, option: str) -> None:
    model, data, what = READ[file]
    path = LINKS[link](file)
    with pytest.raises(OptionError) as caught:
        check_destinations({"--html": None, option: path}, [model], data)
    assert str(caught.value) == f"{option} {path} is {what}, which would be lost; choose another path"
    check_destinations({option: "new"}, [model], data)


def test_inputs_that_are_links(place: Path) -> None:
    os.symlink("cal.npz", "link.npz")
    os.symlink("../../cal.npz", "images/a/link.png")
    for source in ("link.npz", "images"):
        with pytest.raises(OptionError, match="what --calibration reads"):
            check_destinations({"--report": "cal.npz"}, ["net.onnx"], {"--calibration": source})


@pytest.mark.parametrize("source", [None, "missing.npz", "images", ".", "no.such:module", np.zeros(3), [{"x": 1}]])
def test_what_is_not_read_may_be_replaced(place: Path, source: object) -> None:
    Path("out.onnx").touch()
    for path in ("images/notes.txt", "out.onnx", "images/out.json"):
        check_destinations({OUTPUT: path}, ["net.onnx", MODEL, "missing.onnx", "reader.py"], {"--calibration": source})


@pytest.mark.parametrize("link", LINKS)
def test_two_destinations_are_not_the_same(place: Path, link: str) -> None:
    Path("r.json").touch()
    path = LINKS[link]("r.json")
    with pytest.raises(OptionError, match=r"--html \S+ is what --report names too") as caught:
        check_destinations({OUTPUT: "out.onnx", "--report": "r.json", "--html": path}, ["net.onnx"], {})
    assert str(path) in str(caught.value)


def test_two_destinations_that_are_not_there_yet(place: Path) -> None:
    os.symlink("r.json", "link")
    for path in ("r.json", "./r.json", "link", place / "r.json"):
        with pytest.raises(OptionError, match="names too"):
            check_destinations({"--report": "r.json", "--html": path}, [], {})


def test_weights_that_a_large_output_would_bring(place: Path) -> None:
    os.rename("outside.bin", "out.onnx.data")
    model = onnx.load("outside.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "out.onnx.data"
    Path("outside.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(OptionError, match=r"beside OUTPUT out\.onnx\.data is a file of the input model's weights"):
        check_destinations({OUTPUT: "out.onnx"}, ["outside.onnx"], {})
    with pytest.raises(OptionError, match="names too"):
        check_destinations({OUTPUT: "o.onnx", "--report": "o.onnx.data"}, ["net.onnx"], {})


def test_weights_of_constants_inside_bodies(place: Path) -> None:
    body = """g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <
            then_branch = t () => (float[2] a) { k = Constant <value = float[2] {1, 2}> ()  a = Add (x, k) },
            else_branch = e () => (float[2] b) { b = Neg (x) }
        >
    }"""
    model = parse(body)
    constant = model.graph.node[0].attribute[0].g.node[0].attribute[0].t
    constant.CopyFrom(numpy_helper.from_array(np.ones(2, np.float32)))  # in bytes, which alone can lie outside
    onnx.save_model(
        model,
        "inner.onnx",
        save_as_external_data=True,
        location="inner.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    assert Path("inner.bin").exists()
    with pytest.raises(OptionError, match=r"weights, of inner\.onnx"):
        check_destinations({"--html": "inner.bin"}, ["inner.onnx"], {})


def test_python_refuses_as_the_command_does(place: Path) -> None:
    before = Path("cal.npz").read_bytes()
    for option in ("calibration", "evaluate"):
        with pytest.raises(OptionError, match=f"what --{option} reads"):
            onnxlowrank.optimize("net.onnx", "cal.npz", **{option: "cal.npz"})
    with pytest.raises(OptionError, match="the input model itself"):
        onnxlowrank.optimize("net.onnx", "net.onnx")
    assert Path("cal.npz").read_bytes() == before


def test_pipes_among_images_are_not_read(place: Path) -> None:
    os.mkfifo("images/a/pipe.png")
    check_destinations({"--report": "cal.npz"}, ["net.onnx"], {"--calibration": "images"})


def test_the_longest_name_there_can_be(place: Path) -> None:
    name = "x" * os.pathconf(place, "PC_NAME_MAX")
    check_destinations({OUTPUT: name}, ["net.onnx"], {})
    Path(name).touch()
    check_destinations({OUTPUT: name}, ["net.onnx"], {})

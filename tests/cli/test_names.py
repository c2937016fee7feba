"""Names of every kind, of layers, tensors and files, through the command: shown as they are, never obeyed."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from helpers.models import normal, parse

ESCAPE = "\x1b[31m"
LAYERS = ("a[0]*?", "x::response", "onnxlowrank_positions", f"{ESCAPE}層 <script>$x_1$|`")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    kernel = normal(rng, 16, 4, 1, 1) * normal(rng, 1, 4, 3, 3)
    weights = {f"w{i}": (1 + i) * np.concatenate([kernel] * 4, axis=1)[:, : 3 if i == 0 else 16] for i in range(4)}
    model = parse(
        """g (float[N, 3, 8, 8] x) => (float[N, 16, 8, 8] d) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w0)
            b = Conv <pads = [1, 1, 1, 1]> (a, w1)
            c = Conv <pads = [1, 1, 1, 1]> (b, w2)
            d = Conv <pads = [1, 1, 1, 1]> (c, w3)
        }""",
        **weights,
    )
    new = dict(zip("abcd", LAYERS, strict=True))
    for node in model.graph.node:
        node.name = new[node.output[0]]
        node.input[0], node.output[0] = new.get(node.input[0], "x"), new[node.output[0]]
    model.graph.output[0].name = LAYERS[-1]
    place = tmp_path_factory.mktemp("names")
    onnx.save(model, place / "net.onnx")
    os.link(place / "net.onnx", os.fsencode(place) + b"/\xff\x1b.onnx")
    np.savez(place / "x.npz", x=normal(rng, 32, 3, 8, 8))
    return place


def command(folder, *arguments, encoding="utf-8"):
    given = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "onnxlowrank", *arguments], cwd=folder, env=given, capture_output=True, timeout=300
    )


def test_all_is_shown_and_nothing_obeyed(folder):
    ended = command(
        *(folder, "optimize", b"\xff\x1b.onnx", b"out\xfe.onnx", "--calibration", "x.npz", "--target", "macs"),
        *("--speedup", "1.2", "--only", "a[0]*?", "--only", "x::*", "--exclude", f"{ESCAPE}*", "-v"),
        *("--html", b"r\xfd.html", "--report", b"r\xfd.json"),
        encoding="ascii",
    )
    assert ended.returncode in (0, 3), ended.stderr
    assert b"\x1b" not in ended.stdout + ended.stderr
    assert rb"\x1b[31m\u5c64" in ended.stdout
    assert rb"written: out\xfe.onnx" in ended.stdout
    page = (os.fsencode(folder) + b"/r\xfd.html").decode("utf-8", "surrogateescape")
    with open(page.encode("utf-8", "surrogateescape"), encoding="utf-8") as file:
        text = file.read()
    assert "\x1b" not in text
    assert "<script>" not in text
    assert "層 &lt;script&gt;$x_1$|`" in text
    with open(os.fsencode(folder) + b"/r\xfd.json", encoding="utf-8") as file:
        assert [layer["name"] for layer in json.load(file)["layers"]] == list(LAYERS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("optimize", b"no\xff\x1b.onnx", "out.onnx"),
            rb"error[E101]: no\xff\x1b.onnx does not exist; check the path.",
        ),
        (
            ("optimize", "net.onnx", "out.onnx", "--calibration", "x.npz", "--only", "a[0]"),
            rb"error[E300]: --only a[0] matches no layer; layers are a[0]*?, x::response, onnxlowrank_positions, "
            rb"\x1b[31m\u5c64 <script>$x_1$|`.",
        ),
    ],
)
def test_a_sentence_fits_any_terminal(folder, arguments, says):
    ended = command(folder, *arguments, encoding="ascii")
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr == says + b"\n"


def test_markdown_shows_names_as_they_are(folder):
    ended = command(folder, "analyze", "net.onnx", "--calibration", "x.npz", "--passes", "channel", "--markdown")
    assert ended.returncode == 0, ended.stderr
    assert r"\\x1b\[31m層 \<script>$x_1$\|\`" in ended.stdout.decode()


@pytest.mark.parametrize("name", [pytest.param(one, marks=pytest.mark.slow) for one in ("é".encode(), b"\xff")])
def test_temporary_files_may_lie_anywhere(folder, name):
    """Also where the locale has no letters for the name of that place."""
    place = os.fsencode(folder) + b"/temporary " + name
    os.makedirs(place)
    given = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TMPDIR": place}
    for arguments in (
        ("optimize", "net.onnx", "here.onnx", "--calibration", "x.npz", "--target", "macs", "--speedup", "1.2"),
        ("compare", "net.onnx", "here.onnx", "--inputs", "x.npz"),
        ("profile", "net.onnx"),
    ):
        command = [sys.executable, "-m", "onnxlowrank", *arguments]
        ended = subprocess.run(command, cwd=folder, env=given, capture_output=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        assert b"cannot simplify" not in ended.stderr

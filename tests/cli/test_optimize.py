"""The command line, run as a user runs it: processes, exit codes, what they print and what they leave behind."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.models import normal, parse, run
from helpers.processes import EARLIER, Command, finish, folders, images, network, run_to_end, start
from onnx import ModelProto, TensorProto, helper

MACS = ("--target", "macs", "--preprocess", "unit")
GOOD = ("../in/net.onnx", "out.onnx", "--calibration", "../in/images", "--target", "macs", "--speedup", "1.5")


def bfloat16() -> ModelProto:
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [4, 4], [1.0] * 16)
    infos = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", infos[:1], infos[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def foreign() -> ModelProto:
    """Return a model with an operator that onnxruntime has never heard of."""
    model = parse("g (float[1, 4] x) => (float[1, 4] y) { a = MatMul (x, w)  y = Relu (a) }", w=np.eye(4, dtype="f"))
    model.graph.node[1].domain = "nobody"
    model.opset_import.append(helper.make_opsetid("nobody", 1))
    return model


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the subfolder ``in``, full of good and bad inputs."""
    parent = tmp_path_factory.mktemp("cli")
    given = parent / "in"
    given.mkdir()
    good = network().SerializeToString()
    (given / "net.onnx").write_bytes(good)
    (given / "text.onnx").write_text("this is not a network\n")
    (given / "cut.onnx").write_bytes(good[:-500])
    models = {
        "five": network(5),
        "any": network(3, "s"),
        "bfloat16": bfloat16(),
        "foreign": foreign(),
        "empty": parse("g (float[1, 4] x) => (float[1, 4] x) { }"),
        "relu": parse("g (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y) { y = Relu (x) }"),
        "qdq": parse(
            "g (float[1, 4] x) => (float[1, 4] y) { q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, s, z) }",
            s=np.float32(1),
            z=np.uint8(0),
        ),
        "rigid": parse(  # declares any size and takes one
            """g (float[N, 3, h, w] x) => (float[N, 10] y) {
                a = Conv <pads = [1, 1, 1, 1]> (x, w)
                r = Reshape (a, to)
                y = MatMul (r, v)
            }""",
            w=normal(np.random.default_rng(0), 4, 3, 3, 3),
            to=np.array([-1, 256]),
            v=normal(np.random.default_rng(0), 256, 10),
        ),
    }
    for name, model in models.items():
        (given / f"{name}.onnx").write_bytes(model.SerializeToString())
    onnx.save_model(
        network(), given / "outside.onnx", save_as_external_data=True, location="outside.bin", size_threshold=0
    )
    images(given / "images")
    images(given / "damaged")
    (given / "damaged" / "a" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n but then no more")
    (given / "none").mkdir()
    values = np.zeros((16, 3, 8, 8), np.float32)
    np.savez(given / "names.npz", pixels=values)
    np.savez(given / "objects.npz", x=np.array([{"a": 1}] * 4, dtype=object))
    values[9, 1, 2, 3] = np.nan
    np.save(given / "nan.npy", values)
    return parent


# name -> arguments, words of the sentence, and Python to run first. "../in" has the inputs; "out.onnx" exists already.
Case = tuple[tuple[str, ...], tuple[str, ...], str]


def case(*arguments: str, says: str, before: str = "") -> Case:
    return arguments, tuple(says.split("|")), before


def option(*arguments: str, says: str) -> Case:
    return case("../in/net.onnx", "out.onnx", "--calibration", "../in/images", *MACS, *arguments, says=says)


def model(name: str, says: str) -> Case:
    return case(f"../in/{name}.onnx", "out.onnx", *MACS, says=says)


def data(name: str, says: str, network: str = "net") -> Case:
    return case(f"../in/{network}.onnx", "out.onnx", *MACS, "--calibration", f"../in/{name}", says=says)


NO_ACCESS = "import os; os.access = lambda path, mode, **_: False"  # root may write everywhere
DISK_FULL = """
import errno, os
def fsync(file):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
os.fsync = fsync"""
NO_SPOOL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))"

REFUSED: dict[str, Case] = {
    "model missing": model("missing", "missing.onnx|does not exist"),
    "model with a very long name": model("x" * 300, "xxx.onnx|cannot be read"),
    "model is a folder": case("../in", "out.onnx", says="../in|is a directory"),
    "model is text": model("text", "text.onnx|not an ONNX model"),
    "model truncated": model("cut", "cut.onnx|truncated"),
    "model without nodes": model("empty", "empty.onnx|empty graph"),
    "model without layers": model("relu", "relu.onnx|nothing to decompose"),
    "model quantised": model("qdq", "qdq.onnx|already quantised|QuantizeLinear"),
    "model in bfloat16": model("bfloat16", "bfloat16.onnx|bfloat16 weights"),
    "model unknown to onnxruntime": model("foreign", "onnxruntime cannot load|nobody"),
    "calibration missing": data("nowhere", "../in/nowhere|does not exist"),
    "calibration of an unknown kind": data("text.onnx", "text.onnx|unknown kind"),
    "no image": data("none", "../in/none|no images"),
    "image unreadable": data("damaged", "damaged/a/2.png|cannot be read"),
    "images for five channels": data("images", "input 'x'|5 channels", network="five"),
    "no images made for five channels": case(
        "../in/five.onnx", "out.onnx", "--evaluate", "../in/images", says="input 'x'|5 channels"
    ),
    "npz of other names": data("names.npz", "names.npz|'pixels'|'x'"),
    "npz of objects": data("objects.npz", "objects.npz|array 'x'|never unpickled"),
    "NaN": data("nan.npy", "nan.npy|item 9|NaN"),
    "size the network cannot take": case(
        *("../in/rigid.onnx", "out.onnx", "--calibration", "../in/images", *MACS, "--resize", "10"),
        says="'x' [1, 3, 10, 10]|onnxruntime cannot run",
    ),
    "module missing": data("../nowhere.py:reader", "nowhere"),
    "evaluation missing": option("--evaluate", "../in/nowhere", says="../in/nowhere|does not exist"),
    "speedup too low": option("--speedup", "0.5", says="--speedup 0.5"),
    "speedup is no number": option("--speedup", "nan", says="--speedup nan"),
    "speedup infinite": option("--speedup", "inf", says="--speedup inf"),
    "two goals": option("--speedup", "2", "--latency", "3ms", says="--speedup and --latency|one of them"),
    "no time": option("--latency", "12parsecs", says="--latency 12parsecs|ms"),
    "no size": option("--max-size", "big", says="--max-size big|MB"),
    "no count": option("--max-macs", "1e3e", says="--max-macs 1e3e|M, G"),
    "target unknown": option("--target", "joules", says="--target joules|latency, macs"),
    "selection unknown": option("--selection", "best", says="--selection best|exact, energy, uniform"),
    "seed negative": option("--seed", "-1", says="--seed -1"),
    "provider without hardware": option("--provider", "cuda", says="--provider cuda|--provider cpu"),
    "options of the cpu": option("--provider", "cpu:use_tf32=0", says="--provider cpu:use_tf32=0|cuda:use_tf32=0"),
    "options of no value": option("--provider", "cuda:use_tf32", says="--provider cuda:use_tf32 |cuda:use_tf32=0"),
    "precision unknown": option("--precision", "int3", says="--precision int3|float32, int8"),
    "bits unknown": option("--int8-weights", "6bit", says="--int8-weights 6bit|7bit, 8bit"),
    "bits of no int8": option("--int8-weights", "7bit", says="--int8-weights 7bit|--precision int8"),
    "int8 without data": case(*GOOD[:2], "--precision", "int8", says="--precision int8|--calibration"),
    "provider unknown": option("--provider", "xyz", says="--provider xyz|cpu, cuda"),
    "no threads": option("--threads", "0", says="--threads 0"),
    "too many threads": option("--threads", "99999999999", says="--threads 99999999999"),
    "pass unknown": option("--passes", "channel,cubic", says="'cubic'|spatial"),
    "only matches nothing": option("--only", "block*", says="--only block*|n_a, n_c"),
    "exclude matches nothing": option("--exclude", "block*", says="--exclude block*|n_a, n_c"),
    "rank malformed": option("--rank", "n_c", says="--rank n_c|LAYER=64"),
    "rank is no number": option("--rank", "n_c=many", says="--rank n_c=many|LAYER=64"),
    "rank of no layer": option("--rank", "conv7=8", says="--rank conv7=8|n_a, n_c"),
    "rank out of range": option("--rank", "n_c=4000", says="--rank n_c=4000|from 1 to"),
    "ranks too many": option("--rank", "n_c=8x8x8x8x8", says="--rank n_c=8x8x8x8x8|5 rank"),
    "rank of an unknown pass": option("--rank", "n_c=svdd:8x8", says="--rank n_c=svdd:8x8|no pass svdd"),
    "rank of a share above all": option("--rank", "n_c=120%", says="--rank n_c=120%|between 0 and 100"),
    "metric unknown": option("--kernel-metric", "cosine", says="--kernel-metric cosine|data, frobenius, mahalanobis"),
    "preset unknown": option("--preprocess", "magic", says="preprocess|'magic'|imagenet"),
    "mean of two": option("--mean", "1,2", says="mean|2 values"),
    "mean is no number": option("--mean", "grey", says="--mean grey"),
    "std zero": option("--std", "0", says="std"),
    "crop is no size": option("--crop", "big", says="--crop big"),
    "layout unknown": option("--layout", "chwn", says="layout|chwn"),
    "output folder missing": case("../in/net.onnx", "nowhere/out.onnx", says="nowhere|does not exist"),
    "output is a folder": case("../in/net.onnx", ".", says="not a regular file"),
    "output is the input": case("../in/net.onnx", "../in/net.onnx", says="../in/net.onnx|the input model itself"),
    "report folder missing": option("--report", "nowhere/r.json", says="nowhere|does not exist"),
    "report is the input": option("--report", "../in/net.onnx", says="../in/net.onnx|the input model itself"),
    "report is the output": option("--report", "./out.onnx", says="--report out.onnx|what OUTPUT names too"),
    "output folder read-only": case(*GOOD, says="not writable", before=NO_ACCESS),
    "disk full": case(*GOOD, says="disk is full|out.onnx", before=DISK_FULL),
    "no room for temporary files": case(
        *("../in/any.onnx", "out.onnx", "--calibration", "../in/images", *MACS, "--resize", "32"),
        says="temporary folder|TMPDIR",
        before=NO_SPOOL,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_sentence_and_leaves_everything_as_it_was(place: Path, name: str) -> None:
    (arguments, words, before), given = REFUSED[name], snapshot(place / "in")
    where = folders(place, name)
    ended = run_to_end(("optimize", *arguments), *where, before)
    assert snapshot(place / "in") == given
    assert ended.code == 2, ended.err
    assert re.fullmatch(r"error\[E\d{3}\]: [^\n]+\.\n", ended.err)
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err
    assert ended.out == ""
    assert ended.files == ["out.onnx"]
    assert (ended.folder / "out.onnx").read_bytes() == EARLIER
    assert ended.temporary == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("optimize", *GOOD, "--speedup", "abc"), "--speedup"),
        (("optimize", *GOOD, "--sped-up", "2"), "--sped-up"),
        (("optimize", "in.onnx"), "OUTPUT"),
        (("optimise",), "optimise"),
        (("optimize", *GOOD, "more.onnx"), "more.onnx"),
        (("optimize", *GOOD, "--calibration"), "--calibration"),
        (("--quick",), "--quick"),
    ],
)
def test_wrong_usage(command: Command, arguments: tuple[str, ...], word: str) -> None:
    ended = command(*arguments)
    assert ended.code == 2
    *usage, hint, sentence = filter(None, ended.err.splitlines())
    assert all(line.startswith("Usage: ") for line in usage)
    assert re.fullmatch("Try '.* -h' for help.", hint)
    assert re.fullmatch(r"error\[E302\]: .*\.", sentence)
    assert word in sentence
    assert (ended.folder / "out.onnx").read_bytes() == EARLIER


def test_no_arguments_show_the_help(command: Command) -> None:
    ended = command()
    assert ended.code == 2
    assert ended.err.startswith("Usage: ")
    assert "optimize" in ended.err
    assert "error" not in ended.err


def test_version_and_help(command: Command) -> None:
    version = command("--version")
    assert (version.code, version.err) == (0, "")
    assert re.fullmatch(r"onnxlowrank \d+\.\d+\.\d+\n", version.out)
    root = command("--help")
    assert root.code == 0
    assert "optimize" in root.out
    described = command("optimize", "--help")
    assert described.code == 0
    assert "Exit code: 0" in described.out
    example = next(line for line in described.out.splitlines() if line.strip().startswith("onnxlowrank optimize"))
    assert example.endswith("\\")
    assert "      --speedup 2 --calibration models/cifar10_calibration.npz\n" in described.out


def test_what_libraries_print_is_not_in_the_output(command: Command) -> None:
    """Some print past Python's streams, in the end even: C keeps what goes to a pipe until then."""
    version = command("--version", before="import atexit, os; atexit.register(os.write, 1, b'from a library')")
    assert re.fullmatch(r"onnxlowrank [\d.]+\n", version.out)
    assert version.err == "from a library"


@pytest.mark.parametrize("closed", [1, 2])
def test_streams_may_be_closed(closed: int) -> None:
    command = f'"{sys.executable}" -m onnxlowrank --version {closed}>&-'
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    assert ended.stdout.startswith("onnxlowrank ") == (closed == 2)


def loads(path: Path) -> ModelProto:
    """Return a model after running it."""
    found = onnx.load(path)
    (output,) = run(found, x=np.ones((2, 3, 8, 8), np.float32))
    assert output.shape == (2, 10)
    assert np.isfinite(output).all()
    return found


def test_full_run(command: Command, place: Path) -> None:
    ended, again = (
        command(
            *("optimize", *GOOD, "--preprocess", "unit", "--report", "r.json", "--evaluate", "../in/images"),
            before=before,
        )
        for before in ("", "import sys")  # in an interpreter of its own sets have another order
    )
    assert (ended.code, ended.err) == (0, "")
    assert ended.files == ["out.onnx", "r.json"]
    assert ended.temporary == []
    optimised = loads(ended.folder / "out.onnx")
    assert len(optimised.graph.node) > len(network().graph.node)
    for words in ("n_c", "1.5x was asked for", "written: out.onnx", "top-1 accuracy"):
        assert words in ended.out
    report = json.loads((ended.folder / "r.json").read_text())
    assert report["schema"] == 5
    assert report["goal"]["kind"] == "conv_macs"
    assert report["goal"]["reached"] is True
    assert report["macs_speedup"] >= 1.5
    assert [layer["name"] for layer in report["layers"]] == ["n_a", "n_c", "n_e", "n_y"]
    assert report["before"]["macs"] > report["after"]["macs"]
    assert report["after"]["file_bytes"] == (ended.folder / "out.onnx").stat().st_size
    assert report["agreement"]["inputs"] == 16
    assert 0 <= report["agreement"]["accuracy"][1] <= 1
    assert (again.folder / "out.onnx").read_bytes() == (ended.folder / "out.onnx").read_bytes()


SHORT = """
from onnxlowrank.plan import builder
measure = builder.measure_in_sessions
builder.measure_in_sessions = lambda models, feeds, target, *_, **__: measure(models, feeds, target, 0.1)"""
"""Times are looked at for no time: the goal is counted."""


def test_int8_twice(command: Command) -> None:
    """What rounding does to layers and drafts is measured, too, and enters the selection: the same each time."""
    how = ("--preprocess", "unit", "--precision", "int8", "--passes", "channel,cp", "--speedup", "1.2", "-v")
    ended, again = (command("optimize", *GOOD, "--only", "n_c", *how, before=SHORT) for _ in range(2))
    assert ended.code == 0
    for words in ("n_c in int8 has noise of", "times as noisy"):
        assert words in ended.err
    found = loads(ended.folder / "out.onnx")
    assert any("/lowrank/" in node.name for node in found.graph.node)
    assert any(node.op_type == "DequantizeLinear" for node in found.graph.node)
    assert (again.folder / "out.onnx").read_bytes() == (ended.folder / "out.onnx").read_bytes()


def test_unreachable_speedup_writes_the_best(command: Command) -> None:
    ended = command("optimize", *GOOD, "--speedup", "50")
    assert (ended.code, ended.err) == (3, "")
    assert len(loads(ended.folder / "out.onnx").graph.node) > len(network().graph.node)
    verdict = " ".join(ended.out.split())
    assert "50x was asked for, the most that could be reached is" in verdict
    assert re.search(r"In the way: n_[ace] \(", verdict)


@pytest.mark.parametrize(
    ("goal", "says"),
    [
        (
            ("--latency", "20s"),
            r"ms of measured latency; \S+x faster in measured latency \(20000.00 ms was asked for\)",
        ),
        (("--max-macs", "1G"), r"[KM]MACs a sample; .* \(1 GMACs was asked for\): top-1 accuracy \S+ % -> \S+ %"),
        (("--max-size", "1MB"), r"[KM]B of file; .* \(1 MB was asked for\): top-1 accuracy"),
    ],
)
def test_other_goals(command: Command, goal: tuple[str, str], says: str) -> None:
    """Goals that are met already: the network is written as it is."""
    ended = command("optimize", "../in/net.onnx", "out.onnx", "--calibration", "../in/images", *MACS[2:], *goal)
    assert (ended.code, ended.err) == (0, "")
    assert re.search(says, " ".join(ended.out.split()))
    assert loads(ended.folder / "out.onnx") == network()


def test_ranks_by_hand_where_the_goal_holds_already(command: Command) -> None:
    ended = command(
        *("optimize", "../in/net.onnx", "out.onnx", "--calibration", "../in/images", "--report", "r.json"),
        *("--max-macs", "1T", "--rank", "n_c=channel:8", "--rank", "n_e=80%"),
    )
    assert (ended.code, ended.err) == (0, "")
    layers = {layer["name"]: layer for layer in json.loads((ended.folder / "r.json").read_text())["layers"]}
    assert (layers["n_c"]["method"], layers["n_c"]["setting"]) == ("channel", [8])
    assert layers["n_e"]["method"] != "keep"
    assert layers["n_a"]["kept_because"] == "the goal is reached without it"


def test_options_of_the_method(command: Command) -> None:
    ended = command(
        *("optimize", *GOOD, "--passes", "channel", "--linear", "--symmetric", "--selection", "uniform", "-v"),
    )
    assert ended.code == 0
    assert "spatial" not in ended.out
    assert "INFO fit" in ended.err
    assert "━" not in ended.err
    loads(ended.folder / "out.onnx")


def test_ranks_by_hand_and_exclusion(command: Command) -> None:
    ended = command(
        *("optimize", "../in/net.onnx", "out.onnx", *MACS, "--speedup", "1.1", "--report", "r.json"),
        *("--rank", "n_c=8", "--exclude", "n_e", "--passes", "channel"),
    )
    assert ended.code in (0, 3)
    assert "no calibration data were given" in " ".join(ended.out.split())
    layers = {layer["name"]: layer for layer in json.loads((ended.folder / "r.json").read_text())["layers"]}
    assert (layers["n_c"]["method"], layers["n_c"]["setting"]) == ("channel", [8])
    assert (layers["n_e"]["method"], layers["n_e"]["kept_because"]) == ("keep", "excluded")
    weights = {tensor.name: tuple(tensor.dims) for tensor in loads(ended.folder / "out.onnx").graph.initializer}
    assert (8, 48, 3, 3) in weights.values()


def test_pass_metric_and_share_by_hand(command: Command) -> None:
    ended = command(
        *("optimize", "../in/net.onnx", "out.onnx", *MACS, "--speedup", "1.1", "--report", "r.json"),
        *("--rank", "n_c=cp:16", "--rank", "n_e=channel:80%", "--kernel-metric", "frobenius"),
    )
    assert ended.code in (0, 3)
    layers = {layer["name"]: layer for layer in json.loads((ended.folder / "r.json").read_text())["layers"]}
    assert (layers["n_c"]["method"], layers["n_c"]["setting"]) == ("cp", [16])
    assert layers["n_e"]["method"] == "channel"
    names = {node.name for node in loads(ended.folder / "out.onnx").graph.node}
    assert {"n_c/lowrank/inputs", "n_c/lowrank/rows", "n_c/lowrank/columns", "n_c/lowrank/outputs"} <= names


def test_weights_in_a_second_file_and_latency(command: Command) -> None:
    ended = command("optimize", "../in/outside.onnx", "out.onnx", "--speedup", "1.01", "--only", "n_c", "--only", "n_e")
    assert ended.code in (0, 3)
    assert ended.err == ""
    assert ended.files == ["out.onnx"]
    loads(ended.folder / "out.onnx")
    onnxruntime.InferenceSession(str(ended.folder / "out.onnx"), providers=["CPUExecutionProvider"])


ENDLESS = """
import numpy, pathlib
def feeds():
    while True:
        pathlib.Path(__file__).with_name("started").touch()
        yield numpy.zeros((1, 3, 8, 8), numpy.float32)
"""


@pytest.mark.parametrize("when", ["reading", "working"])
def test_interrupt(place: Path, when: str) -> None:
    folder, temporary = folders(place, f"interrupted {when}")
    if when == "reading":
        (folder / "endless.py").write_text(ENDLESS)
        process = start(("optimize", "../in/net.onnx", "out.onnx", "--calibration", "endless:feeds"), folder, temporary)
    else:
        process = start(("optimize", "../in/any.onnx", "out.onnx"), folder, temporary)
    patience = time.monotonic() + 60
    while not ((folder / "started").exists() or any(temporary.glob("*/*.f32"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < patience
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    ended = finish(process, folder, temporary)
    assert ended.code == 130
    assert ended.err == "onnxlowrank: interrupted, nothing was written.\n"
    assert (ended.folder / "out.onnx").read_bytes() == EARLIER
    assert [name for name in ended.files if name.startswith(".")] == []
    assert ended.temporary == []

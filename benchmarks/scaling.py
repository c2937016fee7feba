"""What the tool itself takes: seconds and memory, beside one plain pass of the network over its calibration inputs.

    data="models/cifar10_calibration.npz models/cifar10_test.npz"
    python benchmarks/scaling.py models/vgg_cifar10.onnx $data --speedup 4

Every run is a process of its own with an empty cache of times; the plain pass is timed right before it, with one input
at a time and all cores. Several ``--inputs`` give a row each. ``--grow`` takes no network, but makes some that differ
in their number of layers, maps or inputs, and tells the slope of the logarithms: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from common import preprocess
from onnx import TensorProto, helper, numpy_helper
from tables import add_result_options, result_name, write_results

from onnxlowrank.graph.load import load
from onnxlowrank.inputs.sources import open_inputs
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.measure.sessions import all_threads, open_session

STAGES = ("statistics", "candidates", "sensitivity", "plan", "fit", "measure", "compare")
COLUMNS = {
    "inputs": "{}",
    "plain pass (s)": "{:.1f}",
    "whole run (s)": "{:.0f}",
    "passes": "{:.1f}",
    "peak (GB)": "{:.2f}",
    "asked for": "{:g}x",
    "measured": "{:.2f}x",
    "relative error": "{:.4f}",
    "same class": "{:.1f} %",
    "top-1 lost (points)": "{:.1f}",
    **{f"{stage} (s)": "{:.0f}" for stage in STAGES},
}
GROWN = {"layers": "{}", "maps": "{}", "inputs": "{}", "whole run (s)": "{:.1f}", "peak (GB)": "{:.2f}"}
SIZES = {"layers": (10, 20, 40, 80), "maps": (32, 64, 128, 256), "inputs": (50, 200, 800, 3200)}
"""What is grown; the others stay at 8 layers, 32 maps and 100 inputs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("calibration", nargs="?")
    parser.add_argument("test", nargs="?")
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--inputs", type=int, nargs="*", default=[1000])
    parser.add_argument("--preprocess", default="imagenet")
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--resize", type=int)
    parser.add_argument("--crop", type=int)
    parser.add_argument("--grow", choices=SIZES)
    add_result_options(parser)
    args = parser.parse_args()
    if args.grow:
        grow(args)
        return
    rows = [measured(args, count) for count in args.inputs]
    write_results(args, result_name(args, f"{args.speedup:g}"), f"The tool: {Path(args.model).stem}", COLUMNS, rows)


def measured(args: argparse.Namespace, count: int) -> list[float | None]:
    """Return the row of one run over so many inputs."""
    with tempfile.TemporaryDirectory() as folder:
        calibration = thinned(Path(args.calibration), count, Path(folder))
        inputs = open_inputs(calibration, input_specs(load(args.model)), preprocess(args))
        plain = plain_pass(load(args.model), inputs)
        images = [(f"--{name}", getattr(args, name)) for name in ("preprocess", "mean", "std", "resize", "crop")]
        given = [str(word) for pair in images if pair[1] is not None for word in pair]
        evaluate = [] if args.test is None else ["--evaluate", os.path.abspath(args.test)]
        goal = ["--speedup", str(args.speedup), "--calibration", str(calibration), *evaluate, *given]
        found, seconds, peak, stages = run(os.path.abspath(args.model), goal, Path(folder))
    agreement = found["agreement"]
    same, accuracy = agreement["top1_agreement"], agreement["accuracy"]
    return [
        len(inputs),
        plain,
        seconds,
        seconds / plain,
        peak,
        args.speedup,
        found["latency_speedup"],
        agreement["relative_error"],
        None if same is None else 100 * same,
        None if accuracy is None else 100 * (accuracy[0] - accuracy[1]),
        *(stages.get(stage) for stage in STAGES),
    ]


def thinned(source: Path, count: int, folder: Path) -> Path:
    """Return a source of so many of the inputs, evenly spread, with their labels."""
    if source.suffix == ".npz":
        with np.load(source, allow_pickle=False) as arrays:
            some = np.linspace(0, len(arrays["labels"]) - 1, min(count, len(arrays["labels"]))).astype(int)
            np.savez(folder / "some.npz", **{name: array[some] for name, array in arrays.items()})
        return folder / "some.npz"
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for index in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int):
        link = folder / "some" / files[index].relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(files[index].resolve())
    return folder / "some"


def plain_pass(model: onnx.ModelProto, inputs: object) -> float:
    """Return the seconds of one pass of the network over its inputs, with all cores."""
    session = open_session(model, all_threads())
    begin = time.perf_counter()
    for feeds in inputs:
        session.run(None, feeds)
    return time.perf_counter() - begin


def run(model: str, options: list[str], folder: Path) -> tuple[dict, float, float, dict[str, float]]:
    """Return the report of a run, its seconds, its peak memory in GB and the seconds of its stages."""
    command = [sys.executable, "-m", "onnxlowrank", "optimize", model, "out.onnx", *options, "--report", "report.json"]
    command += ["-v"]
    begin = time.perf_counter()
    environment = {**os.environ, "ONNXLOWRANK_CACHE": str(folder / "cache")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    seconds, log_text = time.perf_counter() - begin, (folder / "log").read_text(encoding="utf-8")
    if os.waitstatus_to_exitcode(status) not in (0, 3):
        raise SystemExit(log_text)
    stages = {name: float(taken) for name, taken in re.findall(r"INFO (\w+) +([\d.]+) s +\d+ %", log_text)}
    return json.loads((folder / "report.json").read_text(encoding="utf-8")), seconds, usage.ru_maxrss / 2**20, stages


def grow(args: argparse.Namespace) -> None:
    """Measure networks of more and more layers, maps or inputs."""
    rows, sizes = [], {"layers": 8, "maps": 32, "inputs": 100}
    for size in SIZES[args.grow]:
        sizes[args.grow] = size
        with tempfile.TemporaryDirectory() as folder:
            onnx.save(made(sizes["layers"], sizes["maps"]), Path(folder) / "in.onnx")
            images = np.random.default_rng(1).standard_normal((sizes["inputs"], 3, 16, 16), dtype=np.float32)
            np.savez(Path(folder) / "x.npz", x=images)
            _, seconds, peak, _ = run("in.onnx", ["--speedup", "1.5", "--calibration", "x.npz"], Path(folder))
        rows.append([*sizes.values(), seconds, peak])
    slopes = [np.polyfit(np.log(SIZES[args.grow]), np.log([row[at] for row in rows]), 1)[0] for at in (3, 4)]
    note = f"Slopes of the logarithms: seconds {slopes[0]:.2f}, memory {slopes[1]:.2f}."
    title = f"The tool, by the number of {args.grow}"
    write_results(args, args.name or f"scaling_{args.grow}", title, GROWN, rows, note)


def made(layers: int, maps: int) -> onnx.ModelProto:
    """Return a network of 3x3 convolutions and ReLUs."""
    rng, nodes, weights = np.random.default_rng(0), [], []
    for index in range(layers):
        shape = maps, 3 if index == 0 else maps, 3, 3
        mixed = rng.standard_normal((maps, 8)) @ rng.standard_normal((8, shape[1] * 9)) + rng.standard_normal((maps, 1))
        weight = (mixed / np.sqrt(8 * shape[1] * 9)).astype(np.float32).reshape(shape)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        x = f"r{index - 1}" if index else "x"
        nodes.append(helper.make_node("Conv", [x, f"w{index}"], [f"c{index}"], f"conv{index}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"relu{index}"))
    values: Iterator[onnx.ValueInfoProto] = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", count, 16, 16])
        for name, count in (("x", 3), (f"r{layers - 1}", maps))
    )
    graph = helper.make_graph(nodes, "grown", [next(values)], [next(values)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    main()

"""What a comparison says of two equal networks, and of one with a planted slow-down.

    python benchmarks/comparisons.py models/vgg_cifar10.onnx

First the network against itself, again and again: how often the 95 % interval of the ratio holds 1, and how wide it is.
Then against an equal network in which one Conv is slower: the sum of two Convs, whose weights sum to its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tables import add_result_options, result_name, write_results

import onnxlowrank
from onnxlowrank.graph.load import load
from onnxlowrank.inputs.sources import open_or_synthesise
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.measure.interleaved import speedup_interval, time_in_sessions
from onnxlowrank.measure.sessions import Target

COLUMNS = {
    "compared with": "",
    "runs": "{}",
    "times as fast": "{:.2f}",
    "intervals that hold 1": "{}",
    "width (median)": "{:.1f} %",
    "width (largest)": "{:.1f} %",
    "layer before (ms)": "{:.2f}",
    "layer after (ms)": "{:.2f}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    add_result_options(parser)
    args = parser.parse_args()
    model = load(args.model)
    feeds = open_or_synthesise(input_specs(model), None, {}, None, 1, 0)[0]
    hits, widths = 0, []
    for run in range(args.runs):
        found = speedup_interval(*time_in_sessions([model, model], feeds, Target(threads=args.threads), args.seconds))
        hits += found.low <= 1 <= found.high
        widths.append(100 * (found.high - found.low))
        print(f"{run + 1}: {found.ratio:.4f} ({found.low:.4f} .. {found.high:.4f})", flush=True)
    slow, name = planted(model)
    found = speedup_interval(*time_in_sessions([model, slow], feeds, Target(threads=args.threads), args.seconds))
    took = []
    for network in (model, slow):
        nodes = onnxlowrank.profile(network, threads=args.threads).nodes
        took.append(sum(node.milliseconds for node in nodes if (node.node or "").startswith(name)))
    split = found.ratio, found.low, found.high
    rows = [
        ["the network itself", args.runs, None, hits, np.median(widths), max(widths), None, None],
        [f"{name} split in two", 1, split, None, None, None, *took],
    ]
    title = f"Comparisons with an equal and a slower network: {Path(args.model).stem}"
    write_results(args, result_name(args), title, COLUMNS, rows)


def planted(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Return an equal network whose dearest Conv by weights became the sum of two, and the name of that Conv."""
    slow = onnx.ModelProto()
    slow.CopyFrom(model)
    weights = {one.name: one for one in slow.graph.initializer}
    convs = [node for node in slow.graph.node if node.op_type == "Conv" and node.input[1] in weights]
    chosen = max(convs, key=lambda node: np.prod(weights[node.input[1]].dims))
    weight = numpy_helper.to_array(weights[chosen.input[1]])
    for name, share in (("third", 1 / 3), ("rest", 2 / 3)):  # equal ones onnxruntime would compute once
        slow.graph.initializer.append(numpy_helper.from_array((share * weight).astype(np.float32), name))
    output, place = chosen.output[0], list(slow.graph.node).index(chosen)
    chosen.input[1], chosen.output[0] = "third", f"{output}/one"
    other = helper.make_node("Conv", [chosen.input[0], "rest"], [f"{output}/other"], name=f"{chosen.name}/other")
    other.attribute.extend(chosen.attribute)
    added = helper.make_node("Add", [f"{output}/one", f"{output}/other"], [output], name=f"{chosen.name}/sum")
    slow.graph.node.insert(place + 1, other)
    slow.graph.node.insert(place + 2, added)
    return slow, chosen.name


if __name__ == "__main__":
    main()

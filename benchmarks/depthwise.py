"""What a depthwise convolution takes whole, and as two along different axes of one term or of two.

    python benchmarks/depthwise.py

Layers alone, in the frame that the tool times layers in, on one thread and by its own stopwatch.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
from tables import add_result_options, write_results

from onnxlowrank.graph.layer import Geometry, Layer
from onnxlowrank.measure.cache import Cache
from onnxlowrank.measure.chain_timer import ChainTimer
from onnxlowrank.measure.sessions import Target
from onnxlowrank.passes.depthwise import Depthwise

COLUMNS = {
    "kernel": "",
    "maps": "{}",
    "positions": "",
    "whole (ms)": "{:.3f}",
    "one term": "{:.2f}x",
    "two terms": "{:.2f}x",
}
CASES = [
    *(((k, k), maps, (size, size)) for k in (3, 5, 7) for maps, size in ((48, 112), (144, 56), (240, 28), (480, 14))),
    *(((3, 3, 3), maps, (4, size, size)) for maps, size in ((48, 28), (144, 14))),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_result_options(parser)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        timer = ChainTimer(Target(threads=1), Cache(Path(folder)))
        for kernel, maps, size in CASES:
            layer = depthwise(maps, kernel, size)
            chains = [Depthwise().outline(layer, (terms,)).lowered(("grouped", "grouped")) for terms in (1, 2)]
            whole, *others = (timing.ms for timing in timer.many(layer, [None, *chains]))
            shown = ["x".join(map(str, kernel)), maps, "x".join(map(str, size))]
            rows.append([*shown, whole, *(whole / one for one in others)])
            print(*rows[-1], flush=True)
    write_results(args, "depthwise", "Depthwise convolutions, whole and separable", COLUMNS, rows)


def depthwise(maps: int, kernel: tuple[int, ...], size: tuple[int, ...]) -> Layer:
    """Return a layer of random weights that keeps its size."""
    axes = len(kernel)
    weight = np.random.default_rng(0).standard_normal((maps, 1, *kernel)).astype(np.float32) / math.prod(kernel)
    return Layer(
        name="conv",
        op="Conv",
        weight=weight.astype(np.float32),
        bias=np.zeros(maps, np.float32),
        geometry=Geometry((1,) * axes, tuple(k // 2 for k in kernel) * 2, (1,) * axes),
        group=maps,
        input="x",
        output="y",
        nodes=("conv",),
        preactivation="y",
        input_shape=(1, maps, *size),
        output_shape=(1, maps, *size),
    )


if __name__ == "__main__":
    main()

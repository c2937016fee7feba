"""An original network and an optimised one, whose chain is not quite what it could be: something to fine-tune."""

import numpy as np
from onnx import ModelProto

from helpers.models import describe, normal, parse
from onnxlowrank.inputs.feeds import Inputs

CHAIN = ("c/lowrank/rows", "c/lowrank/columns")


def pair(
    classes: int = 5, noise: float = 0.3, end: str = "y = Gemm <transB = 1> (q, wf, bf)"
) -> tuple[ModelProto, ModelProto]:
    """Return Conv-ReLU-Conv-ReLU-pool-Gemm, and the same with a chain, of noisy factors, for the second Conv."""
    rng = np.random.default_rng(0)
    first, last, bias = normal(rng, 12, 3, 3, 3) / 5, normal(rng, classes, 12), normal(rng, classes)
    rows, columns = normal(rng, 8, 12, 3, 1) / 6, normal(rng, 12, 8, 1, 3) / 5
    second = np.einsum("ocy,cix->oixy", columns[:, :, 0], rows[..., 0]).astype(np.float32)
    front = "a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  b = Relu (a)"
    back = f"d = Relu (c)  p = GlobalAveragePool (d)  q = Flatten (p)  {end}"
    whole = "c = Conv <pads = [1, 1, 1, 1]> (b, w2, b2)"
    factors = "r = Conv <pads = [1, 0, 1, 0]> (b, wr)  c = Conv <pads = [0, 1, 0, 1]> (r, wc, b2)"
    same = {"w1": first, "b1": normal(rng, 12) / 5, "b2": normal(rng, 12) / 5, "wf": last, "bf": bias}
    header = f"g (float[N, 3, 8, 8] x) => (float[N, {classes}] y)"
    original = parse(f"{header} {{ {front} {whole} {back} }}", **same, w2=second)
    noisy = {
        "wr": rows + noise / 6 * normal(rng, *rows.shape),
        "wc": columns + noise / 5 * normal(rng, *columns.shape),
    }
    optimised = parse(f"{header} {{ {front} {factors} {back} }}", **same, **noisy)
    names = {"n_r": CHAIN[0], "n_c": CHAIN[1]}
    for node in optimised.graph.node:
        node.name = names.get(node.name, node.name)
    describe(optimised)
    return original, optimised


def samples(count: int = 96, labels: int | None = None, batch: int = 1) -> Inputs:
    """Return random inputs, with as many classes of labels if that is said."""
    rng = np.random.default_rng(1)
    arrays = normal(rng, count, batch, 3, 8, 8)
    classes = None if labels is None else rng.integers(0, labels, (count, batch))
    return Inputs(lambda index: {"x": arrays[index]}, count, batch, f"{count * batch} random inputs", classes)

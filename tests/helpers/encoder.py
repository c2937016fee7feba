"""Small encoders as those of BERT: attention over tokens, with a mask of the padding."""

import numpy as np
from onnx import ModelProto, parser
from onnx.numpy_helper import from_array

from helpers.models import normal

WORDS, LONGEST = 50, 64


def encoder(
    layers: int = 2, width: int = 64, heads: int = 4, rank: int = 12, classes: int = 5, gelu: bool = True, seed: int = 0
) -> ModelProto:
    """Return ``ids, attention_mask [N, T] -> scores [N, classes]``, all dense weights nearly of low rank."""
    rng = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {
        "words": normal(rng, WORDS, width),
        "places": 0.3 * normal(rng, LONGEST, width),
        "one": np.float32(1),
        "far": np.float32(-1e4),
        "half": np.float32(0.5),
        "root": np.float32(np.sqrt(2)),
        "scale": np.float32(1 / np.sqrt(width / heads)),
        "split": np.array([0, 0, heads, width // heads]),
        "join": np.array([0, 0, width]),
        "axis0": np.array([0]),
        "axis1": np.array([1]),
        "axes12": np.array([1, 2]),
        "first": np.array(0),
        "gain": np.ones(width, np.float32),
    }
    lines: list[str] = []

    def dense(name: str, source: str, inner: int, outer: int, rank: int = rank) -> str:
        low = normal(rng, inner, rank) @ normal(rng, rank, outer) / np.sqrt(rank * inner)
        constants[f"{name}_w"] = (low + 0.02 / np.sqrt(inner) * normal(rng, inner, outer)).astype(np.float32)
        constants[f"{name}_b"] = 0.1 * normal(rng, outer)
        lines.append(f"{name}_m = MatMul ({source}, {name}_w)  {name} = Add ({name}_b, {name}_m)")
        return name

    x = "x0"
    for i in range(layers):
        for part in "qkv":
            dense(f"{part}{i}", x, width, width)
            lines.append(f"{part}{i}_s = Reshape ({part}{i}, split)")
            order = "0, 2, 3, 1" if part == "k" else "0, 2, 1, 3"
            lines.append(f"{part}{i}_t = Transpose <perm = [{order}]> ({part}{i}_s)")
        lines.append(f"a{i}_p = MatMul (q{i}_t, k{i}_t)  a{i}_c = Mul (a{i}_p, scale)  a{i}_m = Add (a{i}_c, away)")
        lines.append(f"a{i} = Softmax <axis = -1> (a{i}_m)  c{i}_h = MatMul (a{i}, v{i}_t)")
        lines.append(f"c{i}_t = Transpose <perm = [0, 2, 1, 3]> (c{i}_h)  c{i} = Reshape (c{i}_t, join)")
        dense(f"o{i}", f"c{i}", width, width)
        lines.append(f"r{i} = Add (o{i}, {x})  n{i} = LayerNormalization (r{i}, gain)")
        dense(f"u{i}", f"n{i}", width, 4 * width)
        if gelu:
            lines.append(f"e{i}_d = Div (u{i}, root)  e{i}_e = Erf (e{i}_d)  e{i}_a = Add (e{i}_e, one)")
            lines.append(f"e{i}_m = Mul (u{i}, e{i}_a)  e{i} = Mul (e{i}_m, half)")
        else:
            lines.append(f"e{i} = Relu (u{i})")
        dense(f"d{i}", f"e{i}", 4 * width, width)
        lines.append(f"s{i} = Add (d{i}, n{i})  x{i + 1} = LayerNormalization (s{i}, gain)")
        x = f"x{i + 1}"
    constants["pool_w"], constants["score_w"] = normal(rng, width, width) / 8, normal(rng, width, classes) / 8
    body = "\n".join(lines)
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (int64[N, T] ids, int64[N, T] attention_mask) => (float[N, {classes}] scores) {{
            shape = Shape (ids)
            length = Gather <axis = 0> (shape, axis1)
            here = Slice (places, axis0, length, axis0)
            word = Gather (words, ids)
            sum = Add (word, here)
            x0 = LayerNormalization (sum, gain)
            seen = Cast <to = 1> (attention_mask)
            hidden = Sub (one, seen)
            off = Mul (hidden, far)
            away = Unsqueeze (off, axes12)
            {body}
            token = Gather <axis = 1> ({x}, first)
            pooled_g = Gemm (token, pool_w)
            pooled = Tanh (pooled_g)
            scores = Gemm (pooled, score_w)
        }}"""
    )
    for name, values in constants.items():
        model.graph.initializer.append(from_array(np.asarray(values), name))
    for node in model.graph.node:
        node.name = f"n_{node.output[0]}"
    return model


def sentences(count: int, length: int = 24, seed: int = 1, shortest: int = 4) -> dict[str, np.ndarray]:
    """Return feeds of ``count`` sentences of ``shortest`` to ``length`` words, padded with word 0."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, WORDS, (count, length))
    mask = (np.arange(length) < rng.integers(shortest, length + 1, (count, 1))).astype(np.int64)
    return {"ids": ids * mask, "attention_mask": mask}

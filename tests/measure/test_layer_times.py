"""Layers and links of chains get the times of all their nodes, and of what lays out tensors for them."""

from dataclasses import replace

import numpy as np
from helpers.models import normal

from onnxlowrank.graph.layer import FLAT, Layer, Place
from onnxlowrank.measure.layer_times import time_per_layer, time_per_link
from onnxlowrank.measure.node_times import NodeTime

RNG = np.random.default_rng(3)


def layer(name: str, *nodes: str) -> Layer:
    return Layer(name, "MatMul", normal(RNG, 2, 2), None, FLAT, "in", "out", nodes or (name,), "out")


def test_layers_whose_names_begin_alike() -> None:
    layers = [layer("conv1"), layer("conv1_2"), layer("conv1/x"), layer("fc", "fc", "fc_bias"), layer("a/lowrank/b")]
    owners = {
        "conv1/lowrank/rows": "conv1", "conv1/lowrank/rows_1": "conv1", "conv1/lowrank/rows/0": "conv1",
        "conv1_2/lowrank/rows": "conv1_2", "conv1/x/lowrank/rows": "conv1/x",
        "fc": "fc", "fc_bias": "fc",
        "a/lowrank/b": "a/lowrank/b",
        "conv1_3": None, "conv1/y": None, "a/lowrank/c": None, None: None,
    }  # fmt: skip
    times = [NodeTime("any", "Conv", node, (1.0, 2.0**i, 1e6)) for i, node in enumerate(owners)]
    per_layer, rest = time_per_layer(times, layers)
    expected = {one.name: 0.0 for one in layers}
    for part in times:
        owner = owners[part.node]
        if owner is not None:
            expected[owner] += part.median
    assert per_layer == expected
    assert sum(per_layer.values()) + rest == 2.0 ** len(owners) - 1
    again = time_per_layer(
        [NodeTime("any", "Conv", "a/lowrank/b/lowrank/rows", (4.0,))], [layer("a"), layer("a/lowrank/b")]
    )
    assert again == ({"a": 0.0, "a/lowrank/b": 4.0}, 0.0)


def test_a_layer_takes_the_time_of_all_its_places() -> None:
    twice = replace(layer("a"), elsewhere=(Place("in", "out", ("b/c", "add"), "out"),))
    names = ["a", "b/c", "add", "a/lowrank/rows", "b/c/lowrank/rows_1", "b", "b/lowrank/rows"]
    times = [NodeTime("any", "MatMul", name, (2.0**i,)) for i, name in enumerate(names)]
    assert time_per_layer(times, [twice]) == ({"a": 31.0}, 96.0)


def test_a_node_of_the_users_own_may_be_called_like_that_of_a_chain() -> None:
    times = [NodeTime("any", "Relu", node, (2.0,)) for node in ("conv1", "conv1/lowrank/rows", "conv1/lowrank/rows_1")]
    own = {"conv1", "conv1/lowrank/rows"}
    assert time_per_layer(times, [layer("conv1")], own) == ({"conv1": 4.0}, 2.0)


def run(*nodes: tuple[str, str | None, float]) -> list[NodeTime]:
    return [NodeTime("any", op, node, (milliseconds,)) for op, node, milliseconds in nodes]


def test_what_lays_out_tensors_is_of_the_layer_behind_it() -> None:
    times = run(
        ("Conv", "a", 1.0),
        ("ReorderOutput", None, 2.0),
        ("Gather", "b/lowrank/rows/take", 4.0),
        ("ReorderInput", None, 8.0),
        ("Conv", "b/lowrank/rows", 16.0),
        ("Conv", "b/lowrank/columns_1", 32.0),
        ("ReorderOutput", None, 64.0),
        ("MaxPool", "pool", 128.0),
        ("ReorderInput", None, 256.0),
        ("Exp", "exp", 512.0),
        ("Other", None, 1024.0),
    )
    links = {"a": {"": 1.0}, "b": {"rows": 30.0, "columns_1": 96.0}}
    assert time_per_link(times, [layer("a"), layer("b")]) == (links, 1920.0)
    per_layer, rest = time_per_layer(times, [layer("a"), layer("b")])
    assert (per_layer, rest) == ({"a": 1.0, "b": 126.0}, 1920.0), "before a node of no layer: of the layer in front"

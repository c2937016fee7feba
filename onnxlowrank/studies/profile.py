"""Where a network spends its time: node by node, operator by operator, and how much of it is arithmetic."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from onnxlowrank.calibrate.kept_nodes import kept_nodes
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.errors import OptionError
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.load import describe, load
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.inputs.preprocess import Preprocess
from onnxlowrank.inputs.sources import Source, open_or_synthesise
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.measure.node_times import NodeTime
from onnxlowrank.measure.node_times import profile as time_nodes
from onnxlowrank.measure.sessions import Target
from onnxlowrank.result import json_ready

SCHEMA = 1


@dataclass(frozen=True)
class NodeProfile:
    """What one node takes.

    Attributes:
        node: Its name in the network; onnxruntime's own nodes, which bring tensors into another layout, have none.
        name: The name onnxruntime gives it.
        op: Its operator in onnxruntime's graph.
        milliseconds: Median time of a run.
        share: Of the time of all nodes.
        macs: Multiply-accumulates of the convolutions and matrix products that it computes, those of the graphs inside
            it included, for the input it was timed on; 0 for others.
    """

    node: str | None
    name: str
    op: str
    milliseconds: float
    share: float
    macs: int

    @property
    def gflops(self) -> float:
        """Thousand million floating-point operations a second, two a multiply-accumulate."""
        return 2e-6 * self.macs / self.milliseconds if self.milliseconds else 0.0


@dataclass(frozen=True)
class Profile:
    """Where a network spends its time.

    Attributes:
        model: What was timed.
        provider: Where.
        threads: Number of threads.
        batch: Samples an input.
        nodes: In the order onnxruntime runs them.
    """

    model: str
    provider: str
    threads: int
    batch: int
    nodes: tuple[NodeProfile, ...]

    @property
    def milliseconds(self) -> float:
        """Sum of the nodes' medians."""
        return sum(node.milliseconds for node in self.nodes)

    @property
    def by_op(self) -> dict[str, tuple[int, float, int]]:
        """Number of nodes, milliseconds and multiply-accumulates of every operator, the dearest first."""
        found: dict[str, tuple[int, float, int]] = {}
        for node in self.nodes:
            count, milliseconds, macs = found.get(node.op, (0, 0.0, 0))
            found[node.op] = count + 1, milliseconds + node.milliseconds, macs + node.macs
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; ``onnxlowrank schema profile`` describes them."""
        total = self.milliseconds
        return {
            "schema": SCHEMA,
            "kind": "profile",
            **{name: getattr(self, name) for name in ("model", "provider", "threads", "batch", "milliseconds")},
            "nodes": [json_ready({**asdict(node), "gflops": node.gflops}) for node in self.nodes],
            "ops": [
                {"op": op, "nodes": count, "milliseconds": ms, "share": ms / total if total else 0.0, "macs": macs}
                for op, (count, ms, macs) in self.by_op.items()
            ],
        }


def profile(
    model: str | os.PathLike[str] | onnx.ModelProto,
    *,
    inputs: Source | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    preprocess: Preprocess | None = None,
    provider: str = "cpu",
    threads: int = 1,
    seconds: float = 5.0,
) -> Profile:
    """Time every node of a network with onnxruntime's profiler.

    Args:
        model: ONNX file, or the network itself.
        inputs: Sample inputs, of which the first is run; None makes a random one.
        shapes: Of random inputs, for dimensions that the network leaves open.
        preprocess: How images become inputs.
        provider: ``cpu`` or ``cuda``; there a node's time is that to start its work, see
            :func:`onnxlowrank.measure.node_times.profile`.
        threads: Number of threads.
        seconds: About how long to run the network.

    Raises:
        OnnxLowRankError: If the network, the inputs or an option is unusable.
    """
    target = Target(provider, threads)
    target.check()
    if not seconds > 0:
        raise OptionError(f"--seconds {seconds:g} makes no sense; give a number above 0, e.g. 5")
    network = load(model, any_precision=True)
    used = open_or_synthesise(input_specs(network), inputs, shapes or {}, preprocess, 1, 0)
    normalised = normalise(network)
    layers = with_shapes(normalised, find_layers(normalised), used)
    alone = [one for layer in layers for one in layer.one_by_one()]
    samples = next((layer.samples for layer in layers), None) or used.batch
    macs = {one.nodes[0]: one.macs * samples for one in alone}
    for node in kept_nodes(normalised, layers, used):
        macs[node.place] = macs.get(node.place, 0) + node.macs * samples
    times = time_nodes(network, used[0], target, seconds)
    total = sum(part.median for part in times) or 1.0
    return Profile(describe(model), provider, threads, used.batch, tuple(_share(part, total, macs) for part in times))


def _share(part: NodeTime, total: float, macs: Mapping[str, int]) -> NodeProfile:
    return NodeProfile(part.node, part.name, part.op, part.median, part.median / total, macs.get(part.node or "", 0))

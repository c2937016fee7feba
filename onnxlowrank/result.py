"""What an optimisation gives back: the network and everything there is to say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from onnxlowrank.evaluate.agreement import Agreement
from onnxlowrank.goal import CONV_MACS, LATENCY, MAX_DROP, MAX_MACS, MAX_SIZE, SPEEDUP, Goal
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.layer import FloatArray, Layer
from onnxlowrank.json_values import finite
from onnxlowrank.measure.latency import Latency
from onnxlowrank.passes.base import KEEP, Candidate, Setting

SCHEMA = 3


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: Node name.
        method: The pass, or ``keep``.
        setting: The pass's ranks, named by ``rank_names``.
        energy: Predicted share of the response's variance that is kept.
        macs: Multiply-accumulates for one sample, before and after.
        parameters: Number of weights and biases, before and after.
        kept_because: Why the layer stayed as it was; empty when it did not.
        milliseconds: Inside the network, by onnxruntime's profiler, before and after; None where it does not tell.
    """

    name: str
    method: str
    setting: Setting
    rank_names: tuple[str, ...]
    energy: float
    macs: tuple[int, int]
    parameters: tuple[int, int]
    kept_because: str = ""
    milliseconds: tuple[float, float] | None = None


@dataclass(frozen=True)
class ModelReport:
    """The whole network; MACs and parameters are those of its Conv, Gemm and MatMul layers."""

    macs: int
    parameters: int
    file_bytes: int
    latency: Latency


@dataclass(frozen=True, eq=False)
class Result:
    """The optimised network and its report.

    Attributes:
        model: The optimised network.
        goal: What was asked for.
        predicted_speedup: What the sum of the layers' times promised; None where nothing but operations were counted.
        latency_speedup: Time before / time after, median over interleaved runs.
        macs_speedup: Convolutions' MACs before / after.
        layers: One report a layer, in the order of the graph.
        before: The network as it was given.
        after: The optimised network.
        agreement: How far the outputs differ on inputs the fit has not seen.
        provider: Execution provider of the latencies.
        threads: Number of threads of the latencies.
        seconds: How long the optimisation took.
        notes: What the user should know, e.g. that no calibration data were given.
        first_filters: ``[F, 3, kh, kw]`` of a first layer that sees RGB, before and after; None where there is none.
    """

    model: onnx.ModelProto
    goal: Goal
    predicted_speedup: float | None
    latency_speedup: float
    macs_speedup: float
    layers: tuple[LayerReport, ...]
    before: ModelReport
    after: ModelReport
    agreement: Agreement
    provider: str
    threads: int
    seconds: float
    notes: tuple[str, ...] = ()
    first_filters: tuple[FloatArray, FloatArray] | None = None

    @property
    def achieved(self) -> float:
        """What was reached, in the units of the goal: times, milliseconds, points, multiply-accumulates or bytes."""
        return {
            SPEEDUP: self.latency_speedup,
            LATENCY: self.after.latency.median,
            MAX_DROP: self.agreement.drop,
            CONV_MACS: self.macs_speedup,
            MAX_MACS: self.after.macs,
            MAX_SIZE: self.after.file_bytes,
        }[self.goal.kind]

    @property
    def reached(self) -> bool:
        """Whether that is what was asked for; with ``max_drop``, whether anything was gained within it."""
        if self.goal.kind in (SPEEDUP, CONV_MACS):
            return self.achieved >= self.goal.value
        return self.achieved <= self.goal.value and (self.goal.kind != MAX_DROP or self.latency_speedup > 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the report, without the network, as JSON-ready values."""
        report: dict[str, Any] = {"schema": SCHEMA, "kind": "optimize", **vars(self)}
        del report["model"], report["first_filters"]
        report["goal"] = {**asdict(self.goal), "achieved": self.achieved, "reached": self.reached}
        report["layers"] = [asdict(layer) for layer in self.layers]
        report["agreement"] = asdict(self.agreement)
        for side in ("before", "after"):
            part: ModelReport = report[side]
            low, high = part.latency.spread
            report[side] = {
                "macs": part.macs,
                "parameters": part.parameters,
                "file_bytes": part.file_bytes,
                "latency_ms": {"median": part.latency.median, "p10": low, "p90": high},
            }
        return {key: finite(value) for key, value in report.items()}


def report_layer(
    layer: Layer,
    candidate: Candidate,
    chain: Chain | None,
    rank_names: tuple[str, ...],
    kept_because: str,
    milliseconds: tuple[float, float] | None = None,
) -> LayerReport:
    """Return the report of one layer; the reason counts only where the layer was kept."""
    return LayerReport(
        name=layer.name,
        method=candidate.method,
        setting=candidate.setting,
        rank_names=rank_names,
        energy=candidate.energy,
        macs=(layer.macs, _macs(layer, chain)),
        parameters=(layer.parameters, _parameters(layer, chain)),
        kept_because=kept_because if candidate.method == KEEP else "",
        milliseconds=milliseconds,
    )


def report_model(
    model: onnx.ModelProto, layers: Sequence[Layer], chains: Mapping[str, Chain], latency: Latency
) -> ModelReport:
    """Return the report of a whole network."""
    return ModelReport(
        macs=sum(_macs(layer, chains.get(layer.name)) for layer in layers),
        parameters=sum(_parameters(layer, chains.get(layer.name)) for layer in layers),
        file_bytes=model.ByteSize(),
        latency=latency,
    )


def conv_macs(layers: Sequence[Layer], chains: Mapping[str, Chain]) -> int:
    """Return the MACs of all convolutions: what the papers' theoretical speed-ups are about."""
    return sum(_macs(layer, chains.get(layer.name)) for layer in layers if layer.is_conv)


def _macs(layer: Layer, chain: Chain | None) -> int:
    return layer.macs if chain is None else chain.macs(layer.input_shape)


def _parameters(layer: Layer, chain: Chain | None) -> int:
    return layer.parameters if chain is None else chain.parameters

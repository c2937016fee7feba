"""What an optimisation gives back: the network and everything there is to say about it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from onnxlowrank.calibrate.kept_nodes import KeptNode
from onnxlowrank.evaluate.agreement import Agreement
from onnxlowrank.goal import CONV_MACS, FLOAT32, LATENCY, MAX_DROP, MAX_MACS, MAX_SIZE, SPEEDUP, Goal
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.layer import FloatArray, Layer
from onnxlowrank.graph.outside import byte_count
from onnxlowrank.measure.latency import Latency
from onnxlowrank.passes.base import KEEP, Setting
from onnxlowrank.plan.builder import FittedNetwork
from onnxlowrank.plan.counted import layer_macs, macs_speedup
from onnxlowrank.plan.int8_alone import Int8Alone
from onnxlowrank.plan.network import Network
from onnxlowrank.quantize.qdq import precision_of

SCHEMA = 5
ROUNDING_COSTS = "what int8 would lose here is worth more than the time it saves"
OUT_OF_RANGE = "numbers it reads or computes are out of the range of fp16"
FLOAT32_IS_BETTER = "nothing was found that is int8 and better"
NOT_FINITE = "it computes or reads what is not finite"


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer, or of a node that is none: it computes convolutions or matrix products, and is kept.

    Attributes:
        name: Node name; of several places, that of the first.
        method: The pass, or ``keep``.
        setting: The pass's ranks, named by ``rank_names``.
        energy: Predicted share of the response's variance that is kept; None of a node that is no layer.
        macs: Multiply-accumulates for one sample, before and after.
        parameters: Number of weights and biases, before and after.
        kept_because: Why the layer stayed as it was; empty when it did not.
        milliseconds: Inside the network, by onnxruntime's profiler, before and after; None where it does not tell.
        places: How many nodes share the weight; MACs and milliseconds are those of all, parameters count once.
        precision: ``float32``, ``fp16`` or ``int8``, of what it became; ``mixed`` where some of its chain is int8.
        float32_because: Why it stayed in float32 in an int8 network; empty elsewhere.
    """

    name: str
    method: str
    setting: Setting
    rank_names: tuple[str, ...]
    energy: float | None
    macs: tuple[int, int]
    parameters: tuple[int, int]
    kept_because: str = ""
    milliseconds: tuple[float, float] | None = None
    places: int = 1
    precision: str = FLOAT32
    float32_because: str = ""


@dataclass(frozen=True)
class ModelReport:
    """The whole network.

    Attributes:
        macs: Multiply-accumulates for one sample, of everything that computes convolutions or matrix products.
        is_counted: Whether that is all; otherwise there is work that could not be counted.
        parameters: Weights and biases of these.
        file_bytes: Size of the file.
        latency: Times.
    """

    macs: int
    is_counted: bool
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
        layers: One report a layer, in the order of the graph, and a kept node.
        before: The network as it was given.
        after: The optimised network.
        agreement: How far the outputs differ on inputs the fit has not seen.
        provider: Execution provider of the latencies.
        threads: Number of threads of the latencies.
        seconds: How long the optimisation took.
        notes: What the user should know, e.g. that no calibration data were given.
        precision: What was asked for: ``float32``, ``fp16``, ``int8`` or ``mixed``.
        int8_weights: Bits of its int8 weights; None where it has none.
        int8_alone: What int8 alone gives, where that is the precision.
        first_filters: ``[F, 3, kh, kw]`` of a first layer that sees RGB, before and after; None where there is none.
        is_interrupted: Whether its fine-tuning was ended by the user or a signal.
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
    precision: str = FLOAT32
    int8_weights: int | None = None
    int8_alone: Int8Alone | None = None
    first_filters: tuple[FloatArray, FloatArray] | None = None
    is_interrupted: bool = False

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
        """Whether that is what was asked for; with ``max_drop``, whether anything was gained within it.

        At most so many multiply-accumulates are not reached where some could not be counted.
        """
        if self.goal.kind in (SPEEDUP, CONV_MACS):
            return self.achieved >= self.goal.value
        if self.goal.kind == MAX_MACS and not self.after.is_counted:
            return False
        return self.achieved <= self.goal.value and (self.goal.kind != MAX_DROP or self.latency_speedup > 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the report, without the network, as JSON-ready values."""
        report: dict[str, Any] = {"schema": SCHEMA, "kind": "optimize", **vars(self)}
        del report["model"], report["first_filters"], report["is_interrupted"]
        report["goal"] = {**asdict(self.goal), "achieved": self.achieved, "reached": self.reached}
        report["layers"] = [asdict(layer) for layer in self.layers]
        report["agreement"] = asdict(self.agreement)
        if self.int8_alone is not None:
            report["int8_alone"] = self.int8_alone.to_dict()
        for side in ("before", "after"):
            part: ModelReport = report[side]
            low, high = part.latency.spread
            report[side] = {
                "macs": part.macs,
                "macs_complete": part.is_counted,
                "parameters": part.parameters,
                "file_bytes": part.file_bytes,
                "latency_ms": {"median": part.latency.median, "p10": low, "p90": high},
            }
        return {key: json_ready(value) for key, value in report.items()}


def result_of(
    goal: Goal,
    fitted: FittedNetwork,
    network: Network,
    precision: str,
    reasons: Mapping[str, str],
    agreement: Agreement,
    notes: tuple[str, ...],
    start: float,
    alone: Int8Alone | None = None,
) -> Result:
    """Return all there is to say about a fitted network.

    Args:
        goal: What was asked for.
        fitted: The network.
        network: What it was made of.
        precision: What was asked for.
        reasons: Why layers have no candidates.
        agreement: How far its outputs differ.
        notes: What the user should know.
        start: When the work began, by ``time.perf_counter``.
        alone: What int8 alone gives, where that is the precision.
    """
    layers, (before, after) = network.layers, network.layer_times(network.folded, fitted.model)
    times = {name: (before[name], after[name]) for name in before if before[name]}  # others left no node of their own
    counted = network.counted(fitted.chains)
    order = {node.name: position for position, node in enumerate(network.model.graph.node)}
    reports = [
        (order[layer.nodes[0]], _report_layer(layer, fitted, network, reasons, times, counted)) for layer in layers
    ]
    reports += [(order[one.place], _report_kept(one)) for one in network.kept]
    return Result(
        model=fitted.model,
        goal=goal,
        predicted_speedup=fitted.predicted,
        latency_speedup=fitted.speedup,
        macs_speedup=macs_speedup(network, fitted),
        layers=tuple(report for _, report in sorted(reports, key=lambda one: one[0])),
        before=_report_model(network, network.original, {}, fitted.before),
        after=_report_model(network, fitted.model, counted, fitted.after),
        agreement=agreement,
        provider=network.target.provider,
        threads=network.target.threads,
        seconds=time.perf_counter() - start,
        notes=notes,
        precision=precision,
        int8_weights=None if network.int8 is None else network.int8.weight_bits,
        int8_alone=alone,
        first_filters=_first_filters(layers[0], fitted),
    )


def _report_layer(
    layer: Layer,
    fitted: FittedNetwork,
    network: Network,
    reasons: Mapping[str, str],
    milliseconds: Mapping[str, tuple[float, float]],
    counted: Mapping[str, Chain],
) -> LayerReport:
    """Return the report of one layer."""
    candidate, chain = fitted.plan[layer.name], counted.get(layer.name)
    kept, kept_because = candidate.method == KEEP, ""
    if kept:
        kept_because = reasons.get(layer.name) or fitted.kept_because(layer.name)
    return LayerReport(
        name=layer.name,
        method=candidate.method,
        setting=candidate.setting,
        rank_names=() if kept else network.applicable[layer.name][candidate.method].rank_names,
        energy=candidate.energy,
        macs=(layer.macs, layer_macs(layer, chain)),
        parameters=(layer.parameters, _parameters(layer, chain)),
        kept_because=kept_because,
        milliseconds=milliseconds.get(layer.name),
        places=len(layer.places),
        precision=precision_of(fitted.model, layer),
        float32_because=_float32_because(layer, fitted, network),
    )


def _float32_because(layer: Layer, fitted: FittedNetwork, network: Network) -> str:
    """Return why a layer stayed in float32 in a network that was to be int8."""
    if network.half is not None and precision_of(fitted.model, layer) == FLOAT32:
        return "" if fitted.model is network.original else OUT_OF_RANGE
    if network.int8 is None:
        return ""
    known = network.int8.reasons.get(layer.name, "")
    if known or precision_of(fitted.model, layer) != FLOAT32:
        return known
    return ROUNDING_COSTS if layer.name in fitted.float32 else FLOAT32_IS_BETTER


def _report_kept(one: KeptNode) -> LayerReport:
    """Return the report of a node that is no layer."""
    sizes = (one.macs, one.macs), (one.parameters, one.parameters)
    return LayerReport(one.name, KEEP, (), (), None, *sizes, kept_because=one.reason)


def _first_filters(first: Layer, fitted: FittedNetwork) -> tuple[FloatArray, FloatArray] | None:
    """Return the filters of a first layer that sees an image in colour, as they were and as they are now."""
    if first.weight.ndim != 4 or first.inputs != 3 or first.group != 1:
        return None
    chain = fitted.chains.get(first.name)
    return first.weight, first.weight if chain is None else chain.dense_kernel().reshape(first.weight.shape)


def _report_model(
    network: Network, model: onnx.ModelProto, chains: Mapping[str, Chain], latency: Latency
) -> ModelReport:
    """Return the report of a whole network."""
    layers, kept = network.layers, network.kept
    return ModelReport(
        macs=sum(layer_macs(layer, chains.get(layer.name)) for layer in layers) + sum(one.macs for one in kept),
        is_counted=all(one.is_counted for one in kept),
        parameters=sum(_parameters(layer, chains.get(layer.name)) for layer in layers)
        + sum(one.parameters for one in kept),
        file_bytes=byte_count(model),
        latency=latency,
    )


def _parameters(layer: Layer, chain: Chain | None) -> int:
    return layer.parameters if chain is None else chain.parameters


def json_ready(value: Any) -> Any:
    """Return ``value``, in which NaN and infinities, which JSON has not, became None."""
    if isinstance(value, dict):
        return {k: json_ready(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

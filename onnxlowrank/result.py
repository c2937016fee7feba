"""What an optimisation gives back: the network and everything there is to say about it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from onnxlowrank.evaluate.agreement import Agreement
from onnxlowrank.goal import CONV_MACS, LATENCY, MAX_DROP, MAX_MACS, MAX_SIZE, SPEEDUP, TOO_FAST, Goal
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.layer import FloatArray, Layer
from onnxlowrank.graph.outside import byte_count
from onnxlowrank.measure.chain_timer import ChainTimer
from onnxlowrank.measure.latency import Latency
from onnxlowrank.passes.base import KEEP, ApplicablePasses, Candidate, Setting
from onnxlowrank.plan.builder import FittedNetwork
from onnxlowrank.plan.network import Network

SCHEMA = 4


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: Node name; of several places, that of the first.
        method: The pass, or ``keep``.
        setting: The pass's ranks, named by ``rank_names``.
        energy: Predicted share of the response's variance that is kept.
        macs: Multiply-accumulates for one sample, before and after.
        parameters: Number of weights and biases, before and after.
        kept_because: Why the layer stayed as it was; empty when it did not.
        milliseconds: Inside the network, by onnxruntime's profiler, before and after; None where it does not tell.
        places: How many nodes share the weight; MACs and milliseconds are those of all, parameters count once.
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
    places: int = 1


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
        return {key: json_ready(value) for key, value in report.items()}


def result_of(
    goal: Goal,
    fitted: FittedNetwork,
    network: Network,
    candidates: Mapping[str, Sequence[Candidate]],
    reasons: Mapping[str, str],
    agreement: Agreement,
    notes: tuple[str, ...],
    start: float,
) -> Result:
    """Return all there is to say about a fitted network.

    Args:
        goal: What was asked for.
        fitted: The network.
        network: What it was made of.
        candidates: Those of every layer.
        reasons: Why layers have none.
        agreement: How far its outputs differ.
        notes: What the user should know.
        start: When the work began, by ``time.perf_counter``.
    """
    layers, (before, after) = network.layers, network.layer_times(network.model, fitted.model)
    times = {name: (before[name], after[name]) for name in before}
    return Result(
        model=fitted.model,
        goal=goal,
        predicted_speedup=fitted.predicted,
        latency_speedup=fitted.speedup,
        macs_speedup=conv_macs(layers, {}) / max(conv_macs(layers, fitted.chains), 1),
        layers=tuple(
            _report_layer(
                layer,
                fitted,
                network.applicable,
                reasons.get(layer.name) or _nothing_chosen(candidates[layer.name]),
                times.get(layer.name),
            )
            for layer in layers
        ),
        before=_report_model(network.original, layers, {}, fitted.before),
        after=_report_model(fitted.model, layers, fitted.chains, fitted.after),
        agreement=agreement,
        provider=network.target.provider,
        threads=network.target.threads,
        seconds=time.perf_counter() - start,
        notes=notes,
        first_filters=_first_filters(layers[0], fitted),
    )


def warnings_of(goal: Goal, speedup: float, timer: ChainTimer, agreement: Agreement) -> list[str]:
    """Return what the user should hear when times are uncertain, the goal is overshot, or the outputs changed much."""
    top1, error = agreement.top1_agreement, agreement.relative_error or 0.0
    warnings = []
    if goal.kind == SPEEDUP and speedup > TOO_FAST * goal.value:
        warnings.append(
            f"{speedup:.2f}x is more than was asked for, and costs accuracy: times scatter too much to come closer, "
            "or no plan lies between; a new run on an idle machine may find one"
        )
    if timer.noisy:
        warnings.append(
            f"{timer.noisy} of the {timer.timed} chains that were tried in place of layers could be timed to no better "
            "than 2 %; if other work shared the machine, 'onnxlowrank cache --clear' and a new run on an idle one give "
            "a better plan"
        )
    if agreement.not_compared:
        warnings.append(
            f"the outputs were not compared: {agreement.not_compared}; look at what they are worth yourself"
        )
    if error > 0.3 if top1 is None else top1 < 0.9:
        warnings.append("the outputs changed a lot: ask for a smaller speed-up, or give more calibration inputs")
    return warnings


def _report_layer(
    layer: Layer,
    fitted: FittedNetwork,
    applicable: ApplicablePasses,
    kept_because: str,
    milliseconds: tuple[float, float] | None,
) -> LayerReport:
    """Return the report of one layer; the reason counts only where the layer was kept."""
    candidate, chain = fitted.plan[layer.name], fitted.chains.get(layer.name)
    kept = candidate.method == KEEP
    return LayerReport(
        name=layer.name,
        method=candidate.method,
        setting=candidate.setting,
        rank_names=() if kept else applicable[layer.name][candidate.method].rank_names,
        energy=candidate.energy,
        macs=(layer.macs, _macs(layer, chain)),
        parameters=(layer.parameters, _parameters(layer, chain)),
        kept_because=kept_because if kept else "",
        milliseconds=milliseconds,
        places=len(layer.places),
    )


def _nothing_chosen(candidates: Sequence[Candidate]) -> str:
    """Return why a layer that passes suit was kept."""
    return "no setting is cheaper" if len(candidates) == 1 else "no setting saves enough for its loss"


def _first_filters(first: Layer, fitted: FittedNetwork) -> tuple[FloatArray, FloatArray] | None:
    """Return the filters of a first layer that sees an image in colour, as they were and as they are now."""
    if first.weight.ndim != 4 or first.inputs != 3 or first.group != 1:
        return None
    chain = fitted.chains.get(first.name)
    return first.weight, first.weight if chain is None else chain.dense_kernel().reshape(first.weight.shape)


def _report_model(
    model: onnx.ModelProto, layers: Sequence[Layer], chains: Mapping[str, Chain], latency: Latency
) -> ModelReport:
    """Return the report of a whole network."""
    return ModelReport(
        macs=sum(_macs(layer, chains.get(layer.name)) for layer in layers),
        parameters=sum(_parameters(layer, chains.get(layer.name)) for layer in layers),
        file_bytes=byte_count(model),
        latency=latency,
    )


def conv_macs(layers: Sequence[Layer], chains: Mapping[str, Chain]) -> int:
    """Return the MACs of all convolutions: what the papers' theoretical speed-ups are about."""
    return sum(_macs(layer, chains.get(layer.name)) for layer in layers if layer.is_conv)


def _macs(layer: Layer, chain: Chain | None) -> int:
    return layer.macs if chain is None else chain.macs_in(layer)


def _parameters(layer: Layer, chain: Chain | None) -> int:
    return layer.parameters if chain is None else chain.parameters


def json_ready(value: Any) -> Any:
    """Return ``value``, in which NaN and infinities, which JSON has not, became None."""
    if isinstance(value, dict):
        return {k: json_ready(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

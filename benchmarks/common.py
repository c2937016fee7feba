"""What the benchmarks share: options, and a network with its layers, statistics, candidates and latency model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tables import add_result_options
from threadpoolctl import threadpool_limits

from onnxlowrank.calibrate.capture import RowStore
from onnxlowrank.calibrate.hold_out import hold_out
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.calibrate.stacking import stacked_inputs
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.evaluate.agreement import Agreement, compare_outputs
from onnxlowrank.evaluate.measures import Measure, measures_of
from onnxlowrank.fit.drafts import Drafts
from onnxlowrank.fit.fitter import Fitter
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.load import load, save
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.preprocess import Preprocess, preprocess_from_options
from onnxlowrank.inputs.sources import open_inputs
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.measure.cache import Cache
from onnxlowrank.measure.chain_timer import ChainTimer
from onnxlowrank.measure.channel_block import channel_block
from onnxlowrank.measure.lowerings import Lowerings
from onnxlowrank.measure.sessions import Target
from onnxlowrank.passes import chosen_passes
from onnxlowrank.passes.base import Candidate
from onnxlowrank.plan.applicability import applicable_passes
from onnxlowrank.plan.candidates import find_candidates
from onnxlowrank.plan.int8_losses import Int8Losses
from onnxlowrank.plan.latency_model import LatencyModel
from onnxlowrank.plan.network import Network
from onnxlowrank.plan.selection import EnergyLosses, Losses
from onnxlowrank.plan.sensitivity import SensitivityLosses
from onnxlowrank.progress import Silent
from onnxlowrank.quantize.int8 import Int8, ready_for_int8
from onnxlowrank.temporary import Scratch

LOST = {"top-1 drop (points)": "{:.1f}", "same class": "{:.1f} %", "KL divergence": "{:.4f}"}
"""Columns of :func:`lost`."""


def arguments(description: str | None, inputs: int = 200, test_inputs: int | None = None) -> argparse.ArgumentParser:
    """Return a parser that knows the network, its inputs and where results go.

    Args:
        description: Of the script.
        inputs: How many are used to calibrate if nothing is said.
        test_inputs: Likewise to compare on; None takes no test inputs.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calibration")
    if test_inputs is not None:
        parser.add_argument("test")
        parser.add_argument("--test-inputs", type=int, default=test_inputs)
    parser.add_argument("--preprocess", default="imagenet")
    parser.add_argument("--mean", help="of the pixels, as for onnxlowrank optimize")
    parser.add_argument("--resize", type=int)
    parser.add_argument("--crop", type=int)
    parser.add_argument("--inputs", type=int, default=inputs, help="calibration inputs")
    add_result_options(parser)
    return parser


def ready_copy(args: argparse.Namespace) -> Scratch:
    """Let the arguments name a copy of the network that can be made int8; it goes with what is returned."""
    scratch = Scratch()
    copy = scratch.folder / Path(args.model).name
    save(ready_for_int8(load(args.model)), copy)
    args.model = str(copy)
    return scratch


def preprocess(args: argparse.Namespace) -> Preprocess:
    """Return how images become inputs."""
    return preprocess_from_options(
        args.preprocess,
        mean=None if args.mean is None else tuple(map(float, args.mean.split(","))),
        resize=None if args.resize is None else (args.resize, args.resize),
        crop=None if args.crop is None else (args.crop, args.crop),
    )


def some_inputs(args: argparse.Namespace, original: onnx.ModelProto, source: str, count: int) -> Inputs:
    """Return ``count`` inputs, evenly spread over the source."""
    inputs = open_inputs(source, input_specs(original), preprocess(args))
    return inputs.subset(np.linspace(0, len(inputs) - 1, min(count, len(inputs))).astype(int).tolist())


def class_measures(model: onnx.ModelProto) -> tuple[Measure, ...]:
    """Return how outputs are measured: an only output ``[N, classes]`` as class scores, labels or not."""
    return measures_of(model, labelled=True)


def agreement(original: onnx.ModelProto, optimised: onnx.ModelProto, test: Inputs) -> Agreement:
    """Return how far the outputs of two networks differ."""
    return compare_outputs(original, optimised, test, lambda amount: None, class_measures(original))


def accuracy_drop(found: Agreement) -> float | None:
    """Return the points of accuracy that were lost; None without labels."""
    return None if found.accuracy is None else found.drop


def lost(found: Agreement) -> list[float | None]:
    """Return points of accuracy lost, per cent of the inputs in the same class, and divergence."""
    same = None if found.top1_agreement is None else 100 * found.top1_agreement
    return [accuracy_drop(found), same, found.divergence]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network, normalised too, with its layers and calibration inputs."""

    original: onnx.ModelProto
    model: onnx.ModelProto
    layers: list[Layer]
    inputs: Inputs


def load_network(args: argparse.Namespace) -> Loaded:
    """Load the network and open its calibration inputs."""
    original = load(args.model)
    model = normalise(original)
    inputs = some_inputs(args, original, args.calibration, args.inputs)
    return Loaded(original, model, with_shapes(model, find_layers(model), inputs), inputs)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network, and what calibration found out about it."""

    original: onnx.ModelProto
    about: Calibration
    drafts: Drafts
    candidates: Mapping[str, Sequence[Candidate]]
    inputs: Inputs

    @property
    def layers(self) -> Sequence[Layer]:
        """The network's layers."""
        return self.about.layers

    @property
    def measures(self) -> tuple[Measure, ...]:
        """How the network's outputs are measured."""
        return class_measures(self.about.model)

    def network(self, threads: int) -> Network:
        """Return the network as the search takes it."""
        lowering = Lowerings(self.timer(threads))
        about = self.about
        return Network(
            self.original,
            about.model,
            about.layers,
            about.applicable,
            lowering,
            self.inputs[0],
            Target(threads=threads),
        )

    def timer(self, threads: int, *how: Any) -> ChainTimer:
        """Return a timer of chains."""
        return ChainTimer(Target(threads=threads), Cache(), *how)

    def latency_model(
        self,
        threads: int,
        candidates: Mapping[str, Sequence[Candidate]] | None = None,
        losses: Losses | None = None,
    ) -> LatencyModel:
        """Return the latency model of all candidates, or of some; energies are their losses where none are given."""
        some = self.candidates if candidates is None else candidates
        return LatencyModel(self.network(threads), some, losses or EnergyLosses(), self.timer(threads))

    def sensitivities(self) -> SensitivityLosses:
        """Return measured losses, the default of the tool."""
        return SensitivityLosses(self.about, self.drafts, self.candidates, class_measures(self.about.model), Silent())

    def int8_losses(self, float32: SensitivityLosses, int8: Int8) -> Int8Losses:
        """Return what candidates lose in int8, given what their approximation does."""
        return Int8Losses(float32, int8, self.about, self.drafts, self.candidates, self.measures, Silent())

    def fitter(self, threads: int) -> Fitter:
        """Return what fits plans."""
        return Fitter(self.about, self.drafts, self.network(threads).lowering)


def prepare(args: argparse.Namespace, store: RowStore) -> Prepared:
    """Load a network, collect its statistics, and find the candidates of its layers."""
    threadpool_limits(1, "blas")  # as the pipeline does
    loaded = load_network(args)
    layers, inputs = loaded.layers, loaded.inputs
    applicable, _ = applicable_passes(layers, chosen_passes(None), (), (), conv_only=False)
    stacked = stacked_inputs(loaded.original, inputs)
    about = Calibration(loaded.model, layers, applicable, stacked, store, held_out=hold_out(layers, stacked))
    drafts = Drafts(applicable, collect_statistics(about, Silent()))
    candidates, _ = find_candidates(layers, drafts, {}, channel_block("cpu"), lambda amount: None)
    return Prepared(loaded.original, about, drafts, candidates, inputs)

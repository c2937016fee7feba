"""How one network, and all that is rewritten of it, becomes int8."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx
from onnx import version_converter

from onnxlowrank.boundary import foreign, reason
from onnxlowrank.calibrate.hold_out import spread
from onnxlowrank.errors import UnsupportedModelError
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.normalise import prepare
from onnxlowrank.graph.outside import is_large
from onnxlowrank.graph.walk import named, names, opset, rebuild
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.parallel import in_parallel
from onnxlowrank.progress import Advance, Progress
from onnxlowrank.quantize.equalise import equalised
from onnxlowrank.quantize.observe import observe
from onnxlowrank.quantize.qdq import OPSET, activations_of, chain_owner, quantisable, quantise
from onnxlowrank.quantize.ranges import Range, Ranging, least_squares
from onnxlowrank.quantize.refit import refitted

_OBSERVED = 128
"""Samples that ranges are observed on."""
_MOST_MACS, _FEWEST = 1e12, 16
"""Multiply-accumulates of the layers, over all the samples that chains are refitted on; the fewest samples of these."""
WEIGHTS, BIASES = "weights", "biases"
_MADE_UP = Range(-1.0, 1.0)
"""Of tensors that are only timed; it takes as long whatever it is, as long as it has both signs."""

NO_RANGE = "what it reads or computes has no range: it is zero, infinite or not a number on the calibration inputs"
NO_CODE = "onnxruntime has no code for it in integers, or its weight or bias is not constant, or not finite"


@dataclass(frozen=True, eq=False)
class Int8:
    """What it takes to make int8 networks of one float32 network.

    Attributes:
        model: The network, normalised.
        layers: Its layers.
        inputs: Sample inputs.
        ranges: Of the tensors of the network as it is.
        exposed: Tensors that stay to be found under their names.
        weight_bits: 8, or 7; see :func:`~onnxlowrank.quantize.qdq.quantise`.
        ranging: Chooses ranges.
        equalise: Whether inner maps of chains are scaled alike.
        refit: Whether ``biases`` take back what rounding moves means by, or ``weights`` are rounded anew as well, or
            nothing is refitted: an empty text.
    """

    model: onnx.ModelProto
    layers: Sequence[Layer]
    inputs: Inputs
    ranges: Mapping[str, Range]
    exposed: Collection[str] = ()
    weight_bits: int = 8
    ranging: Ranging = least_squares
    equalise: bool = True
    refit: str = WEIGHTS

    def outline(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return a rewritten network as int8, to be timed: tensors that are new in it have ranges that are made up."""
        if not all(node.name for node in model.graph.node):
            graph = model.graph
            nodes = named(graph.node, names(model))
            model = rebuild(
                model, nodes=nodes, initializers=graph.initializer, inputs=graph.input, outputs=graph.output
            )
        new = dict.fromkeys(activations_of(model, quantisable(model)), _MADE_UP)
        exposed = [name for name in self.exposed if name in names(model)]
        return quantise(model, new | dict(self.ranges), self.float32_nodes(model), exposed, self.weight_bits)

    def network(
        self,
        chains: Mapping[str, Chain],
        write: Callable[[Mapping[str, Chain]], onnx.ModelProto],
        progress: Progress,
        float32: Collection[str] = (),
    ) -> onnx.ModelProto:
        """Return the network with chains in place of layers as int8.

        Args:
            chains: By layer.
            write: Makes the float32 network of chains.
            progress: Told how far it is.
            float32: Names of layers that stay in float32.
        """
        advance = progress.stage("quantise", 3.0)
        draft = self.draft(chains, write, advance)
        quantised = draft.quantised(float32)
        if not self.refit:
            return quantised
        return refitted(draft.model, quantised, self._few, self.weight_bits, advance, self.refit == WEIGHTS)

    def draft(
        self, chains: Mapping[str, Chain], write: Callable[[Mapping[str, Chain]], onnx.ModelProto], advance: Advance
    ) -> Draft:
        """Return the network with equalised chains in place of layers, and the ranges it takes to make it int8."""
        each = 1 / len(self._few)
        if self.equalise and chains:
            chains = equalised(self.model, self.layers, chains, self._few, lambda amount: advance(each * amount))
        model = write(chains)
        ranges = observed_ranges(model, self.inputs, self.ranging, advance) if chains else self.ranges
        return Draft(self, model, ranges)

    def float32_nodes(self, model: onnx.ModelProto, more: Collection[str] = ()) -> list[str]:
        """Return the nodes of a network, perhaps rewritten, of the layers that stay in float32, and of ``more``."""
        kept = {
            name
            for layer in self.layers
            if layer.name in self.reasons or layer.name in more
            for one in layer.places
            for name in one.nodes
        }
        return [node.name for node in model.graph.node if kept.intersection((node.name, chain_owner(node.name)))]

    @cached_property
    def _few(self) -> Inputs:
        """The inputs that are refitted on."""
        macs = max(sum(layer.macs for layer in self.layers), 1)
        return self.inputs.subset(spread(self.inputs, int(min(max(_MOST_MACS / macs, _FEWEST), _OBSERVED))))

    @cached_property
    def reasons(self) -> dict[str, str]:
        """Why layers stay in float32, by their names."""
        nodes = set(quantisable(self.model))
        found = {}
        for layer in self.layers:
            for place in layer.places:
                if place.nodes[0] not in nodes:
                    found[layer.name] = NO_CODE
                elif not all(map(self._has_range, (place.input, place.output))):
                    found[layer.name] = NO_RANGE
        return found

    def _has_range(self, tensor: str) -> bool:
        return tensor in self.ranges and self.ranges[tensor].is_usable


@dataclass(frozen=True, eq=False)
class Draft:
    """A float32 network, and what it takes to make it int8.

    Attributes:
        int8: How.
        model: The network, perhaps rewritten.
        ranges: Of its tensors.
    """

    int8: Int8
    model: onnx.ModelProto
    ranges: Mapping[str, Range]

    def quantised(self, float32: Collection[str] = ()) -> onnx.ModelProto:
        """Return the network as int8 but for layers of these names, nothing refitted."""
        kept = self.int8.float32_nodes(self.model, float32)
        return quantise(self.model, self.ranges, kept, self.int8.exposed, self.int8.weight_bits)


def ready_for_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a normalised network that can be made int8: an older opset becomes the first one that has what it takes.

    Raises:
        UnsupportedModelError: If onnx cannot convert it, or it is too large for onnxruntime's quantizer.
    """
    if is_large(model):
        raise UnsupportedModelError(
            "--precision int8 is for networks below 2 GiB; use --precision float32 for this one."
        )
    if opset(model) >= OPSET:
        return model
    with foreign(
        lambda error: UnsupportedModelError(
            f"--precision int8 needs opset {OPSET}, and onnx cannot convert the network from opset {opset(model)} "
            f"({reason(error)}); export it again with a newer one."
        )
    ):
        converted = version_converter.convert_version(model, OPSET)
    graph = converted.graph
    kept = rebuild(
        model, nodes=graph.node, initializers=graph.initializer, inputs=model.graph.input, outputs=model.graph.output
    )
    del kept.opset_import[:]
    kept.opset_import.extend(converted.opset_import)
    return prepare(kept)  # what the conversion adds has no names


def int8_of(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    inputs: Inputs,
    judged: Collection[str],
    weight_bits: int,
    progress: Progress,
) -> Int8:
    """Return what it takes to make int8 networks of a network, whose ranges are observed.

    Args:
        model: From :func:`ready_for_int8`.
        layers: Its layers.
        inputs: Sample inputs.
        judged: Tensors that its outputs are judged by.
        weight_bits: 7 or 8.
        progress: Told how far it is.

    Raises:
        UnsupportedModelError: If no layer can be int8.
    """
    ranges = observed_ranges(model, inputs, least_squares, progress.stage("ranges", 1.0))
    outputs = {output.name for output in model.graph.output}
    int8 = Int8(model, layers, inputs, ranges, tuple(name for name in judged if name not in outputs), weight_bits)
    reasons = int8.reasons
    if len(reasons) == len(layers):
        first = layers[0].name
        raise UnsupportedModelError(
            f"--precision int8: no layer can be int8, as for '{first}', {reasons[first]}; use --precision float32."
        )
    return int8


def observed_ranges(
    model: onnx.ModelProto, inputs: Inputs, ranging: Ranging, advance: Advance = lambda amount: None
) -> dict[str, Range]:
    """Return the ranges of all activations of a network that can be int8, on some of the inputs, evenly spread.

    Args:
        model: The network.
        inputs: Sample inputs.
        ranging: Chooses ranges.
        advance: Told of all that is done, 1 in sum.
    """
    few = inputs.subset(spread(inputs, _OBSERVED))
    tensors = activations_of(model, quantisable(model))
    seen = observe(model, tensors, few, lambda amount: advance(amount / len(few)))
    found = in_parallel(lambda name: (name, ranging(seen[name])), list(seen))
    return dict(found)

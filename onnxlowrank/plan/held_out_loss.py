"""How far the outputs of a rewritten network are from those of the original, on inputs that were held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxlowrank.calibrate.statistics import Calibration
from onnxlowrank.evaluate.measures import Measure
from onnxlowrank.evaluate.objective import Objective
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.probe import expose
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.plan.layer_sensitivity import outputs_of


class HeldOutLoss:
    """The outputs of a network on the inputs held out from its calibration."""

    def __init__(self, calibration: Calibration, measures: Sequence[Measure]) -> None:
        """Run the network.

        Args:
            calibration: The network, and which of its inputs were held out; some are.
            measures: How its outputs are measured.
        """
        self._layers = calibration.layers
        self._model = expose(calibration.model, [one.tensor for one in measures])
        self._inputs = calibration.inputs.subset(sorted(calibration.held_out))
        self._objective = Objective(measures, outputs_of(self._model, self._inputs))

    def __call__(self, chains: Mapping[str, Chain]) -> float:
        """Return how far they move with chains in place of layers."""
        there = {node.name for node in self._model.graph.node}
        layers = [
            layer
            for layer in self._layers
            if layer.name in chains and all(there.issuperset(place.nodes) for place in layer.places)
        ]
        model = rewrite(self._model, layers, {layer.name: chains[layer.name] for layer in layers})
        return self._objective.loss(outputs_of(model, self._inputs))

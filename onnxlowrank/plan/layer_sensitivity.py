"""What the outputs of a network lose when one layer alone is approximated: measured, without labels.

An error of a layer is not what arrives at the outputs. The layers behind it are fitted on what it gives then, to the
responses they had before (Zhang 2015, Eq. 12), and take back much of it, most of all behind the first layers of a
network (``benchmarks/single_layers.py``). So they are refitted here as well, as far as that is cheap: a linear map
takes the response of the layer itself, and those of the next ones behind it, to what these responses were. A plan may
keep some of these, which then take nothing back: that is not accounted for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxlowrank.calibrate.capture import Rows, run_probes
from onnxlowrank.calibrate.prefix_cache import PrefixCache
from onnxlowrank.calibrate.statistics import place_probe
from onnxlowrank.decompose.regression import Samples, fit_low_rank
from onnxlowrank.evaluate.measures import Measure
from onnxlowrank.evaluate.objective import Objective
from onnxlowrank.graph.chain import Chain, Step, as_chain
from onnxlowrank.graph.judged import depends_on
from onnxlowrank.graph.layer import Geometry, Layer
from onnxlowrank.graph.probe import Probe, unused_ending, with_only_outputs
from onnxlowrank.graph.successors import next_layers
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.sessions import all_threads, open_session, running
from onnxlowrank.quantize.observe import activations

Outputs = list[NDArray[np.generic]]

_MOST_REFITTED = 8
"""Of the next layers: those behind a residual block or in a dense one are many; the nearest stand for all."""
_FEWER_ROWS = 4
"""Of those a fit takes, one in so many is enough to refit responses."""
_SEED = 0
_TINY = 1e-30


class LayerSensitivity:
    """A network, and what its outputs are judged by, with which those of approximations of single layers are compared.

    :class:`~onnxlowrank.evaluate.objective.Objective` says what is lost. Of a layer that nothing judged depends on, say
    one behind a choice of regions, that is the share of its own response's variance.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        layers: Sequence[Layer],
        rewritten: Sequence[Layer],
        inputs: Inputs,
        measures: Sequence[Measure],
    ) -> None:
        """Run the network.

        Args:
            model: A normalised model.
            layers: Of that model.
            rewritten: Those of them that may be rewritten, so that they can take back errors.
            inputs: To measure losses on.
            measures: How its outputs are measured.
        """
        judged = [one.tensor for one in measures]
        self._judging = depends_on(model, set(judged))
        others = [place.output for layer in layers for place in layer.places if place.output not in self._judging]
        self._model, self._layers, self._inputs = with_only_outputs(model, [*judged, *others]), layers, inputs
        self._ending = unused_ending(model, "::onnxlowrank")
        self._next = {name: behind[:_MOST_REFITTED] for name, behind in next_layers(model, rewritten).items()}
        self._objective = Objective(measures, outputs_of(self._model, inputs) if judged else [])
        self._depths = {layer.name: depth for depth, layer in enumerate(layers)}
        self._depth, self._prefix_cache = 0, self._from_the_inputs()

    def losses(self, layer: Layer, chains: Sequence[Chain]) -> list[tuple[float, float]]:
        """Return for every chain what is lost where it computes the layer.

        That is the share of the response's variance, on the inputs of this network, and how far the outputs move once
        the chain and the next layers are refitted. It takes least where layers come in their order: the network is run
        from the layer before, not from its inputs.
        """
        true = self._reach(layer, self._next[layer.name])
        return [self._loss(layer, chain, true) for chain in chains]

    def read_by(self, layer: Layer) -> Iterator[NDArray[np.float32]]:
        """Yield what a layer reads at its first place, one feed after the other; it takes least in their order."""
        self._reach(layer, [])
        model, inputs = self._prefix_cache.rest({})
        yield from (one[layer.input] for one in activations(model, [layer.input], inputs, lambda amount: None))

    def moved_by(
        self, layer: Layer, chain: Chain, finish: Callable[[onnx.ModelProto], onnx.ModelProto]
    ) -> float | None:
        """Return how far the outputs move with a chain that nothing takes back; None where they do not depend on it.

        Args:
            layer: The one that :meth:`read_by` or :meth:`losses` was asked about last.
            chain: In its place.
            finish: Makes of what is left of the network with the chain the one that is run.
        """
        if not self._is_judged(layer):
            return None
        model, inputs = self._prefix_cache.rest({layer.name: chain})
        return self._objective.loss(outputs_of(finish(model), inputs))

    def _reach(self, layer: Layer, behind: Sequence[Layer]) -> dict[str, Rows]:
        """Run the network up to a layer; return the true responses of this one and of others behind it."""
        if self._depths[layer.name] < self._depth:
            self._prefix_cache = self._from_the_inputs()
        self._depth = self._depths[layer.name]
        return self._joined(
            self._prefix_cache.sample({}, self._probes([layer, *behind]), layer.input, lambda amount: None)
        )

    def _is_judged(self, layer: Layer) -> bool:
        return not self._judging.isdisjoint(place.output for place in layer.places)

    def _loss(self, layer: Layer, chain: Chain, true: Mapping[str, Rows]) -> tuple[float, float]:
        """Return what is lost where the chain computes a layer, given its true response and those of the next ones."""
        mine, found = true[layer.name], self._responses({layer.name: chain}, [layer])[layer.name]
        chains = {layer.name: refit(chain, layer, found, mine)}
        following = self._next[layer.name]
        changed = self._responses(chains, following) if following else {}
        chains |= {one.name: refit(as_chain(one), one, changed[one.name], true[one.name]) for one in following}
        lost = (mine - found).var(axis=0, dtype=np.float64).sum() / max(mine.var(axis=0, dtype=np.float64).sum(), _TINY)
        if not self._is_judged(layer):
            return float(lost), float(lost)
        return float(lost), self._objective.loss(outputs_of(*self._prefix_cache.rest(chains)))

    def _responses(self, chains: Mapping[str, Chain], layers: Sequence[Layer]) -> dict[str, Rows]:
        """Return the responses of the layers in the network with these chains."""
        probed, inputs = self._prefix_cache.probed(chains, self._probes(layers))
        return self._joined(list(run_probes(probed, inputs, _SEED, lambda amount: None)))

    def _from_the_inputs(self) -> PrefixCache:
        return PrefixCache(self._model, self._layers, self._inputs, _SEED)

    def _probes(self, layers: Sequence[Layer]) -> list[Probe]:
        return [
            _fewer(place_probe(f"{number}/{layer.name}{self._ending}", place.output, layer))
            for layer in layers
            for number, place in enumerate(layer.places)
        ]

    def _joined(self, rows: Sequence[Mapping[str, Rows]]) -> dict[str, Rows]:
        """Return all rows by the names of their layers, those of all places together."""
        found: dict[str, list[Rows]] = {}
        for one in rows:
            for name, values in one.items():
                found.setdefault(name.removesuffix(self._ending).partition("/")[2], []).append(values)
        return {name: np.concatenate(values) for name, values in found.items()}


def _fewer(probe: Probe) -> Probe:
    """Return the probe at fewer positions: a linear map of responses is known from fewer rows than a fit."""
    return replace(probe, share=probe.share * _FEWER_ROWS)


def refit(chain: Chain, layer: Layer, found: Rows, true: Rows) -> Chain:
    """Return a chain that maps its responses to what they should be, by ridge regression towards the identity.

    The fewer the rows, the stronger the ridge; fewer than the layer has outputs restore the mean response alone.

    Args:
        chain: Of the layer.
        layer: With ``F`` outputs.
        found: Responses ``[n, F]`` of the chain.
        true: Those of the layer.
    """
    bias = np.zeros(layer.outputs) if chain.bias is None else chain.bias
    if len(found) < layer.outputs:
        restored = bias + true.mean(axis=0, dtype=np.float64) - found.mean(axis=0, dtype=np.float64)
        return replace(chain, bias=restored.astype(np.float32))
    same = np.eye(layer.outputs)
    fitted = fit_low_rank(Samples(found, true), layer.outputs, same, ridge=layer.outputs / len(found), nonlinear=False)
    matrix = fitted.left @ fitted.right.T
    weight = matrix.astype(np.float32).reshape(*matrix.shape, *(1,) * len(layer.kernel))
    step = Step("refit", weight, Geometry.pointwise(len(layer.kernel)))
    return Chain((*chain.steps, step), (matrix @ bias + fitted.bias).astype(np.float32))


def outputs_of(model: onnx.ModelProto, inputs: Inputs) -> list[Outputs]:
    """Return all outputs of the network, one feed after the other."""
    session = open_session(model, all_threads())
    wanted = {value.name for value in session.get_inputs()}
    outputs = []
    for feeds in inputs:
        with running(feeds):
            outputs.append(session.run(None, {name: value for name, value in feeds.items() if name in wanted}))
    return outputs

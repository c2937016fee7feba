"""Plans by multiply-accumulates where chains choose among maps: what that saves in the layers in front is counted.

A layer on ``C'`` of its ``C`` input maps leaves the layers that make these with ``C'/C`` of the filters of their last
link (:mod:`onnxlowrank.graph.cut_maps`). How much that saves depends on what those layers become, so costs do not add
up. A selection wants costs that do: a candidate is credited with the filters it makes superfluous in the layers in
front *as another plan has them*, first in the layers themselves, then in what the plan before made of them. Each plan
is counted whole on its outline, and those that keep to the budget compete, the plan without any credit among them,
which always does, where any does.

The count of an outline is exact where one layer makes the maps and one reads them. Of several layers that are
concatenated, or several readers, the fit decides which maps go; so the fitted network is counted again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from onnxlowrank.graph.chain import Chain, as_chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.passes.base import Candidate, Plan, keep, placeholder
from onnxlowrank.plan.network import Network
from onnxlowrank.plan.selection import Losses

Cost = Callable[[Candidate], float]

_ROUNDS = 5


class Cuts:
    """What candidates save in the layers in front of theirs."""

    def __init__(self, network: Network, candidates: Mapping[str, Sequence[Candidate]]) -> None:
        """Find out whose filters go where a layer chooses among its input maps.

        Args:
            network: That is planned.
            candidates: Of its layers.
        """
        self._network = network
        self._layers = {layer.name: layer for layer in network.layers}
        self._kept = {name: keep(layer) for name, layer in self._layers.items()}
        self._makers = {
            name: self._found(name, choosing[0])
            for name, items in candidates.items()
            if (choosing := [one for one in items if self._share(one) < 1])
        }

    def __bool__(self) -> bool:
        """Return whether there is any such layer."""
        return any(self._makers.values())

    def total(self, plan: Plan, of: Sequence[Layer]) -> int:
        """Return the multiply-accumulates of some layers in the network of a plan."""
        counted = self._network.counted(self._network.outlines(plan))
        return sum(counted[layer.name].macs_in(layer) if layer.name in counted else layer.macs for layer in of)

    def cost(self, plan: Plan | None) -> Cost:
        """Return what candidates cost, less what they save in the layers in front as ``plan`` has them.

        Without a plan these are the layers themselves.
        """
        chosen = self._kept if plan is None else plan

        def less(candidate: Candidate) -> float:
            share = self._share(candidate) if candidate.layer in self._makers else 1.0
            if share == 1:
                return candidate.macs
            saved = (1 - share) * sum(self._last_link(chosen[maker]) for maker in self._makers[candidate.layer])
            return candidate.macs - saved

        return less

    def _found(self, name: str, candidate: Candidate) -> list[str]:
        """Return the layers that a candidate, alone in the network, takes filters from."""
        chains = self._network.outlines({**self._kept, name: candidate})
        return [other for other in self._network.counted(chains) if other != name]

    def _share(self, candidate: Candidate) -> float:
        """Return the share of its layer's input maps that a candidate reads."""
        method = self._network.applicable.get(candidate.layer, {}).get(candidate.method)
        if method is None or not method.chooses_maps:
            return 1.0
        first = method.outline(self._layers[candidate.layer], candidate.setting).steps[0]
        return 1.0 if first.among is None else len(first.taken) / first.among

    def _last_link(self, candidate: Candidate) -> int:
        """Return the multiply-accumulates of the last link of a candidate."""
        layer = self._layers[candidate.layer]
        method = self._network.applicable.get(layer.name, {}).get(candidate.method)
        chain = as_chain(layer) if method is None else method.outline(layer, candidate.setting)
        last = chain.steps[-1]
        nothing = replace(last, weight=placeholder(0, *last.weight.shape[1:]))
        return chain.macs_in(layer) - Chain((*chain.steps[:-1], nothing)).macs_in(layer)


def plan_with_cuts(
    make: Callable[[Cost], Plan], cuts: Cuts, budget: float, of: Sequence[Layer], losses: Losses
) -> Plan:
    """Return the plan of least loss that was found within a budget.

    Args:
        make: Makes the plan of some costs.
        cuts: What candidates save.
        budget: Multiply-accumulates of the layers ``of``.
        of: The layers that count.
        losses: What candidates take from the network.
    """
    plan, found = None, []
    for _ in range(_ROUNDS):
        plan = make(cuts.cost(plan))
        if plan in found:
            break
        found.append(plan)
    found.append(make(lambda candidate: candidate.macs))
    within = [one for one in found if cuts.total(one, of) <= budget] or found[-1:]
    return min(within, key=lambda one: sum(map(losses.of, one.values())))

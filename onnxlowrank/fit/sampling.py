"""What layers are fitted on: their features in a rewritten network, and the true preactivations, at the same places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxlowrank.calibrate.capture import Rows
from onnxlowrank.calibrate.padding import Padding
from onnxlowrank.calibrate.prefix_cache import PrefixCache
from onnxlowrank.calibrate.statistics import Calibration, feature_probe, place_probe
from onnxlowrank.decompose.regression import Samples
from onnxlowrank.graph.chain import Chain
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.probe import Probe, unused_ending
from onnxlowrank.passes.base import Features
from onnxlowrank.progress import Advance


def layer_samples(
    about: Calibration,
    layer: Layer,
    features: Features,
    chains: Mapping[str, Chain],
    prefix_cache: PrefixCache,
    advance: Advance,
) -> tuple[Samples, list[int]]:
    """Return what a layer is fitted on, and how many rows of it every input gives.

    Args:
        about: The network and its inputs.
        layer: A layer whose preactivations were stored.
        features: What to sample.
        chains: What computes the layers before.
        prefix_cache: Of the network.
        advance: Told of every input.

    Raises:
        NotFiniteError: If a feature is not finite.
    """
    ending = unused_ending(about.model, "::onnxlowrank")
    probes: list[Probe] = []
    for number, place in enumerate(layer.places):
        probes.append(feature_probe(f"features{number}{ending}", features, layer, place))
        if place.shortcut is not None:
            probes.append(place_probe(f"shortcut{number}{ending}", place.shortcut, layer))
    rows = prefix_cache.sample(chains, probes, layer.input, advance)
    padding = Padding(about.inputs, about.seed)
    if padding.is_in(layer):
        share = len(layer.places)
        rows = [
            {name: padding.without(values, index, share) for name, values in one.items()}
            for index, one in enumerate(rows)
        ]
    counts = [sum(len(one[f"features{number}{ending}"]) for number in range(len(layer.places))) for one in rows]
    return _samples(layer, rows, about.preactivations.read(layer.name), ending), counts


def _samples(layer: Layer, rows: Sequence[Mapping[str, Rows]], target: Rows, ending: str) -> Samples:
    """Return what a layer is fitted on: the rows of all places, those of one feed after the other.

    Where some places only have a shortcut, it is zero at the others. Where activations differ, none is accounted for.
    """
    features, shortcuts = [], []
    for one in rows:
        for number, place in enumerate(layer.places):
            features.append(one[f"features{number}{ending}"])
            given = place.shortcut is not None
            shortcuts.append(
                one[f"shortcut{number}{ending}"] if given else np.zeros((len(features[-1]), layer.outputs))
            )
    has_shortcut = any(place.shortcut is not None for place in layer.places)
    return Samples(
        features=np.concatenate(features),
        target=target,
        shortcut=np.concatenate(shortcuts, dtype=np.float32) if has_shortcut else None,
        activation=layer.common_activation,
    )

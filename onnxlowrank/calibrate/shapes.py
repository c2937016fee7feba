"""The shapes layers have when a network is run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import onnx

from onnxlowrank.graph.layer import Layer, Place
from onnxlowrank.graph.probe import expose
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.specs import Feeds
from onnxlowrank.measure.sessions import all_threads, open_session, running


def with_shapes(model: onnx.ModelProto, layers: Sequence[Layer], inputs: Inputs) -> list[Layer]:
    """Return the layers with the shapes they have on the first input."""
    if not layers:
        return []
    names = {name for layer in layers for place in layer.places for name in (place.input, place.output)}
    values = tensor_values(model, names, inputs[0])
    shapes = {name: value.shape for name, value in values.items()}
    batched = any(shape[1:] and shape[0] % inputs.batch == 0 for shape in shapes.values())
    samples = inputs.batch if batched else 1  # the first axis of the input is another one, e.g. that of a waveform

    def shaped(place: Place) -> Place:
        return replace(place, input_shape=shapes[place.input], output_shape=shapes[place.output])

    return [replace(layer.at([shaped(place) for place in layer.places]), samples=samples) for layer in layers]


def with_fixed_sizes(model: onnx.ModelProto, inputs: Inputs) -> onnx.ModelProto:
    """Return a model whose inputs declare the sizes that they have in all these feeds.

    The first axis stays as it is: the last feed may have fewer samples. What is computed is the same; probes are
    simpler where sizes are known.
    """
    first = inputs[0]
    open_axes = [
        (value.name, axis)
        for value in model.graph.input
        for axis, size in enumerate(value.type.tensor_type.shape.dim)
        if axis and not size.dim_value and value.name in first
    ]
    found: dict[tuple[str, int], set[int]] = {key: set() for key in open_axes}
    for feeds in inputs if open_axes else ():
        for name, axis in open_axes:
            found[name, axis].add(feeds[name].shape[axis])
    sizes = {key: min(seen) for key, seen in found.items() if len(seen) == 1 and min(seen) > 0}
    if not sizes:
        return model
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if (value.name, axis) in sizes:
                size.dim_value = sizes[value.name, axis]
    return fixed


def tensor_values(model: onnx.ModelProto, names: Collection[str], feeds: Feeds) -> dict[str, Any]:
    """Return the values that tensors have when a network is run, by their names.

    Args:
        model: The network.
        names: Of computed tensors and inputs.
        feeds: The input.
    """
    values: dict[str, Any] = {name: feeds[name] for name in names if name in feeds}
    computed = sorted(set(names) - set(values))
    if computed:
        session = open_session(expose(model, computed), all_threads())
        wanted = {value.name for value in session.get_inputs()}
        with running(feeds):
            found = session.run(computed, {name: value for name, value in feeds.items() if name in wanted})
        values.update(zip(computed, found, strict=True))
    return values

"""The shapes layers have when a network is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx

from onnxlowrank.graph.layer import Layer, Place
from onnxlowrank.graph.probe import expose
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.sessions import all_threads, open_session, running


def with_shapes(model: onnx.ModelProto, layers: Sequence[Layer], inputs: Inputs) -> list[Layer]:
    """Return the layers with the shapes they have on the first input."""
    if not layers:
        return []
    names = sorted({name for layer in layers for place in layer.places for name in (place.input, place.output)})
    given = inputs[0]
    read = {name for name in names if name in given}
    computed = [name for name in names if name not in read]
    session = open_session(expose(model, computed), all_threads())
    wanted = {value.name for value in session.get_inputs()}
    with running(given):
        values = session.run(computed, {name: value for name, value in given.items() if name in wanted})
    shapes = {name: value.shape for name, value in zip(computed, values, strict=True)}
    shapes |= {name: given[name].shape for name in read}

    def shaped(place: Place) -> Place:
        return replace(place, input_shape=shapes[place.input], output_shape=shapes[place.output])

    return [layer.at([shaped(place) for place in layer.places]) for layer in layers]

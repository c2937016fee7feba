"""Joins small inputs to larger batches, which a network runs through faster, where it gives the same results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from onnxlowrank.calibrate.capture import positions_per_input
from onnxlowrank.inputs.feeds import Inputs, byte_count, joined
from onnxlowrank.inputs.specs import Feeds, input_specs
from onnxlowrank.measure.sessions import all_threads, open_session, running

_MOST_SAMPLES = 16
_MOST_BYTES = 256 * 1024
"""Of one feed: 16 images of 32x32, but 1 of 224x224, whose activations fill the caches by themselves."""

_MOST_ROWS = 4096
"""Sampled of a layer in one run; the patches of all layers are in memory at once."""

_HELD_BYTES = 64 * 1024 * 1024
"""Of decoded inputs: the first ones, where all are more."""

_TOLERANCE = 1e-3


def stacked_inputs(model: onnx.ModelProto, inputs: Inputs) -> Inputs:
    """Return the inputs as calibration runs through them, again and again: several a feed, and held in memory.

    Samples are joined only if each feed has one, all of the same shapes, and ``model`` gives for the joined ones what
    it gives for each by itself. The choice is meant for all networks rewritten from ``model``, so that the same samples
    are at the same positions in all of them.

    Args:
        model: The original network.
        inputs: Its inputs.

    Returns:
        Inputs of the same samples in the same order, without labels where they were joined.
    """
    held = inputs.held(_HELD_BYTES)
    size = min(
        len(held),
        _MOST_SAMPLES,
        _MOST_BYTES // max(byte_count(held[0]), 1),
        _MOST_ROWS // positions_per_input(held),
    )
    return held.stacked(size) if size > 1 and can_be_joined(model, held) else held


def can_be_joined(model: onnx.ModelProto, inputs: Inputs) -> bool:
    """Return whether feeds, two or more, may be joined along axis 0: the model gives for them what it gives for each.

    Raises:
        InputDataError: If it does not run on one of them.
    """
    return _alike(model, inputs) and _runs_batches(model, inputs[0], inputs[1])


def _alike(model: onnx.ModelProto, inputs: Inputs) -> bool:
    """Return whether each feed is one sample along axes that ``model`` declares dynamic, all of the same shapes."""
    dynamic = {spec.name for spec in input_specs(model) if spec.shape and spec.shape[0] is None}
    first = _shapes(inputs[0])
    return (
        set(first) == dynamic
        and all(shape[:1] == (1,) for shape in first.values())
        and all(_shapes(feeds) == first for feeds in inputs)
    )


def _shapes(feeds: Feeds) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}


def _runs_batches(model: onnx.ModelProto, *feeds: Feeds) -> bool:
    """Return whether the outputs for these samples in one batch are those for one after the other.

    A model may declare a dynamic batch and yet reshape to a batch of 1 inside, or mix the samples.

    Raises:
        InputDataError: If it does not run on one of them.
    """
    session = open_session(model, all_threads())
    singles = []
    for one in feeds:
        with running(one):
            singles.append(session.run(None, one))
    try:
        together = session.run(None, joined(feeds))
    except Exception:  # as in open_session
        return False
    return all(_is_joined(whole, parts) for whole, *parts in zip(together, *singles, strict=True))


def _is_joined(whole: object, parts: Sequence[object]) -> bool:
    """Return whether an output is these ones joined along axis 0, up to rounding."""
    arrays = [np.asarray(part, np.float64) for part in (whole, *parts) if _is_numeric(part)]
    if len(arrays) <= len(parts) or len({array.shape[1:] for array in arrays}) > 1:
        return False
    found, wanted = arrays[0], np.concatenate(arrays[1:])
    tolerance = _TOLERANCE * np.abs(wanted).max(initial=0)
    return len(found) == len(wanted) and np.allclose(found, wanted, rtol=0, atol=tolerance)


def _is_numeric(output: object) -> bool:
    return isinstance(output, np.ndarray) and output.ndim > 0 and output.dtype.kind in "biuf"

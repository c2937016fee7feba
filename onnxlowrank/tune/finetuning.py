"""From sample inputs as a user has them to a network that is fine-tuned on them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto

from onnxlowrank.evaluate.measures import CLASSES, Measure, measures_of
from onnxlowrank.graph.probe import expose
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.preprocess import Preprocess
from onnxlowrank.inputs.sources import Source
from onnxlowrank.measure.sessions import all_threads, open_session, running
from onnxlowrank.progress import Progress
from onnxlowrank.tune.options import TuneOptions
from onnxlowrank.tune.split import Split, augmentation_of, use_labels
from onnxlowrank.tune.tuned import Tuned
from onnxlowrank.tune.tuner import tune


def fine_tune(
    original: ModelProto,
    optimised: ModelProto,
    source: Source,
    data: Split,
    preprocess: Preprocess,
    outputs: Mapping[str, str],
    options: TuneOptions,
    progress: Progress,
) -> Tuned:
    """Return an optimised network, fine-tuned.

    Args:
        original: The network it was made of.
        optimised: The network.
        source: Where the inputs are from.
        data: The inputs.
        preprocess: How images became inputs.
        outputs: By the name of an output, how it is measured; see :func:`onnxlowrank.evaluate.measures.measures_of`.
        options: How.
        progress: Told how far the work is.

    Raises:
        OnnxLowRankError: If the networks, the inputs or an option is unusable.
    """
    inputs = data.seen
    measures = measures_of(original, inputs.labels is not None and options.labels is not False, outputs)
    classes = None if options.labels is False else _classes(original, measures, inputs)
    labelled = use_labels(data, options.labels, measures, classes)
    augmentation = augmentation_of(original, source, preprocess, options.kinds, options.augment is not None)
    return tune(original, optimised, data, measures, labelled, augmentation, options, progress)


def _classes(model: ModelProto, measures: tuple[Measure, ...], inputs: Inputs) -> int | None:
    """Return the number of classes of the first class scores, if these are ``[N, classes]``."""
    first = next((one for one in measures if one.kind == CLASSES), None)
    if first is None:
        return None
    session = open_session(expose(model, [first.tensor]), all_threads())
    with running(inputs[0]):
        (scores,) = session.run(None, {value.name: inputs[0][value.name] for value in session.get_inputs()})
    return int(np.shape(scores)[first.axis]) if np.ndim(scores) == 2 else None

"""From sample inputs as a user has them to a network that is fine-tuned on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
from onnxlowrank.tune.tuner import Task, tune


@dataclass(frozen=True, eq=False)
class Teaching:
    """What an optimised network learns from.

    Attributes:
        original: The network it was made of.
        source: Where the inputs are from.
        data: The inputs.
        preprocess: How images became inputs.
        outputs: By the name of an output, how it is measured; see :func:`onnxlowrank.evaluate.measures.measures_of`.
    """

    original: ModelProto
    source: Source
    data: Split
    preprocess: Preprocess
    outputs: Mapping[str, str]

    def task(self, optimised: ModelProto, options: TuneOptions) -> Task:
        """Return what is to be done to an optimised network.

        Raises:
            OnnxLowRankError: If the network, the inputs or an option is unusable.
        """
        inputs, asked = self.data.seen, options.labels
        measures = measures_of(self.original, inputs.labels is not None and asked, self.outputs)
        classes = _classes(self.original, measures, inputs) if asked else None
        labelled = use_labels(self.data, asked, measures, classes)
        changed = options.augment is not None
        augmentation = augmentation_of(self.original, self.source, self.preprocess, options.kinds, changed)
        return Task(self.original, optimised, self.data, measures, labelled, augmentation)


def fine_tune(teaching: Teaching, optimised: ModelProto, options: TuneOptions, progress: Progress) -> Tuned:
    """Return an optimised network, fine-tuned.

    Args:
        teaching: What it learns from.
        optimised: The network.
        options: How.
        progress: Told how far the work is.

    Raises:
        OnnxLowRankError: If a network, the inputs or an option is unusable.
    """
    return tune(teaching.task(optimised, options), options, progress)


def _classes(model: ModelProto, measures: tuple[Measure, ...], inputs: Inputs) -> int | None:
    """Return the number of classes of the first class scores, if these are ``[N, classes]``."""
    first = next((one for one in measures if one.kind == CLASSES), None)
    if first is None:
        return None
    session = open_session(expose(model, [first.tensor]), all_threads())
    with running(inputs[0]):
        (scores,) = session.run(None, {value.name: inputs[0][value.name] for value in session.get_inputs()})
    return int(np.shape(scores)[first.axis]) if np.ndim(scores) == 2 else None

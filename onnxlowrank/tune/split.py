"""Which samples are learnt from, and which are held out to judge by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxlowrank.calibrate.stacking import can_be_joined
from onnxlowrank.errors import MissingInputsError, OptionError, UnfitInputsError
from onnxlowrank.evaluate.measures import CLASSES, Measure
from onnxlowrank.inputs.evidence import check_varied
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.preprocess import Preprocess, image_geometry
from onnxlowrank.inputs.sources import Source, holds_images
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.tune.augment import Augmentation

_LEAST_SAMPLES = 16
_LEAST_FEEDS = 2
_MOST_HELD_OUT = 500
_SHARE_HELD_OUT = 8


@dataclass(frozen=True)
class Split:
    """Sample inputs of two kinds.

    Attributes:
        seen: To learn from.
        held_out: To judge by.
        joins: Whether feeds may be joined along axis 0.
    """

    seen: Inputs
    held_out: Inputs
    joins: bool


def split(model: ModelProto, inputs: Inputs) -> Split:
    """Hold out an eighth of the inputs, evenly spread, 500 samples at most.

    Raises:
        UnfitInputsError: There are too few, or all are the same.
    """
    samples = len(inputs) * inputs.batch
    if samples < _LEAST_SAMPLES or len(inputs) < _LEAST_FEEDS:
        raise UnfitInputsError(
            f"fine-tuning learns from some inputs and is judged by others, but there are only {inputs.description}: "
            f"give {max(_LEAST_SAMPLES, _LEAST_FEEDS * inputs.batch)} samples at the least, better hundreds"
        )
    check_varied(inputs)
    count = max(min(len(inputs) // _SHARE_HELD_OUT, _MOST_HELD_OUT // inputs.batch), 1)
    # the middles of equal parts, so that classes that lie in order are held out alike
    chosen = set(((np.arange(count) + 0.5) * len(inputs) / count).astype(int).tolist())
    rest = [index for index in range(len(inputs)) if index not in chosen]
    return Split(inputs.subset(rest), inputs.subset(sorted(chosen)), can_be_joined(model, inputs))


def use_labels(data: Split, asked: bool, measures: tuple[Measure, ...], classes: int | None) -> bool:
    """Return whether labels count.

    Args:
        data: Inputs, perhaps with labels.
        asked: Whether they are to.
        measures: Of the network's outputs.
        classes: Number of classes of the first class scores, where these are ``[N, classes]``.

    Raises:
        MissingInputsError: They are asked for, and there are none.
        OptionError: They are asked for, and the network gives no class scores.
        UnfitInputsError: Some are no classes of the network.
    """
    inputs, labels = data.seen, data.seen.labels
    if not asked:
        return False
    if labels is None:
        raise MissingInputsError(
            f"--labels: there are none with {inputs.description}; put images in a folder a class, or "
            "'labels' in the .npz"
        )
    if classes is None or not any(one.kind == CLASSES for one in measures):
        raise OptionError("--labels: the network gives no class scores [N, classes] that they could be compared with")
    if data.held_out.labels is not None:
        labels = np.concatenate([labels, data.held_out.labels])
    if labels.min() < 0 or labels.max() >= classes:
        wrong = int(labels.min() if labels.min() < 0 else labels.max())
        raise UnfitInputsError(
            f"the labels of {inputs.description} do not fit: there is a class {wrong}, but the network has {classes}, "
            f"0 to {classes - 1}; correct them or leave --labels out"
        )
    return True


def augmentation_of(
    model: ModelProto, source: Source, preprocess: Preprocess, kinds: frozenset[str], asked: bool
) -> Augmentation | None:
    """Return how images are changed; None where the inputs are no images.

    Raises:
        OptionError: It is asked for, and they are none.
    """
    if not kinds:
        return None
    specs = input_specs(model)
    if not holds_images(source, specs):
        if asked:
            raise OptionError(
                f"--augment {','.join(sorted(kinds))} is for images, a folder of them or an .npz with uint8 'images'; "
                "leave it out or give --augment none"
            )
        return None
    layout = image_geometry(preprocess, specs[0]).layout
    return Augmentation(specs[0].name, 2 if layout == "nchw" else 1, kinds)

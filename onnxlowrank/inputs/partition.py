"""Which sample inputs networks are fitted on, and which they are compared on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxlowrank.inputs.evidence import check_varied
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.preprocess import Preprocess, preprocess_from_options
from onnxlowrank.inputs.sources import Source, open_inputs, open_or_synthesise
from onnxlowrank.inputs.specs import input_specs
from onnxlowrank.inputs.synthetic import check_imaginable

_SYNTHETIC_INPUTS = 64
_MOST_INPUTS = 3000  # Zhang 2015, Sec. 3.2: "sufficient to randomly sample 3,000 images"


@dataclass(frozen=True)
class Partition:
    """Inputs of two kinds.

    Attributes:
        calibration: To fit on.
        unseen: To compare networks on; the fit has not seen them unless there were too few.
        notes: What the user should know about them.
        synthetic: Whether the former are made up.
    """

    calibration: Inputs
    unseen: Inputs
    notes: tuple[str, ...]
    synthetic: bool = False

    @property
    def labelled(self) -> bool:
        """Whether there are class labels."""
        return self.calibration.labels is not None or self.unseen.labels is not None


def partition_inputs(
    model: onnx.ModelProto,
    calibration: Source | None,
    evaluate: Source | None,
    preprocess: Preprocess | None,
    shapes: Mapping[str, Sequence[int]],
    most_held_out: int,
    seed: int,
) -> Partition:
    """Open the inputs of a model, and hold some out where none are given to compare on.

    Args:
        model: The network.
        calibration: Sample inputs; None makes synthetic ones.
        evaluate: Inputs to compare on; None holds out an eighth of the others.
        preprocess: How images become inputs; None does as ImageNet networks want it.
        shapes: Of synthetic inputs, for dimensions that the model leaves open.
        most_held_out: Samples.
        seed: Of synthetic inputs.

    Raises:
        InputDataError: If inputs cannot be read or made, do not fit the model, or are all the same.
        OptionError: If a shape or the preprocessing contradicts the model.
    """
    preprocess = preprocess_from_options("imagenet") if preprocess is None else preprocess
    specs = input_specs(model)
    notes: list[str] = []
    if calibration is None:
        notes += check_imaginable(specs, preprocess)
        notes.append("no calibration data were given: synthetic images were used; real inputs give better accuracy")
    inputs = open_or_synthesise(specs, calibration, shapes, preprocess, _SYNTHETIC_INPUTS, seed)
    check_varied(inputs)
    if len(inputs) * inputs.batch > _MOST_INPUTS:
        chosen = np.linspace(0, len(inputs) - 1, max(_MOST_INPUTS // inputs.batch, 1)).astype(int)
        used, given = len(chosen) * inputs.batch, len(inputs) * inputs.batch
        if used < given:
            notes.append(f"{used} of {given} calibration inputs were used, evenly spread")
        inputs = inputs.subset(chosen.tolist())
    if evaluate is not None:
        return Partition(inputs, open_inputs(evaluate, specs, preprocess), tuple(notes), calibration is None)
    held_out = min(len(inputs) // 8, max(most_held_out // inputs.batch, 1))
    if not held_out:
        notes.append("too few inputs to hold any out: outputs are compared on inputs the fit has seen")
        return Partition(inputs, inputs, tuple(notes), calibration is None)
    unseen = set(np.linspace(0, len(inputs) - 1, held_out).astype(int).tolist())
    rest = [i for i in range(len(inputs)) if i not in unseen]
    return Partition(inputs.subset(rest), inputs.subset(sorted(unseen)), tuple(notes), calibration is None)

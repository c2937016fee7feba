"""How every output of a network is measured: as class scores, as values, or not at all.

Class scores are measured by their divergence, and only where something says that they are some: a Softmax or LogSoftmax
in the network, labels beside a network whose only output is ``[N, classes]``, or the user. All else is measured by its
squared error relative to its variance. What several outputs lose adds up, with equal weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx

from onnxlowrank.errors import OptionError
from onnxlowrank.graph.judged import Judged, judged_tensors

CLASSES, VALUES, IGNORE, AUTO = "classes", "values", "ignore", "auto"


@dataclass(frozen=True)
class Measure:
    """How one tensor is measured.

    Attributes:
        tensor: Its name.
        outputs: The outputs it stands for: itself, or those that it decides.
        kind: ``classes`` or ``values``.
        axis: Of the class scores.
    """

    tensor: str
    outputs: tuple[str, ...]
    kind: str
    axis: int = 1


def measures_of(
    model: onnx.ModelProto, labelled: bool = False, asked: Mapping[str, str] | None = None
) -> tuple[Measure, ...]:
    """Return how the outputs of a network are measured; none where no tensor of real numbers decides them.

    Args:
        model: The network.
        labelled: Whether its inputs have class labels.
        asked: By the name of an output ``classes``, ``values``, ``ignore``, or ``auto``: where some outputs are
            ``auto``, those that are not named are ignored.

    Raises:
        OptionError: If ``asked`` names no output, no measure, or leaves no output.
    """
    asked = asked or {}
    names = [output.name for output in model.graph.output]
    for name, kind in asked.items():
        if name not in names:
            raise OptionError(f"--output {name}: there is no such output; outputs are {', '.join(names)}")
        if kind not in (CLASSES, VALUES, IGNORE, AUTO):
            raise OptionError(f"--output {name}={kind} is unknown; choose from {CLASSES}, {VALUES}, {IGNORE}")
    picked = AUTO in asked.values()
    counted = [name for name in names if asked.get(name, IGNORE if picked else AUTO) != IGNORE]
    if not counted:
        raise OptionError("--output leaves no output to judge by; keep one")
    sole = labelled and len(names) == 1
    found = []
    for judged in judged_tensors(model):
        outputs = tuple(name for name in judged.outputs if name in counted)
        if outputs:
            wanted = {asked[name] for name in outputs} - {AUTO} if set(outputs) <= asked.keys() else set()
            found.append(_measure(replace(judged, outputs=outputs), wanted, sole))
    return tuple(found)


def _measure(judged: Judged, wanted: set[str], sole: bool) -> Measure:
    """Return the measure of a tensor that its outputs are wanted to have, or else the one that fits."""
    axis = 1 if judged.class_axis is None else judged.class_axis
    if CLASSES in wanted and judged.ranks is not None and judged.ranks < 2:
        raise OptionError(f"--output {judged.outputs[0]}=classes: it is no [N, classes]; measure its values")
    is_scores = judged.class_axis is not None or (sole and judged.ranks == 2)
    kind = CLASSES if CLASSES in wanted or (is_scores and VALUES not in wanted) else VALUES
    return Measure(judged.tensor, judged.outputs, kind, axis)

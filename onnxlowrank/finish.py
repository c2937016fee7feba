"""The last step of an optimisation: the network that was found is trained, at once or layer after layer.

Layer after layer (``cascade``) is the way of Denton et al. 2014 (Sec. 3.5 and 4.2): the first layer is approximated,
what comes behind it is trained, then the next layer is approximated in the network that came of it. What is
approximated stays, and what is behind learns to live with all that was lost in front of it before it is approximated
itself. The plan is the one that was found: only values of weights differ from the network that has all of it at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from onnx import ModelProto

from onnxlowrank.errors import NothingToTrainError, UnsupportedModelError
from onnxlowrank.goal import QUANTISED
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.preprocess import preprocess_from_options
from onnxlowrank.options import ENERGY, Options
from onnxlowrank.passes.base import KEEP, Candidate
from onnxlowrank.plan.builder import FittedNetwork
from onnxlowrank.plan.manual_ranks import ManualRank
from onnxlowrank.plan.network import Network
from onnxlowrank.progress import Progress
from onnxlowrank.tune.finetuning import Teaching, fine_tune
from onnxlowrank.tune.options import TuneOptions
from onnxlowrank.tune.split import Split, split
from onnxlowrank.tune.tuned import Tuned
from onnxlowrank.tune.tuner import figures
from onnxlowrank.tune.weights import ABOVE

_LOG = logging.getLogger(__name__)

_FEW = 16
"""Inputs that networks are compared on whose comparison nobody sees."""

Approximate = Callable[[ModelProto, Options], ModelProto]
"""Returns a network with the ranks that options give by hand."""


def training_data(original: ModelProto, inputs: Inputs, options: Options) -> Split | None:
    """Return what a network is to learn from; None where it is not to be fine-tuned.

    Raises:
        UnfitInputsError: There are too few inputs, or all are the same.
    """
    return None if options.finetune is None or options.calibration is None else split(original, inputs)


def tuned_network(
    fitted: FittedNetwork,
    network: Network,
    data: Split | None,
    inputs: tuple[Inputs, Inputs],
    options: Options,
    approximate: Approximate,
    progress: Progress,
) -> tuple[Tuned | None, list[str]]:
    """Return a network that was found, fine-tuned; None where that is not asked for, or none of it is approximated.

    None, too, where it cannot be trained: what was found until then is not lost for it.

    Args:
        fitted: What was found.
        network: What it was found for.
        data: From :func:`training_data`.
        inputs: That were calibrated with, and to compare on.
        options: How.
        approximate: Approximates layers, for the cascade.
        progress: Told how far the work is.

    Returns:
        The network, and what there is to say.
    """
    if data is None or not (fitted.chains or options.precision in QUANTISED):
        return None, []
    try:
        found = _tuned(fitted, network, data, inputs, options, approximate, progress)
    except (NothingToTrainError, UnsupportedModelError) as error:
        return None, [f"the network is not fine-tuned: {str(error).removesuffix('.')}"]
    return found, [found.note]


def _tuned(
    fitted: FittedNetwork,
    network: Network,
    data: Split,
    inputs: tuple[Inputs, Inputs],
    options: Options,
    approximate: Approximate,
    progress: Progress,
) -> Tuned:
    assert options.calibration is not None
    how = preprocess_from_options("imagenet") if options.preprocess is None else options.preprocess
    training = TuneOptions(minutes=options.finetune, seed=options.seed)
    teaching = Teaching(network.model, options.calibration, data, how, options.outputs)
    found = None
    if options.cascade:
        few = inputs[1].subset(range(min(len(inputs[1]), _FEW)))
        given = replace(options, calibration=inputs[0], evaluate=few, metric=None, finetune=None, cascade=False)
        plan = [fitted.plan[layer.name] for layer in network.layers if layer.name in fitted.chains]
        steps = [(one.layer, _alone(given, one)) for one in plan if one.method != KEEP]
        found = _cascaded(fitted.model, steps, teaching, training, approximate, progress)
    return fine_tune(teaching, fitted.model, training, progress) if found is None else found


def _alone(options: Options, chosen: Candidate) -> Options:
    """Return what approximates one layer, as was chosen."""
    rank = ManualRank(chosen.setting, method=chosen.method)
    return replace(options, only=[chosen.layer], exclude=(), ranks={chosen.layer: rank}, selection=ENERGY, tune=None)


def _cascaded(
    at_once: ModelProto,
    steps: Sequence[tuple[str, Options]],
    teaching: Teaching,
    options: TuneOptions,
    approximate: Approximate,
    progress: Progress,
) -> Tuned | None:
    """Return the network approximated and trained layer after layer, or as it was found at once where that is better.

    None where nothing is behind any layer that is approximated, or where layers come out in other shapes, which what
    the result says of cost would not be true of.
    """
    assert options.minutes is not None
    model, found = teaching.original, list[Tuned]()
    for layer, how in steps:
        model = approximate(model, how)
        each = replace(options, tune=ABOVE, minutes=options.minutes / len(steps))
        try:
            found.append(fine_tune(teaching, model, each, progress))
        except NothingToTrainError:
            _LOG.info("cascade: nothing is behind layer %s", layer)
            continue
        model = found[-1].model
        if found[-1].is_interrupted:
            model = at_once  # it has all layers approximated
            break
    if not found or _shapes(model) != _shapes(at_once):
        return None
    before, after = figures(teaching.task(at_once, options), [at_once, model], options)
    return replace(
        found[-1],
        model=model if after < before else at_once,
        figures=(before, min(after, before)),
        steps=sum(one.steps for one in found),
        seconds=sum(one.seconds for one in found),
        history=(),
    )


def _shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}

"""Fine-tuning a small network in a few steps, and how far it is from its original."""

import numpy as np
from onnx import ModelProto

from helpers.models import run
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.preprocess import Preprocess
from onnxlowrank.progress import Silent
from onnxlowrank.tune.finetuning import Teaching, fine_tune
from onnxlowrank.tune.options import TuneOptions
from onnxlowrank.tune.split import split
from onnxlowrank.tune.tuned import Tuned


def tuned(original: ModelProto, optimised: ModelProto, inputs: Inputs, **options: object) -> Tuned:
    """Fine-tune, for 40 steps unless options say otherwise."""
    how = TuneOptions(**{"steps": 40, **options})
    how.check()
    teaching = Teaching(original, inputs, split(original, inputs), Preprocess(), {})
    return fine_tune(teaching, optimised, how, Silent())


def distance(original: ModelProto, model: ModelProto, inputs: Inputs) -> float:
    """Return the relative error of the outputs."""
    x = np.concatenate([inputs[index]["x"] for index in range(len(inputs))])
    one, other = (run(network, x=x)[0] for network in (original, model))
    return float(np.linalg.norm(other - one) / np.linalg.norm(one))

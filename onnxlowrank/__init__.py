"""Makes trained ONNX networks faster in onnxruntime by low-rank decomposition of their layers, without training."""

from onnxlowrank.calibrate.preprocess import preprocess_from_options
from onnxlowrank.errors import InputDataError, ModelError, OnnxLowRankError, OptionError, ProviderError
from onnxlowrank.pipeline import optimize
from onnxlowrank.result import Result

__all__ = [
    "InputDataError",
    "ModelError",
    "OnnxLowRankError",
    "OptionError",
    "ProviderError",
    "Result",
    "optimize",
    "preprocess_from_options",
]

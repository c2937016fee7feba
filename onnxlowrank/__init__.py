"""Makes trained ONNX networks faster in onnxruntime by low-rank decomposition of their layers, without training."""

from onnxlowrank.analysis import Analysis, analyze
from onnxlowrank.calibrate.preprocess import preprocess_from_options
from onnxlowrank.comparison import Comparison, compare
from onnxlowrank.errors import InputDataError, ModelError, OnnxLowRankError, OptionError, ProviderError
from onnxlowrank.pipeline import optimize
from onnxlowrank.result import Result
from onnxlowrank.shares import Profile, profile
from onnxlowrank.sweeps import Sweep, sweep

__all__ = [
    "Analysis",
    "Comparison",
    "InputDataError",
    "ModelError",
    "OnnxLowRankError",
    "OptionError",
    "Profile",
    "ProviderError",
    "Result",
    "Sweep",
    "analyze",
    "compare",
    "optimize",
    "preprocess_from_options",
    "profile",
    "sweep",
]

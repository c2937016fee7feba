"""Makes trained ONNX networks faster in onnxruntime by low-rank decomposition of their layers, without training."""

from onnxlowrank.errors import InputDataError, ModelError, OnnxLowRankError, OptionError, ProviderError
from onnxlowrank.graph.custom_ops import custom_operators
from onnxlowrank.inputs.preprocess import preprocess_from_options
from onnxlowrank.pipeline import optimize
from onnxlowrank.result import Result
from onnxlowrank.studies.analyze import Analysis, analyze
from onnxlowrank.studies.compare import Comparison, compare
from onnxlowrank.studies.finetune import Finetuned, finetune
from onnxlowrank.studies.profile import Profile, profile
from onnxlowrank.studies.sweep import Sweep, sweep

__all__ = [
    "Analysis",
    "Comparison",
    "Finetuned",
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
    "custom_operators",
    "finetune",
    "optimize",
    "preprocess_from_options",
    "profile",
    "sweep",
]

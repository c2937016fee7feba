"""The errors a user can cause; each message is one sentence that names what was wrong and what to do."""


class OnnxLowRankError(Exception):
    """Base of every error raised for bad input; the command line prints it and exits with code 2."""


class ModelError(OnnxLowRankError):
    """The ONNX file is missing, damaged, unsupported, or has nothing to decompose."""


class InputDataError(OnnxLowRankError):
    """The calibration or evaluation data cannot be read or do not fit the model's inputs."""


class OptionError(OnnxLowRankError):
    """An option or argument has a value that makes no sense."""


class ProviderError(OnnxLowRankError):
    """The execution provider asked for is not available here."""

"""The errors a user can cause, by kind; each message is one sentence that names what was wrong and what to do.

The command line prints ``error[E203]: sentence.`` and exits with code 2. A code stays what it is from one version to
the next: the first digit says what the error is about, the class what to do about it. ``docs/errors.md`` lists them.
"""

from __future__ import annotations

from typing import ClassVar


class OnnxLowRankError(Exception):
    """Base of every error raised for bad input; nothing is written then.

    Attributes:
        code: The kind's stable code.
    """

    code: ClassVar[str] = "E000"


class ModelError(OnnxLowRankError):
    """The network cannot be used."""

    code = "E100"


class ModelFileError(ModelError):
    """The ONNX file is missing, is a directory or may not be read: check the path and its permissions."""

    code = "E101"


class DamagedModelError(ModelError):
    """The file is not ONNX, is truncated or invalid, or lacks its external data: export or download it again."""

    code = "E102"


class UnsupportedModelError(ModelError):
    """The network is valid, but what was asked for cannot be done with it, such as one that is quantised already."""

    code = "E103"


class NotFiniteError(ModelError):
    """The network computes infinities or NaN on the inputs given: give inputs of the range it was trained on."""

    code = "E104"


class DefectError(ModelError):
    """The optimised network failed its last check; nothing was written. This is a defect: please report it."""

    code = "E109"


class InputDataError(OnnxLowRankError):
    """Calibration or evaluation data cannot be used."""

    code = "E200"


class MissingInputsError(InputDataError):
    """There are no such data: the path, the module or its attribute is missing, or it is empty."""

    code = "E201"


class DamagedInputsError(InputDataError):
    """A file of data is truncated, damaged or of another kind: save it again."""

    code = "E202"


class UnfitInputsError(InputDataError):
    """The data do not fit the network's inputs: names, shapes, types or values differ from what it takes."""

    code = "E203"


class ReaderError(InputDataError):
    """Code of the user's that gives data failed: a module, a reader, an iterator."""

    code = "E204"


class OptionError(OnnxLowRankError):
    """An option or argument has a value that makes no sense."""

    code = "E300"


class UserFunctionError(OptionError):
    """A function of the user's that an option names failed."""

    code = "E301"


class UsageError(OptionError):
    """A command, option or argument is unknown, missing, too many or of the wrong type: see the command's --help."""

    code = "E302"


class NothingToTrainError(OptionError):
    """Fine-tuning was to train a part of the network that has no weights: choose another --tune."""

    code = "E303"


class ProviderError(OnnxLowRankError):
    """The execution provider asked for is not available here."""

    code = "E400"


class RefusedModelError(ModelError):
    """onnxruntime does not load the network: too new for it, with custom operators, types it has no code for."""

    code = "E401"


class FailedRunError(InputDataError):
    """onnxruntime loaded the network but fails to run it on the inputs given."""

    code = "E402"


class DestinationError(OptionError):
    """A file cannot be written where it was asked for."""

    code = "E500"


class DiskFullError(DestinationError):
    """The disk is full: free some space and run again."""

    code = "E501"


class ScratchError(InputDataError):
    """There is no room for temporary files: make room or set TMPDIR to a larger disk."""

    code = "E502"

"""What onnxruntime says when it refuses a network or fails to run it, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.boundary import reason
from onnxlowrank.errors import FailedRunError, RefusedModelError

# "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/.../model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&) "
_STATUS = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE = re.compile(r"\S*\.(?:cc|cpp|cu|cuh|h|hpp):\d+ ")
_SIGNATURE = re.compile(
    r"[\w\s:<>,*&~]*\w+\s*\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)(?: const)?(?: \[with [^\]]*\])? "
)
_EXPECTATION = re.compile(r"\S(?:(?! was false\. ).){0,200} was false\. ")

_TOO_NEW = re.compile(r"Unsupported model IR version|only \*guarantees\* support for models stamped")
_CUSTOM = re.compile(r"Fatal error: (?P<operator>\S+)\(-?\d+\) is not a registered function/op")
_UNKNOWN = re.compile(r"No Op registered for (?P<operator>\S+) with domain_version of (?P<opset>\d+)")
_NO_KERNEL = re.compile(r"Could not find an implementation for (?P<operator>\S+)\(\d+\)")

_UPGRADE = "upgrade onnxruntime, or convert the network with onnx.version_converter and lower its ir_version"


def refused(error: BaseException) -> RefusedModelError:
    """Return the error that says why onnxruntime does not load a network, with the advice that fits."""
    said = told(error)
    return RefusedModelError(f"onnxruntime cannot load the model ({said}); {_advice(said)}")


def failed_run(
    error: BaseException, feeds: Mapping[str, NDArray[np.generic]], synthetic: bool = False
) -> FailedRunError:
    """Return the error that says why onnxruntime does not run a network on an input."""
    given = ", ".join(f"'{name}' {list(value.shape)}" for name, value in feeds.items())
    advice = "this was made up: give --calibration, or --shape" if synthetic else "give inputs that it takes"
    return FailedRunError(f"onnxruntime cannot run the network on the input {given} ({told(error)}); {advice}")


def told(error: BaseException) -> str:
    """Return the whole of onnxruntime's reason on one line, without the place in its source that it begins with."""
    said = reason(error)
    status = _STATUS.match(said)
    if status is None:
        return said
    head, place, rest = _parted(said[status.end() :])
    if place:
        signature = _SIGNATURE.match(rest)
        rest = rest[signature.end() :] if signature else rest
        expected = _EXPECTATION.match(rest)
        rest = rest[expected.end() :] if expected else rest
    return f"{head}{rest}".strip() or said


def _parted(said: str) -> tuple[str, bool, str]:
    """Return what is before a place in the source, whether there is one, and what is behind it."""
    place = _SOURCE.search(said)
    return (said[: place.start()], True, said[place.end() :]) if place else ("", False, said)


def _advice(said: str) -> str:
    if _TOO_NEW.search(said):
        return _UPGRADE
    if custom := _CUSTOM.search(said):
        return (
            f"the operator {custom['operator']} needs its library of custom operators: name it with --custom-ops "
            "LIBRARY, or give a network of standard operators"
        )
    if unknown := _UNKNOWN.search(said):
        return (
            f"{unknown['operator']} is no operator of opset {unknown['opset']} that this onnxruntime knows: {_UPGRADE}"
        )
    if missing := _NO_KERNEL.search(said):
        return (
            f"this onnxruntime has no {missing['operator']} for the types it has here, such as float64 or bfloat16: "
            "convert the network to float32"
        )
    return "export it again"

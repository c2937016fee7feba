"""Libraries of custom operators, for all sessions in which a network is simplified, run or timed.

They are kept in the environment, where the processes that this one starts find them as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnxruntime

from onnxlowrank.boundary import foreign, reason
from onnxlowrank.errors import OptionError

_VARIABLE = "_ONNXLOWRANK_CUSTOM_OPS"


@contextmanager
def custom_operators(libraries: Sequence[str | os.PathLike[str]]) -> Iterator[None]:
    """Let onnxruntime know the operators of some libraries while the context lasts.

    Args:
        libraries: Files as ``SessionOptions.register_custom_ops_library`` takes them.

    Raises:
        OptionError: If one of them cannot be loaded.
    """
    paths = [os.path.abspath(path) for path in libraries]
    for path in paths:
        with foreign(
            lambda error, path=path: OptionError(  # type: ignore[misc]
                f"--custom-ops {path} cannot be loaded ({reason(error)}); give a library of operators that was built "
                f"for onnxruntime {onnxruntime.__version__} on this machine"
            )
        ):
            onnxruntime.SessionOptions().register_custom_ops_library(path)
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = json.dumps(paths)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


def register_custom_operators(options: onnxruntime.SessionOptions) -> None:
    """Let a session know the operators of all libraries of the context."""
    for path in json.loads(os.environ.get(_VARIABLE, "[]")):
        options.register_custom_ops_library(path)

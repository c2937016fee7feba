"""The boundary to foreign code."""

import pytest

from onnxlowrank.boundary import foreign, reason, typed_reason
from onnxlowrank.errors import DamagedInputsError, OptionError


def told(error):
    return DamagedInputsError(f"the file ({reason(error)})")


@pytest.mark.parametrize("raised", [TypeError("a\n b."), MemoryError("a b"), RecursionError("a b:")])
def test_what_parsers_raise_becomes_an_error_of_ours(raised):
    with pytest.raises(DamagedInputsError, match=r"^the file \(a b\)$") as caught, foreign(told):
        raise raised
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [SystemExit(3), GeneratorExit(), BaseException("odd")])
def test_code_of_the_user_may_not_end_the_process(raised):
    with pytest.raises(DamagedInputsError), foreign(told, BaseException):
        raise raised
    with pytest.raises(type(raised)), foreign(told):
        raise raised


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), OptionError("it is ours")])
def test_interrupts_and_our_own_errors_pass(raised):
    with pytest.raises(type(raised)) as caught, foreign(told, BaseException):
        raise raised
    assert caught.value is raised


def test_reasons():
    assert reason(FileNotFoundError(2, "No such file or directory", "/a/b")) == "No such file or directory"
    assert reason(KeyError()) == typed_reason(KeyError()) == "KeyError"
    assert typed_reason(KeyError("x")) == "KeyError: 'x'"
    assert len(reason(ValueError("x" * 5000))) < 1100

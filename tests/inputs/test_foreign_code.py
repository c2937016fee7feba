"""Readers that do what they like, and files that change while they are read."""

import numpy as np
import pytest
from helpers.inputs import RAW, same, spec

from onnxlowrank.errors import DamagedInputsError, MissingInputsError, ReaderError
from onnxlowrank.inputs.sources import open_inputs

VECTOR = (spec(None, 4, name="x"),)
X = np.arange(24, dtype=np.float32).reshape(6, 4)

MODULE = """
import sys
import numpy as np

class Ends:
    def get_next(self):
        sys.exit(0)

class EndsLater:
    count = 0
    def get_next(self):
        self.count += 1
        if self.count > 2:
            raise GeneratorExit
        return {"x": np.zeros((1, 4), np.float32)}

class Stops:
    def get_next(self):
        raise StopIteration("no more")

class Raises:
    def get_next(self):
        class Odd(BaseException):
            pass
        raise Odd("odd\\nthing")

class Interrupts:
    def get_next(self):
        raise KeyboardInterrupt

class Deep:
    def get_next(self):
        return self.get_next()

def called():
    sys.exit("bye")

class Lookup:
    @property
    def get_next(self):
        raise RuntimeError("no attribute for you")

lookup = Lookup()

class Odd(dict):
    def __getitem__(self, name):
        raise ZeroDivisionError("nothing here")

def odd():
    yield Odd(x=1)

def none():
    yield None

def forever():
    return iter(int, 1)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "users_code.py").write_text(MODULE)
    (tmp_path / "users_exit.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("users_code:Ends", "at item 0 .SystemExit: 0"),
        ("users_code:EndsLater", "at item 2 .GeneratorExit"),
        ("users_code:Stops", "at item 0 .StopIteration: no more"),
        ("users_code:Raises", "at item 0 .Odd: odd thing"),
        ("users_code:Deep", "at item 0 .RecursionError"),
        ("users_code:called", "when it was called without arguments .SystemExit: bye"),
        ("users_code:lookup", "RuntimeError: no attribute for you"),
        ("users_code:odd", "ZeroDivisionError: nothing here"),
        ("users_exit:anything", "when its module was imported .SystemExit: 7"),
    ],
)
def test_what_a_reader_raises_is_told(name, when):
    with pytest.raises(ReaderError, match=rf"^{name} failed .*{when}.*correct it\.$"):
        open_inputs(name, VECTOR, RAW)


@pytest.mark.usefixtures("module")
def test_the_user_may_interrupt():
    with pytest.raises(KeyboardInterrupt):
        open_inputs("users_code:Interrupts", VECTOR, RAW)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(("name", "says"), [("none", "item 0 is a NoneType"), ("forever", "item 0 is a int")])
def test_nonsense_is_told(name, says):
    with pytest.raises(Exception, match=says):
        open_inputs(f"users_code:{name}", VECTOR, RAW)


@pytest.mark.usefixtures("module")
def test_what_is_not_there_is_told():
    with pytest.raises(MissingInputsError, match="'users_cod' of users_cod:x was not found"):
        open_inputs("users_cod:x", VECTOR, RAW)
    with pytest.raises(MissingInputsError, match="no attribute 'x'"):
        open_inputs("users_code:x", VECTOR, RAW)


def test_a_file_cut_short_while_it_is_used(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, X)
    inputs = open_inputs(path, VECTOR, RAW)
    path.write_bytes(path.read_bytes()[:-20])
    same(inputs[:2], [{"x": X[:1]}, {"x": X[1:2]}])
    with pytest.raises(DamagedInputsError, match=r"x\.npy cannot be read"):
        inputs[5]
    path.unlink()
    with pytest.raises(DamagedInputsError, match=r"x\.npy cannot be read as NumPy arrays \(No such file"):
        inputs[0]


def test_a_file_shorter_than_its_header_says(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, X)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedInputsError, match="95 bytes of the 96 that its header promises"):
        open_inputs(path, VECTOR, RAW)


@pytest.mark.parametrize("shape", ["-6, 4", "4611686018427387904, 4", "6, 4611686018427387904"])
def test_sizes_beyond_reason(tmp_path, shape):
    path = tmp_path / "x.npy"
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}".encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header + X.tobytes())
    with pytest.raises(DamagedInputsError, match=r"x\.npy cannot be read"):
        open_inputs(path, VECTOR, RAW)


@pytest.mark.parametrize("kind", ["x.npy", "x.npz"])
def test_fortran_order(tmp_path, kind):
    path = tmp_path / kind
    np.save(path, np.asfortranarray(X)) if kind == "x.npy" else np.savez(path, x=np.asfortranarray(X))
    same(open_inputs(path, VECTOR, RAW), [{"x": X[i : i + 1]} for i in range(6)])


def test_messages_name_the_archive_not_its_copy(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros((0, 4), np.float32))
    with pytest.raises(DamagedInputsError, match=r"x\.npz, array 'x' has shape \[0, 4\]"):
        open_inputs(path, VECTOR, RAW)

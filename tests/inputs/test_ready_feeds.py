import gc
import sys
import tempfile
import textwrap

import numpy as np
import onnx
import pytest
from helpers.inputs import RAW, same, says, spec

from onnxlowrank.inputs.sources import open_inputs

VECTOR = (spec(None, 4, name="x"),)
PAIR = (spec(None, 4, name="x"), spec(None, name="n", dtype="int64"))


def rows(count, width=4):
    return np.random.default_rng(count).standard_normal((count, width)).astype(np.float32)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_npy(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, rows(5))
    inputs = open_inputs(path, VECTOR, RAW)
    assert (len(inputs), inputs.batch, inputs.labels) == (5, 1, None)
    assert inputs.description == f"5 samples in {path}"
    same(inputs, [{"x": rows(5)[index : index + 1]} for index in range(5)])
    same(open_inputs(path, (spec(2, 4, name="x"),), RAW), [{"x": rows(5)[:2]}, {"x": rows(5)[2:4]}])
    says(path, (spec(6, 4, name="x"),), path, "5 samples", "batches of 6")


def test_feeds_are_the_callers_to_change(tmp_path):
    np.save(tmp_path / "x.npy", rows(2))
    inputs = open_inputs(tmp_path / "x.npy", VECTOR, RAW)
    inputs[0]["x"][:] = 0
    np.testing.assert_array_equal(inputs[0]["x"], rows(2)[:1])


def test_npz_by_name_with_labels(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=rows(3), n=np.arange(3), labels=np.array([7, 8, 9]), extra=np.zeros(2))
    inputs = open_inputs(path, PAIR, RAW)
    np.testing.assert_array_equal(inputs.labels, [[7], [8], [9]])
    same(inputs, [{"x": rows(3)[i : i + 1], "n": np.array([i])} for i in range(3)])
    assert list(inputs[0]) == ["x", "n"]


def test_an_axis_more_holds_whole_feeds():
    specs = (spec(3, 4, name="x"), spec(name="s"))
    stack = rows(6).reshape(2, 3, 4)
    scalars = np.array([0.5, 1.5], np.float32)
    inputs = open_inputs({"x": stack, "s": scalars, "labels": np.arange(6)}, specs, RAW)
    same(inputs, [{"x": stack[0], "s": scalars[0]}, {"x": stack[1], "s": scalars[1]}])
    assert inputs[0]["s"].shape == ()
    np.testing.assert_array_equal(inputs.labels, [[0, 1, 2], [3, 4, 5]])


def test_bare_array_in_python():
    same(open_inputs(rows(2), VECTOR, RAW), [{"x": rows(2)[:1]}, {"x": rows(2)[1:]}])


def test_arrays_that_do_not_fit(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, rows(3).astype(np.float64))
    says(path, VECTOR, path, "'x'", "float64", "float32")
    np.save(path, rows(3, 5))
    says(path, VECTOR, path, "'x'", "[3, 5]", "[4]")
    np.save(path, rows(3)[:0])
    says(path, VECTOR, path, "no samples")
    np.save(path, np.float32(3))
    says(path, VECTOR, path, "no samples")
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    says(path, VECTOR, path, "allow_pickle=False")
    np.save(path, rows(3))
    says(path, PAIR, path, "'x', 'n'", ".npz")
    path.write_bytes(path.read_bytes()[:-8])
    says(path, VECTOR, path, "cannot be read")
    path.write_bytes(b"nothing like it")
    says(path, VECTOR, path, "cannot be read")
    path.write_bytes(b"")
    says(path, VECTOR, path, "cannot be read")


def test_npz_that_does_not_fit(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=rows(3), m=np.arange(3))
    says(path, PAIR, path, "'x', 'm'", "'x', 'n'")
    np.savez(path, x=rows(3), n=np.arange(2))
    says(path, PAIR, path, "'x' 3", "'n' 2")
    np.savez(path, x=rows(3), n=np.arange(3), labels=np.arange(4))
    says(path, PAIR, path, "'labels'", "3 samples")
    np.savez(path, x=np.array([None, {}], dtype=object), n=np.arange(2))
    says(path, PAIR, path, "'x'", "allow_pickle=False")
    path.write_bytes(path.read_bytes()[:60])
    says(path, PAIR, path, "cannot be read")
    says({"x": rows(3)}, PAIR, "the dict", "'x', 'n'")
    says({"x": [1, 2]}, VECTOR, "'x'", "list", "NumPy array")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_found_when_read(tmp_path, bad):
    array = rows(3)
    array[1, 2] = bad
    path = tmp_path / "x.npy"
    np.save(path, array)
    inputs = open_inputs(path, VECTOR, RAW)
    inputs[0]
    says(path, VECTOR, f"{path}, item 1", "'x'", "NaN or infinite", read=True)
    says([array[:1], array[1:2]], VECTOR, "the list, item 1", "NaN", read=True)
    says(iter([array[:1], array[1:2]]), VECTOR, "item 1", "NaN")


def pb(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(onnx.numpy_helper.from_array(array).SerializeToString())


def test_onnx_test_data(tmp_path):
    for number in (10, 2, 0):
        pb(tmp_path / f"test_data_set_{number}" / "input_0.pb", rows(2) + number)
        pb(tmp_path / f"test_data_set_{number}" / "input_1.pb", np.arange(2))
        pb(tmp_path / f"test_data_set_{number}" / "output_0.pb", rows(1))
    inputs = open_inputs(tmp_path, PAIR, RAW)
    assert (inputs.batch, inputs.labels) == (2, None)
    assert inputs.description == f"3 test data sets in {tmp_path}"
    same(inputs, [{"x": rows(2) + number, "n": np.arange(2)} for number in (0, 2, 10)])
    same(open_inputs(tmp_path / "test_data_set_2", PAIR, RAW), [inputs[1]])


def test_onnx_test_data_that_does_not_fit(tmp_path):
    one = tmp_path / "test_data_set_0"
    pb(one / "input_0.pb", rows(2))
    says(tmp_path, PAIR, one, "input_0.pb", "2 inputs")
    pb(one / "input_0.pb", rows(2, 3))
    says(tmp_path, VECTOR, one, "'x'", "[2, 3]", "[?, 4]")
    pb(one / "input_0.pb", rows(2) * np.nan)
    says(tmp_path, VECTOR, one, "'x'", "NaN")
    (one / "input_0.pb").write_bytes(b"\xff\xff\xff")
    says(tmp_path, VECTOR, one / "input_0.pb", "TensorProto")


class Reader:
    """Like onnxruntime's CalibrationDataReader, whose own iteration protocol is not usable."""

    def __init__(self, count=3):
        self.left = [{"x": rows(2) + index} for index in range(count)]

    def __iter__(self):
        raise NotImplementedError

    def get_next(self):
        return self.left.pop(0) if self.left else None


@pytest.mark.parametrize(
    "make",
    [
        Reader,
        lambda: [{"x": rows(2) + index} for index in range(3)],
        lambda: tuple(rows(2) + index for index in range(3)),
        lambda: (rows(2) + index for index in range(3)),
        lambda: ({"x": rows(2) + index} for index in range(3)),
    ],
    ids=["reader", "list", "tuple of arrays", "generator of arrays", "generator of dicts"],
)
def test_objects_are_read_as_often_as_wanted(make):
    inputs = open_inputs(make(), VECTOR, RAW)
    want = [{"x": rows(2) + index} for index in range(3)]
    same(inputs, want)
    same(inputs, want)
    assert (inputs.batch, inputs.labels) == (2, None)
    assert inputs.description.startswith("3 feeds from the ")


def test_scratch_holds_the_feeds_and_goes_with_the_inputs(scratch):
    inputs = open_inputs((rows(1) + index for index in range(20)), VECTOR, RAW)
    (folder,) = (path for path in scratch.iterdir() if path.is_dir())
    assert len(list(folder.glob("*.npy"))) == 20
    part = inputs.subset([3])
    del inputs
    gc.collect()
    np.testing.assert_array_equal(part[0]["x"], rows(1) + 3)
    del part
    gc.collect()
    assert not folder.exists()


def test_scratch_of_a_refused_source_goes_at_once(scratch):
    says(iter([rows(1), rows(1, 3)]), VECTOR, "item 1")
    assert not list(scratch.iterdir())


def test_opening_a_long_iterable_does_not_hold_its_feeds():
    live = []

    class Tracked(np.ndarray):
        def __del__(self):
            live.remove(1)

    def feeds():
        for _ in range(30):
            array = np.zeros((1, 4), np.float32).view(Tracked)
            live.append(1)
            yield array
            del array
            gc.collect()
            assert len(live) <= 3

    assert len(open_inputs(feeds(), VECTOR, RAW)) == 30


def failing():
    yield rows(1)
    raise RuntimeError("disk on fire")


def test_objects_that_do_not_fit():
    says([rows(1), rows(1).astype(np.float64)], VECTOR, "the list, item 1", "'x'", "float64")
    says([rows(1)[0]], VECTOR, "the list, item 0", "[4]", "[?, 4]")
    says([{"y": rows(1)}], VECTOR, "item 0", "'y'", "'x'")
    says([{"x": rows(1), "y": rows(1)}], VECTOR, "item 0", "'y'", "'x'")
    says([rows(1)], PAIR, "item 0", "ndarray", "'x', 'n'")
    says([(rows(1), 3)], VECTOR, "item 0", "tuple", "'x'")
    says([{"x": [1.0, 2.0]}], VECTOR, "item 0", "'x'", "list")
    says([{"x": np.array([["a"] * 4], dtype=object)}], VECTOR, "item 0", "object")
    says([], VECTOR, "the list", "no feeds")
    says(Reader(0), VECTOR, "the Reader", "no feeds")
    says(failing(), VECTOR, "the generator", "item 1", "RuntimeError: disk on fire")
    says(17, VECTOR, "the int", "get_next()")
    says(None, VECTOR, "the NoneType")


MODULE = """
import numpy as np
FEEDS = [{"x": np.ones((1, 4), np.float32)}]
class Reader:
    def __init__(self):
        self.left = list(FEEDS)
    def get_next(self):
        return self.left.pop() if self.left else None
READER = Reader()
def make():
    return Reader()
def generate():
    yield from FEEDS
class Space:
    nested = FEEDS
def broken():
    raise ValueError("no\\ndata")
NUMBER = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "sample_feeds_module.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "sample_broken_module.py").write_text("1 / 0")
    (tmp_path / "sample_needy_module.py").write_text("import sample_absent_module")
    monkeypatch.chdir(tmp_path)
    yield "sample_feeds_module"
    for name in [name for name in sys.modules if name.startswith("sample_")]:
        del sys.modules[name]


@pytest.mark.parametrize("attribute", ["FEEDS", "Reader", "READER", "make", "generate", "Space.nested"])
def test_module_and_attribute(module, attribute):
    path = list(sys.path)
    inputs = open_inputs(f"{module}:{attribute}", VECTOR, RAW)
    same(inputs, [{"x": np.ones((1, 4), np.float32)}])
    assert inputs.description == f"1 feeds from {module}:{attribute}"
    assert sys.path == path


def test_modules_that_do_not_serve(module):
    says("sample_absent_module:x", VECTOR, "module 'sample_absent_module'", "not found")
    says("sample_absent.part:x", VECTOR, "module 'sample_absent.part'", "not found")
    says(f"{module}:nothing", VECTOR, f"'{module}'", "'nothing'")
    says(f"{module}:broken", VECTOR, f"{module}:broken", "ValueError: no data")
    says(f"{module}:NUMBER", VECTOR, f"{module}:NUMBER", "get_next()")
    says("sample_broken_module:x", VECTOR, "sample_broken_module:x", "ZeroDivisionError")
    says("sample_needy_module:x", VECTOR, "sample_needy_module:x", "sample_absent_module")
    says("gone/data:3", VECTOR, "gone/data:3", "does not exist")
    says(f"{module}:FEEDS", PAIR, f"{module}:FEEDS, item 0", "'x', 'n'")

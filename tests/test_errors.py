"""Every kind of error: its code, its place in docs/errors.md, and a way to it."""

import errno
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.inputs import RAW, spec
from helpers.models import conv_model, normal, parse

from onnxlowrank import errors
from onnxlowrank.calibrate.capture import RowStore, run_probes
from onnxlowrank.cli import call
from onnxlowrank.errors import OnnxLowRankError
from onnxlowrank.graph import load as loading
from onnxlowrank.graph.load import load, write_atomically
from onnxlowrank.graph.probe import Probe, add_probes
from onnxlowrank.graph.verify import verify_interface
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.sources import open_inputs
from onnxlowrank.measure.sessions import Target, all_threads, open_session, running
from onnxlowrank.passes import load_passes
from onnxlowrank.studies.compare import compare
from onnxlowrank.tune.weights import trained_weights

DOCS = Path(__file__).parents[1] / "docs" / "errors.md"
RNG = np.random.default_rng(0)
VECTOR = (spec(None, 4, name="x"),)
KINDS = {one.code: one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, OnnxLowRankError)}
ABSTRACT = {"E000", "E100", "E200"}


def no_file(folder, monkeypatch):
    load(folder / "none.onnx")


def damaged(folder, monkeypatch):
    (folder / "net.onnx").write_bytes(b"no network")
    load(folder / "net.onnx")


def quantised(folder, monkeypatch):
    load(parse("g (float[4] x, float s, uint8 z) => (uint8[4] y) { y = QuantizeLinear (x, s, z) }"))


def not_finite(folder, monkeypatch):
    inputs = Inputs(lambda index: {"x": np.full((1, 1, 4, 4), 3e38, np.float32)}, 1, 1, "rows")
    model = conv_model(np.full((1, 1, 3, 3), 3e38, np.float32))
    list(run_probes(add_probes(model, [Probe("p", "y", False)]), inputs, 0, lambda amount: None))


def defect(folder, monkeypatch):
    before, after = conv_model(normal(RNG, 2, 2, 1, 1)), conv_model(normal(RNG, 2, 2, 1, 1))
    after.graph.output[0].name = after.graph.node[0].output[0] = "z"
    verify_interface(before, after)


def no_data(folder, monkeypatch):
    open_inputs(folder / "none.npy", VECTOR, RAW)


def damaged_data(folder, monkeypatch):
    (folder / "x.npy").write_bytes(b"no array")
    open_inputs(folder / "x.npy", VECTOR, RAW)


def unfit_data(folder, monkeypatch):
    open_inputs(np.zeros((3, 5), np.float32), VECTOR, RAW)


def bad_reader(folder, monkeypatch):
    open_inputs((1 / 0 for _ in range(1)), VECTOR, RAW)


def no_pass(folder, monkeypatch):
    load_passes(["cubic"])


def bad_metric(folder, monkeypatch):
    onnx.save(conv_model(normal(RNG, 2, 2, 1, 1)), folder / "net.onnx")
    x = np.zeros((2, 2, 4, 4), np.float32)
    compare([folder / "net.onnx"] * 2, inputs=x, metric=lambda outputs, labels: sys.exit(1), seconds=0.01)


def no_option(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["onnxlowrank", "optimize", "--sped-up", "2"])
    call(None)


def no_provider(folder, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    Target("cuda").check()


def nothing_to_train(folder, monkeypatch):
    model = conv_model(normal(RNG, 2, 2, 1, 1))
    trained_weights(model, model, "chains", ["y"])


def too_new(folder, monkeypatch):
    open_session(parse("g (float[4] x) => (float[4] y) { y = Relu (x) }", ir=99), all_threads())


def run_fails(folder, monkeypatch):
    feeds = {"x": np.zeros((1, 2, 1, 1), np.float32)}
    session = open_session(conv_model(normal(RNG, 2, 2, 3, 3)), all_threads())
    with running(feeds):
        session.run(None, feeds)


def no_folder(folder, monkeypatch):
    write_atomically(folder / "none" / "out.json", b"{}")


def disk_full(folder, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loading, "_flush_to_disk", full)
    write_atomically(folder / "out.json", b"{}")


def no_scratch(folder, monkeypatch):
    with RowStore() as store:
        monkeypatch.setattr(Path, "open", lambda *given: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        store.append("conv", np.zeros((1, 1), np.float32))


CASES = {
    "E101": no_file,
    "E102": damaged,
    "E103": quantised,
    "E104": not_finite,
    "E109": defect,
    "E201": no_data,
    "E202": damaged_data,
    "E203": unfit_data,
    "E204": bad_reader,
    "E300": no_pass,
    "E301": bad_metric,
    "E302": no_option,
    "E303": nothing_to_train,
    "E400": no_provider,
    "E401": too_new,
    "E402": run_fails,
    "E500": no_folder,
    "E501": disk_full,
    "E502": no_scratch,
}


@pytest.mark.parametrize("code", CASES)
def test_the_way_to_an_error(code, tmp_path, monkeypatch):
    with pytest.raises(OnnxLowRankError) as caught:
        CASES[code](tmp_path, monkeypatch)
    assert type(caught.value) is KINDS[code]
    assert caught.value.code == code


def test_every_kind_has_a_code_of_its_own_and_a_way_to_it():
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, OnnxLowRankError)]
    assert len(KINDS) == len(classes)
    assert all(re.fullmatch(r"E\d{3}", code) for code in KINDS)
    assert CASES.keys() | ABSTRACT == KINDS.keys()


def test_codes_are_stable():
    assert {code: one.__name__ for code, one in KINDS.items()} == {
        "E000": "OnnxLowRankError",
        "E100": "ModelError",
        "E101": "ModelFileError",
        "E102": "DamagedModelError",
        "E103": "UnsupportedModelError",
        "E104": "NotFiniteError",
        "E109": "DefectError",
        "E200": "InputDataError",
        "E201": "MissingInputsError",
        "E202": "DamagedInputsError",
        "E203": "UnfitInputsError",
        "E204": "ReaderError",
        "E300": "OptionError",
        "E301": "UserFunctionError",
        "E302": "UsageError",
        "E303": "NothingToTrainError",
        "E400": "ProviderError",
        "E401": "RefusedModelError",
        "E402": "FailedRunError",
        "E500": "DestinationError",
        "E501": "DiskFullError",
        "E502": "ScratchError",
    }


def test_the_page_lists_them():
    rows = [
        f"| {code} | `{one.__name__}` | `{one.__base__.__name__}` | {' '.join(one.__doc__.split())} |"
        for code, one in KINDS.items()
        if code != "E000"
    ]
    listed = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| E")]
    assert listed == rows, "docs/errors.md is to have these rows:\n" + "\n".join(rows)

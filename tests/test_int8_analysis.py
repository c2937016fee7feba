"""What ``analyze --precision int8`` says of a network."""

import json
from importlib import resources

import jsonschema
import pytest
from test_int8 import network
from test_pipeline import smooth

from onnxlowrank import OptionError, analyze
from onnxlowrank.errors import MissingInputsError
from onnxlowrank.measure.latency import Latency
from onnxlowrank.report.analyze import analysis_report
from onnxlowrank.studies import int8_analysis


@pytest.fixture(autouse=True)
def three_times_as_fast(monkeypatch):
    times = [Latency((3.0,) * 7), Latency((1.0,) * 7)]
    monkeypatch.setattr(int8_analysis, "measure_in_sessions", lambda *_, **__: times)


def test_it_tells_what_int8_alone_gives_and_costs():
    found = analyze(network(), calibration=smooth(24), passes=["channel"], precision="int8")
    assert found.int8.alone.latency_speedup == 3
    assert 0 < found.int8.alone.agreement.relative_error < 0.05
    assert set(found.int8.losses) == {"n_a", "n_b", "n_c", "n_y"}
    assert sum(found.int8.losses.values()) == pytest.approx(1)
    assert found.int8.float32_because == {}
    schema = json.loads(resources.files("onnxlowrank.report.schema").joinpath("analyze.json").read_text())
    jsonschema.validate(json.loads(json.dumps(found.to_dict())), schema)
    report = analysis_report(found)
    assert "Int8 alone, nothing decomposed, is 3.00x as fast" in report.headline
    assert any("What rounding to int8 costs" in table.title for table in report.tables)
    assert not found.command or found.command.endswith("--precision mixed")


def test_layers_that_cannot_be_int8_are_told():
    found = analyze(network(second=0.0), calibration=smooth(24), passes=["channel"], precision="int8")
    assert set(found.int8.float32_because) == {"n_b", "n_c"}


def test_without_being_asked_there_is_nothing_of_it():
    found = analyze(network(), calibration=smooth(24), passes=["channel"])
    assert found.to_dict()["int8"] is None


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"precision": "fp16"}, OptionError, "choose from float32, int8"),
        ({"precision": "int8", "calibration": None}, MissingInputsError, "--calibration"),
    ],
)
def test_refusals(how, error, says):
    with pytest.raises(error, match=says):
        analyze(network(), **{"calibration": smooth(8), **how})

"""What an optimisation's report says of speed, cost and counts."""

import re
from dataclasses import replace

import pytest

from onnxlowrank.evaluate.agreement import Agreement, Noise
from onnxlowrank.goal import Goal
from onnxlowrank.measure.latency import Latency
from onnxlowrank.report.agreement import cost_text, noise_note
from onnxlowrank.report.optimize import headline, optimisation_report
from onnxlowrank.result import LayerReport, ModelReport, Result

AGREEMENT = Agreement(inputs=64, source="", largest_difference=0.5, relative_error=0.0312)
LAYERS = (
    LayerReport("conv", "channel", (16,), ("d'",), 0.97, (40_000, 20_000), (900, 400)),
    LayerReport("up", "keep", (), (), None, (960, 960), (10, 10), "transposed convolution"),
)


def result(goal=("speedup", 2.0), before=(4.0, 2.0, 2.0), after=(1.0, 1.0, 2.0), agreement=AGREEMENT, counted=True):
    times = [
        ModelReport(40_960, counted, 910, 4000, Latency(before)),
        ModelReport(20_960, counted, 410, 2000, Latency(after)),
    ]
    return Result(None, Goal(*goal), None, 2.0, 2.0, LAYERS, *times, agreement, "cpu", 1, 1.0)


def cells(report, title):
    (table,) = [one for one in report.tables if one.title.startswith(title)]
    return {row[0]: row[1:] for row in table.rows}


@pytest.mark.parametrize(
    ("about", "text"),
    [
        ({"accuracy": (0.9245, 0.9045), "top1_agreement": 0.9}, "top-1 accuracy 92.45 % -> 90.45 %"),
        ({"top1_agreement": 0.984}, "same top-1 class on 98.4 % of 64 inputs"),
        ({}, "relative output error 0.0312"),
    ],
)
@pytest.mark.parametrize(
    "goal", [("speedup", 2.0), ("speedup", 9.0), ("max_macs", 1e9), ("max_size", 10.0), ("latency", 5.0)]
)
def test_the_headline_tells_what_it_cost(about, text, goal):
    agreement = replace(AGREEMENT, **about)
    assert cost_text(agreement) == text
    assert text in headline(result(goal, agreement=agreement))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("speedup", "no setting makes the network faster in measured latency"),
        ("conv_macs", "no setting saves any MACs of"),
    ],
)
def test_what_cannot_be_reached_at_all_is_said_in_english(kind, sentence):
    unchanged = replace(result((kind, 2.0)), latency_speedup=1.0, macs_speedup=1.0)
    assert f"2x was asked for, {sentence}" in headline(unchanged)


def test_the_report_tells_noise_from_change():
    noisy = replace(AGREEMENT, noise=Noise(0.03, 0.4, None))
    assert "relative output error 0.0312, 0.0300 where the original is run twice" in headline(result(agreement=noisy))
    report = optimisation_report(result(agreement=noisy), "t")
    whole = cells(report, "Whole")
    assert whole["output difference, relative"] == ("0.0300", "0.0312", "")
    assert whole["output difference, largest"] == ("0.4", "0.5", "")
    assert "its own noise (run twice: relative output error 0.0300)" in report.notes[-1]
    classes = replace(AGREEMENT, top1_agreement=0.9, noise=Noise(0.03, 0.4, 0.95))
    assert "same top-1 class on 90.0 % of 64 inputs, 95.0 % where the original is run twice" in cost_text(classes)
    assert "same top-1 class on 95.0 %" in noise_note(classes)
    lost = replace(AGREEMENT, noise=Noise(None, None, None))
    assert "could not be told" in noise_note(lost)
    assert noise_note(AGREEMENT) is None


@pytest.mark.parametrize(
    ("error", "interval", "text"),
    [
        (3.21e-5, (1e-5, 0.0123), "3.2e-05 (1e-05 .. 0.0123)"),
        (0.0, (0.0, 0.0), "0.0000 (0.0000 .. 0.0000)"),
        (0.0012, (0.001, 0.002), "0.0012 (0.0010 .. 0.0020)"),
    ],
)
def test_a_small_difference_is_not_said_to_be_none(error, interval, text):
    small = replace(AGREEMENT, relative_error=error, error_interval=interval)
    assert cost_text(small) == f"relative output error {text}"
    whole = cells(optimisation_report(result(agreement=small), "t"), "Whole")
    assert whole["output difference, relative"][1] == text


def test_units_fit_the_numbers():
    layers = cells(optimisation_report(result(), "t"), "Layers")
    assert layers["conv"][1:3] == ("40 K", "20 K")
    assert layers["up"] == ("kept: transposed convolution", "960", "960", "")
    whole = cells(optimisation_report(result(), "t"), "Whole")
    assert whole["MACs"] == ("40.96 K", "20.96 K", "1.95x")
    assert whole["file"] == ("4 KB", "2 KB", "2.00x")
    assert "20.96 KMACs a sample" in headline(result(("max_macs", 30_000.0)))


def test_a_ratio_is_that_of_the_figures_beside_it():
    """Medians of 2 and 1 ms; the median of the ratios of the runs taken in turns, 4, 2 and 1, is another figure."""
    whole = cells(optimisation_report(replace(result(after=(1.0, 1.0, 2.0)), latency_speedup=2.4), "t"), "Whole")
    one, other, ratio = whole["latency, median (ms)"]
    assert float(ratio.removesuffix("x")) == pytest.approx(float(one) / float(other))
    assert whole["speed-up, median over runs taken in turns"] == ("", "", "2.40x")


def test_what_could_not_be_counted_is_not_within_a_limit():
    uncounted = result(("max_macs", 30_000.0), counted=False)
    assert result(("max_macs", 30_000.0)).reached
    assert not uncounted.reached
    assert "20.96 KMACs and what could not be counted" in headline(uncounted)
    assert uncounted.to_dict()["after"]["macs_complete"] is False
    assert "MACs, at least" in cells(optimisation_report(uncounted, "t"), "Whole")


def test_kept_nodes_are_in_the_way():
    assert re.search(
        r"In the way: conv \(95 % .*\); up \(5 % of the remaining MACs, transposed", headline(result(("max_macs", 9.0)))
    )


def test_figures_show_all_layers():
    titles = {figure.title: figure.svg for figure in optimisation_report(result(), "t").figures()}
    assert "KMACs" in titles["Arithmetic by layer"]
    assert "up: keep" in titles["Arithmetic by layer"]

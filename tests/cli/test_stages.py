"""How far the work is: seconds a stage, lines where there is no terminal."""

import subprocess
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from onnxlowrank.cli import stages as module
from onnxlowrank.cli.stages import INT8_SHARES, SHARES, Stages, stages


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_a_stage_within_another_has_its_own_time(clock):
    shown = Stages(Progress(console=Console(quiet=True), disable=True), by_line=False)
    clock(1)
    plan = shown.stage("plan", 2)
    clock(2)
    inner = shown.stage("sensitivity", 1)
    clock(4)
    inner(1)
    clock(8)
    plan(1)
    clock(16)
    shown.stage("fit", 1)
    clock(32)
    shown.count()
    assert shown.seconds == {"preparation": 1, "plan": 2 + 8 + 16, "sensitivity": 4, "fit": 32}


def test_what_is_left_goes_by_what_it_took_so_far(clock):
    progress = Progress(console=Console(quiet=True), disable=True)
    shown = Stages(progress, by_line=False, shares=SHARES)
    whole, seen = progress.tasks[0], []
    clock(1)
    for title, total in (("statistics", 4), ("candidates", 1), ("sensitivity", 2), ("plan", 1), ("sensitivity", 1)):
        advance = shown.stage(title, total)
        for _ in range(total):
            clock(5)
            advance(1)
            seen.append(whole.completed)
    assert seen == sorted(seen)
    assert seen[3] == pytest.approx(0.12)
    assert seen[-1] == seen[-2] == pytest.approx(0.78)
    assert whole.fields["left"] == f"about {46 * 0.22 / 0.78:.0f} s left"
    shown.stage("another", 0)(1)


def test_int8_alone_comes_before_the_plan(clock):
    """It is quantised, measured and compared, as the network is in the end: the bar does not run ahead."""
    progress = Progress(console=Console(quiet=True), disable=True)
    shown = Stages(progress, by_line=False, shares=INT8_SHARES)
    whole, seen = progress.tasks[0], []
    alone = "quantise", "measure", "compare"
    for title in ("statistics", "candidates", "sensitivity", "ranges", *alone, "plan", "fit", *alone):
        clock(5)
        shown.stage(title, 1)(1)
        seen.append(whole.completed)
    before = sum(INT8_SHARES[title] for title in ("preparation", "statistics", "candidates", "sensitivity", "ranges"))
    assert seen == sorted(seen)
    assert seen[3] == pytest.approx(before)
    assert seen[4:7] == [pytest.approx(before + INT8_SHARES["int8 alone"])] * 3
    assert seen[7] == pytest.approx(seen[6] + INT8_SHARES["plan"])
    assert seen[9] == pytest.approx(seen[8] + INT8_SHARES["quantise"])
    assert seen[-1] == pytest.approx(1)


@pytest.mark.parametrize("shares", [SHARES, INT8_SHARES])
def test_shares_are_of_the_whole(shares):
    assert sum(shares.values()) == pytest.approx(1, abs=0.02)


def test_lines_where_there_is_no_terminal(clock, capfd):
    with stages(verbose=False) as shown:
        clock(3)
        shown.stage("statistics", 1)(1)
        clock(70)
        shown.stage("fit", 1)
    assert capfd.readouterr().err == "     3 s  statistics\n    73 s  fit\n"


def test_the_log_ends_with_seconds(clock, caplog):
    with caplog.at_level("INFO"), stages(verbose=True) as shown:
        clock(1)
        shown.stage("statistics", 1)
        clock(3)
    assert [record.message.split() for record in caplog.records] == [
        ["statistics"],
        ["preparation", "1.0", "s", "25", "%"],
        ["statistics", "3.0", "s", "75", "%"],
        ["in", "all", "4.0", "s"],
    ]


@pytest.mark.parametrize(("verbose", "shown"), [(True, ["own", "warning"]), (False, ["warning"])])
def test_of_libraries_warnings_alone_are_logged(verbose, shown):
    code = f"""import logging; from onnxlowrank.cli.groups import start_log; start_log({verbose})
logging.info("other"); logging.getLogger("onnxlowrank.plan").info("own"); logging.warning("warning")"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in ended.stderr.splitlines()] == shown


def test_how_a_stage_stands_is_told_in_a_line_now_and_then(clock, capfd):
    shown = Stages(Progress(console=Console(quiet=True), disable=True), by_line=True)
    shown.stage("tune", 1)
    for _ in range(7):
        clock(10)
        shown.tell("held out 0.5")
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["     0 s  tune", *(f"{seconds:6} s  tune: held out 0.5" for seconds in (10, 40, 70))]

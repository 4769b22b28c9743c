from __future__ import annotations

import sys
from xml.etree import ElementTree

import pytest

from benchmarks import plot, programs
from benchmarks.contestant import OURS, Contestant, Driver, DriverError
from benchmarks.figure import FIGURES
from benchmarks.report import Report
from benchmarks.sandbox import NATIVE, measured, own

PROGRAM = "import pyperf\nif __name__ == '__main__':\n    pyperf.Runner().bench_func('sum', sum, range(10_000))\n"
OF_PEERS_ONLY = {"once_ms_p50"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("pyperformance")
    for name in programs.PROGRAMS:
        (folder / f"bm_{name}").mkdir()
        (folder / f"bm_{name}" / "run_benchmark.py").write_text(PROGRAM)
    return measured(
        own(sessions=20), rounds=2, pyperformance=folder, progress=lambda _: None, runaways=("a loop", "a power")
    )


def test_every_figure_is_measured(report: Report) -> None:
    result = report.result()
    assert {figure.name for figure in FIGURES} - OF_PEERS_ONLY <= set(result)
    assert f"{NATIVE}_exec_ms_p50" in result
    assert {program for _, program in report.slowdowns} == set(programs.PROGRAMS)


def test_the_table_shows_every_contestant_and_figure(report: Report) -> None:
    first, *rows = report.table().splitlines()
    assert first.split() == [OURS, NATIVE]
    assert [row for row in rows if row.startswith(tuple(figure.shown for figure in FIGURES))] == rows[: len(FIGURES)]


def test_the_picture_has_a_bar_for_everyone_who_can_be_compared(report: Report) -> None:
    drawn = ElementTree.fromstring(plot.svg(report)).itertext()
    assert {OURS, NATIVE, "turn in a warm session, ms"} <= set(drawn)


def test_a_driver_says_what_it_cannot_measure_and_goes_on() -> None:
    with Driver(Contestant(NATIVE, (sys.executable, "-m", "benchmarks.drivers.native"))) as driver:
        with pytest.raises(DriverError, match="KeyError"):
            driver.ask("levitate")
        assert driver.ask("exec") > 0


def test_a_driver_that_does_not_start_is_an_error() -> None:
    with pytest.raises(DriverError, match="ended by itself"):
        Driver(Contestant(NATIVE, (sys.executable, "-c", "pass")))


def test_a_picture_of_nothing_is_still_a_picture() -> None:
    assert ElementTree.fromstring(plot.svg(Report())).tag.endswith("svg")

"""The benchmark of the service, small: every figure is there, and what must be right is."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import service

FIGURES = {
    *("execute_over_echo", "executes_per_s", "executes_over_echo_rate", "idle_session_mb", "watchers_2000_ok"),
    *("answer_5mb_default_client_ok", "restart_to_serving_s"),
}


def test_every_figure_is_measured_and_the_last_line_is_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["service", "--rounds", "1", "--watchers", "20"])
    monkeypatch.setattr(service, "RATE_SECONDS", 0.2)
    service.main()
    *table, result = capsys.readouterr().out.splitlines()
    found = json.loads(result)
    assert set(found) == FIGURES
    assert (found["watchers_2000_ok"], found["answer_5mb_default_client_ok"]) == (1, 1)
    assert all(value > 0 for value in found.values())
    assert [line.split()[0] for line in table] == list(found)

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import start
from benchmarks.contestant import ROOT
from benchmarks.start import Checkout


def test_it_measures_and_the_last_line_is_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["start", "--rounds", "1"])
    start.main()
    shown = capsys.readouterr()
    *table, result = shown.out.splitlines()
    found = json.loads(result)
    assert list(found) == ["help_s", "serve_s"]
    assert all(seconds > 0 for seconds in found.values())
    assert [line.split()[0] for line in table] == list(found)
    assert "round 1 of 1" in shown.err


def test_another_checkout_is_measured_in_turns_with_this_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[Path] = []

    def seconds(checkout: Checkout) -> float:
        asked.append(checkout.root)
        return float(len(asked))

    monkeypatch.setattr(start, "MEASURES", {"serve_s": seconds})
    monkeypatch.setattr(Checkout, "run", lambda checkout, *words: None)
    monkeypatch.setattr(sys, "argv", ["start", "--rounds", "3", "--beside", str(tmp_path)])
    start.main()
    assert asked == [ROOT, tmp_path] * 4
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"serve_s": 5.0, "beside_serve_s": 6.0}


def test_a_server_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "environment", lambda: {"RLM_SESSIONS": "none"})
    with pytest.raises(RuntimeError, match="did not start"):
        start.serve_seconds(Checkout(ROOT))

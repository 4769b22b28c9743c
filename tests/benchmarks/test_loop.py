from __future__ import annotations

import json
import sys

import pytest

from benchmarks.contestant import OURS
from benchmarks.loop import __main__ as loop
from benchmarks.loop import gaps
from benchmarks.loop.endpoint import BATCH, SUBCALLS, TURNS

FIGURES = {
    *("turn_ms", "subcall_ms", "create_to_request_ms", "first_output_ms", "commits_per_turn", "tiny_100_x"),
    *("batch_200_s", "usual_batch_200_s", "faulty_tenth_answered", "count_gb_s"),
    *("durable_turn_ms", "resume_ms_p50", "parallel_children_x", "events_per_s"),
}
DIFFERENCES = {"durable_turn_ms"}
"""Of two times, which may be the same but for chance."""


def test_every_figure_is_measured_and_the_last_line_is_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["loop", "--alone", "--rounds", "1", "--calls", "40", "--megabytes", "20"])
    loop.main()
    *table, result = capsys.readouterr().out.splitlines()
    found = json.loads(result)
    assert set(found) >= FIGURES
    assert all(value > 0 for name, value in found.items() if name not in DIFFERENCES)
    assert [line.split()[0] for line in table] == list(found)


def test_the_reference_is_compared_where_it_was_measured() -> None:
    answers = {(OURS, "turn_ms"): 0.004, (loop.REFERENCE, "turn_ms"): 0.008, (OURS, "batch_200_s"): 2.0}
    assert loop.result(answers) == {
        "turn_ms": 4,
        "reference_turn_ms": 8,
        "batch_200_s": 2,
        "turn_over_reference": 0.5,
    }


def test_only_what_goes_by_between_an_answer_and_the_next_request_is_the_loops() -> None:
    turns = [(float(turn), turn + 0.75) for turn in range(TURNS + 1)]
    assert gaps.of_turns({"turns": turns}) == 0.25
    assert gaps.of_subcalls({"quick": [(2.0 * call, 2.0 * call + 1) for call in range(SUBCALLS)]}) == 2
    assert gaps.of_batch({"slow": [(float(call), call + 3.0) for call in range(BATCH)]}) == BATCH + 2
    with pytest.raises(ValueError, match=f"turns was asked {TURNS} times"):
        gaps.of_turns({"turns": turns[1:]})

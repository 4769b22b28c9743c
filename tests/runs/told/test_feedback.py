"""What a node's model is shown: its task, the state of its environment, what its code printed; never the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.ledger import Limit
from rlm_server.repl.coverage import Coverage
from rlm_server.repl.functions import FUNCTIONS
from rlm_server.runs import prompt
from rlm_server.runs.prompt import FEEDBACK_CHARACTERS, SHOWN_RANGES, Environment, cut, feedback
from sandbox.corpora.corpus import Kind, in_memory
from sandbox.corpora.coverage import Range
from sandbox.turn import Status, Stop, Turn, TurnError, Variable
from tests.runs.stage import a_turn

PLAIN = Environment(
    turn=2,
    max_turns=30,
    corpus=None,
    coverage=Coverage(),
    depth=0,
    max_depth=2,
    left=Limit(nano_usd=1_500_000_000, tokens=20_000, calls=1_000),
    calls=12,
    seconds_left=59.6,
)


def test_the_system_prompt_is_this_one() -> None:
    assert prompt.system(FUNCTIONS) == (Path(__file__).parent / "system_prompt.txt").read_text()


def test_the_task_is_the_question_and_the_state_of_the_environment() -> None:
    assert prompt.task("Which\nof them?", PLAIN) == f"Question:\nWhich\nof them?\n\nEnvironment:\n{PLAIN.describe()}"


# ---- the environment -------------------------------------------------------------------------------------------------


def test_the_environment_is_said_in_three_lines() -> None:
    assert PLAIN.describe() == (
        "Turn 2 of 30. `context` is empty.\n"
        "Left: $1.50, 20,000 tokens, 1,000 calls, 60 s. Model calls made by your code: 12.\n"
        "Depth 0 of 2."
    )


def test_what_has_no_limit_is_not_said_to_be_left() -> None:
    assert "Left: 60 s." in replace(PLAIN, left=Limit()).describe()
    assert "Left: $0.00, 60 s." in replace(PLAIN, left=Limit(nano_usd=0)).describe()


def test_at_the_depth_cap_it_is_said_what_rlm_query_does() -> None:
    assert replace(PLAIN, depth=2).describe().endswith("\nDepth 2 of 2: rlm_query is answered by llm_query here.")


def context_line(texts: Sequence[str], kind: Kind, coverage: Coverage) -> str:
    with in_memory(texts, kind) as corpus:
        described = replace(PLAIN, corpus=corpus, coverage=coverage).describe()
    return described.splitlines()[0].removeprefix("Turn 2 of 30. ")


def test_of_a_text_its_size_is_said_and_where_it_was_looked_at() -> None:
    text = "secret " * 1000
    assert context_line([text], Kind.TEXT, Coverage()) == "`context` has 7,000 characters. Looked at so far: 0.0%."
    seen = Coverage(0.5, 1, (Range(0, 0, 2_500), Range(0, 6_000, 7_000)))
    assert context_line([text], Kind.TEXT, seen) == (
        "`context` has 7,000 characters. Looked at so far: 50.0% (characters 0-2,500, 6,000-7,000)."
    )


def test_of_documents_their_number_is_said_and_in_how_many_was_looked() -> None:
    assert context_line(["one", "three"], Kind.DOCUMENTS, Coverage(0.375, 1, (Range(0, 0, 3),))) == (
        "`context` is a sequence of 2 documents with 8 characters. Looked at so far: 37.5%, in 1 documents."
    )


def test_of_many_ranges_the_first_are_shown() -> None:
    ranges = tuple(Range(0, 10 * start, 10 * start + 5) for start in range(SHOWN_RANGES + 1))
    shown = context_line(["x" * 1000], Kind.TEXT, Coverage(0.5, 1, ranges))
    assert shown.endswith("70-75, ...).")
    assert shown.count("-") == SHOWN_RANGES


# ---- the feedback ----------------------------------------------------------------------------------------------------


def test_the_feedback_of_one_block_is_what_it_printed_its_variables_and_the_environment() -> None:
    variables = (Variable("words", "list", 3), Variable("total", "int", -1))
    assert feedback([a_turn("3\n", variables=variables)], 1, PLAIN) == (
        "Your code ran in 0.25 s and printed 2 bytes:\n3\n\n\n"
        "Variables: words: list[3], total: int\n\n"
        f"Environment:\n{PLAIN.describe()}"
    )


def test_of_several_blocks_each_has_its_number_and_those_that_did_not_run_are_counted() -> None:
    failed = a_turn("before\n", error=TurnError("ValueError", "no", "Traceback …\nValueError: no"))
    told = feedback([a_turn("1"), failed], 4, PLAIN)
    assert told.startswith("Block 1 of 4 ran in 0.25 s and printed 1 bytes:\n1\n\n")
    assert "Block 2 of 4 raised an exception; what it had set before is kept:\nbefore\n\nTraceback …" in told
    assert "\n\nThe 2 blocks after it did not run.\n\n" in told


def test_what_was_undone_is_said_to_be() -> None:
    stopped = a_turn(error=TurnError(Stop.TURN_TIME, "a turn may run for 60 s"), status=Status.ROLLED_BACK)
    told = feedback([stopped], 1, PLAIN)
    assert "was stopped and undone: all variables are as they were before it" in told
    assert "TURN_TIME: a turn may run for 60 s" in told


def test_what_was_printed_to_both_streams_is_shown() -> None:
    assert "\nout\nerr\n" in feedback([a_turn("out", "err")], 1, PLAIN)


def test_where_no_code_ran_there_is_the_environment_alone() -> None:
    assert feedback([], 0, PLAIN) == f"Variables: none\n\nEnvironment:\n{PLAIN.describe()}"


def test_of_many_variables_the_newest_are_named() -> None:
    variables = tuple(Variable(f"name_{number}", "int", -1) for number in range(200))
    told = feedback([a_turn(variables=variables)], 1, PLAIN)
    assert "name_199: int" in told
    assert told.count("name_") == 40


@pytest.mark.parametrize("turn", [a_turn("x" * 1_000_000), a_turn(error=TurnError("E", "x" * 1_000_000))])
def test_the_feedback_stays_small_whatever_a_block_prints_or_raises(turn: Turn) -> None:
    assert len(feedback([turn], 1, PLAIN)) < FEEDBACK_CHARACTERS + 1_000


@given(st.text(max_size=60), st.integers(2, 40))
def test_what_is_cut_keeps_both_ends_and_says_how_much_is_missing(text: str, most: int) -> None:
    shown = cut(text, most)
    if len(text) <= most:
        assert shown == text
        return
    half = most // 2
    start, end = text[:half], text[-half:]
    assert shown == f"{start}\n[... {len(text) - 2 * half} characters cut out ...]\n{end}"

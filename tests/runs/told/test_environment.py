"""The state of a node's environment as its model is told it: true numbers, each with its unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from rlm_server.ledger import Limit
from rlm_server.repl.coverage import Coverage
from rlm_server.runs.told.environment import SHOWN_RANGES, Environment, Sent
from rlm_server.runs.told.quantities import dollars, percent
from rlm_server.runs.told.task import task
from sandbox.corpora.corpus import Kind, in_memory
from sandbox.corpora.coverage import Range

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

NOTHING_SENT = Sent()


def test_the_task_is_the_question_and_the_state_of_the_environment() -> None:
    assert task("Which\nof them?", PLAIN) == f"Question:\nWhich\nof them?\n\nEnvironment:\n{PLAIN.describe()}"


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


def context_line(
    texts: Sequence[str], kind: Kind, coverage: Coverage, shown: int = 0, sent: Sent = NOTHING_SENT
) -> str:
    with in_memory(texts, kind) as corpus:
        described = replace(PLAIN, corpus=corpus, coverage=coverage, shown=shown, sent=sent).describe()
    return described.splitlines()[0].removeprefix("Turn 2 of 30. ")


def test_of_a_text_three_numbers_are_said_what_code_touched_what_was_shown_and_what_was_sent() -> None:
    text = "secret " * 1000
    assert context_line([text], Kind.TEXT, Coverage()) == (
        "`context` has 7,000 characters. Your code has touched 0% of it; you were shown 0 characters of what it "
        "printed; sub-models were sent 0% of it."
    )
    seen = Coverage(0.5, 1, (Range(0, 0, 2_500), Range(0, 6_000, 7_000)))
    assert context_line([text], Kind.TEXT, seen, 5_000, Sent(0.4)) == (
        "`context` has 7,000 characters. Your code has touched 50% of it (characters 0-2,500, 6,000-7,000); you were "
        "shown 5,000 characters of what it printed; sub-models were sent 40% of it."
    )


def test_what_was_sent_is_a_least_while_some_calls_are_not_traced_and_left_out_where_it_is_not_known() -> None:
    assert "were sent at least 40% of it." in context_line(["x"], Kind.TEXT, Coverage(), sent=Sent(0.4, more=True))
    assert context_line(["x"], Kind.TEXT, Coverage(), sent=Sent(None)).endswith("of what it printed.")


def test_of_documents_their_number_is_said_and_in_how_many_was_looked() -> None:
    assert context_line(["one", "three"], Kind.DOCUMENTS, Coverage(0.375, 1, (Range(0, 0, 3),))).startswith(
        "`context` is a sequence of 2 documents with 8 characters. Your code has touched 37.5% of it, in 1 document; "
    )


def test_of_many_ranges_the_first_are_shown() -> None:
    ranges = tuple(Range(0, 10 * start, 10 * start + 5) for start in range(SHOWN_RANGES + 1))
    shown = context_line(["x" * 1000], Kind.TEXT, Coverage(0.5, 1, ranges))
    assert "70-75, ...)" in shown
    assert shown.count("-") == SHOWN_RANGES + 1  # and one of "sub-models"


@pytest.mark.parametrize(
    ("nano", "said"),
    [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (123_456_789, "$0.123"),
        (23_456_789, "$0.0234"),
        (999_999_999, "$0.999"),
        (500_000_000, "$0.50"),
        (1_999_999_999, "$1.99"),
        (12_345_670_000_000, "$12,345.67"),
    ],
)
def test_money_is_said_to_the_cent_or_to_three_digits_and_never_to_be_more_than_it_is(nano: int, said: str) -> None:
    assert dollars(nano) == said


@pytest.mark.parametrize(
    ("fraction", "said"),
    [(0, "0%"), (0.0001, "under 0.1%"), (0.375, "37.5%"), (0.9999, "99.9%"), (0.99949, "99.9%"), (1, "100%")],
)
def test_none_and_all_are_said_of_nothing_else(fraction: float, said: str) -> None:
    assert percent(fraction) == said

"""A text of an event has its bound, whatever is in it, and an event says of one that was longer how long it was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlm_server.repl.bounds import MAX_EVENT_TEXT
from rlm_server.repl.events import CodeFinished
from rlm_server.runs.cuts import CutText, beginning_of, cut, pieces, size_of
from rlm_server.runs.events import CodeStarted, RunFinished, from_json, read, written
from rlm_server.runs.state import RunState
from sandbox.turn import TurnError, Variable
from tests.runs.stage import ROOT, a_turn, an_event

texts = st.text(st.sampled_from("a\xe9\u4e2d\U0001f600"), max_size=40)


@given(texts, st.integers(0, 170))
def test_the_beginning_of_a_text_is_as_long_as_it_may_be_in_whole_characters(text: str, most: int) -> None:
    beginning = beginning_of(text, most)
    assert text.startswith(beginning)
    assert size_of(beginning) <= most
    if beginning != text:
        assert size_of(text[: len(beginning) + 1]) > most


def test_a_long_text_in_pieces_is_the_text() -> None:
    text = "a" + "\U0001f600" * MAX_EVENT_TEXT
    found = list(pieces(text))
    assert "".join(found) == text
    assert all(0 < size_of(piece) <= MAX_EVENT_TEXT for piece in found)
    assert list(pieces("")) == [""]


def test_what_is_short_is_the_same() -> None:
    body = CodeStarted("x" * MAX_EVENT_TEXT, 1)
    assert cut(body) == (body, ())
    assert cut(body)[0] is body


def test_every_text_of_a_body_is_cut_and_named_by_its_path() -> None:
    long = "\xe9" * MAX_EVENT_TEXT
    body = CodeFinished(a_turn(error=TurnError("E", long, long + "x")))
    after, cuts = cut(body)
    error = after.result.error
    assert error is not None
    assert (size_of(error.message), size_of(error.traceback)) == (MAX_EVENT_TEXT, MAX_EVENT_TEXT)
    assert cuts == (
        CutText("result.error.message", 2 * MAX_EVENT_TEXT),
        CutText("result.error.traceback", 2 * MAX_EVENT_TEXT + 1),
    )


def test_names_of_variables_are_bounded_together() -> None:
    variables = tuple(Variable("\U0001f600" * 200, "\U0001f600" * 200, number) for number in range(200))
    after, cuts = cut(CodeFinished(a_turn(variables=variables)))
    kept = after.result.variables
    assert kept == variables[: len(kept)]
    assert len(kept) == MAX_EVENT_TEXT // 1_600
    assert cuts == (CutText("result.variables", 200 * 1_600),)


def test_an_event_is_read_as_it_was_written_with_what_was_cut() -> None:
    row = written(an_event(1, CodeStarted("x" * (MAX_EVENT_TEXT + 1), 1)))
    assert row.event.cut == (CutText("code", MAX_EVENT_TEXT + 1),)
    assert read(1, 10, ROOT, row.body, row.cut) == row.event
    assert row.size >= len(row.body)
    assert from_json(row.body) == row.event.body


def test_what_an_older_server_kept_whole_is_cut_when_it_is_read() -> None:
    answer = "x" * (10 * MAX_EVENT_TEXT)
    body = f'{{"state":"succeeded","reason":"","spent":{{}},"answer":"{answer}","kind":"run_finished"}}'
    event = read(1, 10, ROOT, body, "")
    assert isinstance(event.body, RunFinished)
    assert (event.body.state, len(event.body.answer)) == (RunState.SUCCEEDED, MAX_EVENT_TEXT)
    assert event.cut == (CutText("answer", 10 * MAX_EVENT_TEXT),)

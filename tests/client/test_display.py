"""What is drawn of a run, from its events alone."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from rlm.v1 import run_pb2, session_pb2, types_pb2
from rlm_client.display import CODE_LINES, Display, console_for
from rlm_client.excerpt import HEAD_LINES, TAIL_LINES, Excerpt
from rlm_client.sanitize import sanitize, sanitize_line

from tests.client.story import CENT, OK, Story, money, printed, small_run

HOSTILE = "\x1b[2J\x1b]0;title\x07\r\x9b1A\u202eforged\u2028line\x00\x08\x7f"

_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def drawn(story: Story) -> str:
    """Draw a story to something that is not a terminal."""
    stream = io.StringIO()
    with Display(console_for(stream)) as display:
        for event in story.events:
            display.show(event)
    return stream.getvalue()


def drawn_on_a_terminal(story: Story, width: int = 100) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, highlight=False, markup=False)
    with Display(console) as display:
        for event in story.events:
            display.show(event)
    return stream.getvalue()


def test_a_run_reads_as_a_story() -> None:
    assert drawn(small_run()).splitlines() == [
        "model big · sub-model small · context of 1,234,567 characters",
        "─ turn 1 of 20",
        "big replied · $0.0200 · 1,000 tokens",
        "code 1",
        "  ▏ for part in parts:",
        "  ▏     llm_query(part)",
        "├─ child 1 · 500 characters: And here?",
        "│  ─ child 1 · turn 1 of 20",
        "│  small replied · $0.0200 · 200 tokens",
        "└─ child 1 succeeded · $0.0200 · 200 tokens",
        "─ turn 1, going on",
        "! budget: 80 % of the money is spent ($0.40 of $0.50)",
        "! guard repeated: the same code again",
        "llm_query ×2 · 2 done · $0.0200",  # noqa: RUF001
        "answer of 2 characters",
        "succeeded · $0.0600 of $0.50 · 1,400 tokens · 4 calls · depth 1 · 17.0 s",
    ]


def test_without_a_terminal_there_are_no_control_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not _CONTROLS.search(drawn(small_run()))


def test_a_terminal_shows_calls_and_cost_while_they_happen() -> None:
    shown = drawn_on_a_terminal(
        Story()
        .tell(turn=0, run_started=run_pb2.RunStarted(model="m", budget=types_pb2.Budget(nano_usd=50 * CENT)))
        .tell(call_started=run_pb2.CallStarted(call_id="a"))
        .tell(call_started=run_pb2.CallStarted(call_id="b"))
        .tell(call_finished=run_pb2.CallFinished(call=session_pb2.ModelCallFinished(call_id="a", spent=money(1, 5, 1))))
    )
    assert "turn 1: llm_query ×2 · 1 done · $0.0100" in shown  # noqa: RUF001
    assert "$0.0100 of $0.50 · 5 tokens · 1 calls" in shown


def test_calls_from_the_memo_and_failed_calls_are_told_apart() -> None:
    story = Story().tell(turn_started=run_pb2.TurnStarted())
    for call in (
        session_pb2.ModelCallFinished(call_id="a", spent=money(1, 1, 1)),
        session_pb2.ModelCallFinished(call_id="b", memo=True),
        session_pb2.ModelCallFinished(call_id="c", error="refused"),
    ):
        story.tell(call_started=run_pb2.CallStarted(call_id=call.call_id))
        story.tell(call_finished=run_pb2.CallFinished(call=call))
    story.tell(turn_checkpointed=run_pb2.TurnCheckpointed())
    assert "llm_query ×3 · 3 done · 1 from memo · 1 failed · $0.0100" in drawn(story)  # noqa: RUF001


def test_a_cost_too_small_to_show_is_not_shown_as_nothing() -> None:
    tiny = run_pb2.ModelReplied(model="m", spent=types_pb2.Amounts(nano_usd=20))
    assert "m replied · <$0.0001" in drawn(Story().tell(model_replied=tiny))


def test_children_that_run_at_once_are_told_apart() -> None:
    story = Story().tell(turn_started=run_pb2.TurnStarted())
    for child in ("a", "b"):
        story.tell(child_started=run_pb2.ChildStarted(child_id=child))
    for child, said in (("a", "from a\n"), ("b", "from b\n"), ("a", "again a\n")):
        story.tell(child, "root", 1, 1, output=session_pb2.Output(text=said))
    story.tell("a", "root", 1, 1, child_started=run_pb2.ChildStarted(child_id="a1"))
    lines = drawn(story).splitlines()[3:]
    assert lines == [
        "│  ─ child 1 · turn 1, going on",
        "│    ┃ from a",
        "│  ─ child 2 · turn 1, going on",
        "│    ┃ from b",
        "│  ─ child 1 · turn 1, going on",
        "│    ┃ again a",
        "│  ├─ child 1.1 · 0 characters",
    ]


def test_a_scripted_model_is_named_for_what_it_is() -> None:
    told = "scripted model (test instrument; prices simulated)"
    for started in (run_pb2.RunStarted(model="scripted-a"), run_pb2.RunStarted(model="m", sub_model="scripted")):
        assert told in drawn(Story().tell(run_started=started))
    assert told not in drawn(small_run())


def test_long_code_is_shortened() -> None:
    code = "\n".join(f"line_{number} = {number}" for number in range(100))
    shown = drawn(Story().tell(code_started=run_pb2.CodeStarted(code=code, block=1)))
    assert f"line_{CODE_LINES - 1} = " in shown
    assert f"line_{CODE_LINES} = " not in shown
    assert f"… {100 - CODE_LINES} more lines" in shown


def test_long_output_shows_its_first_and_last_lines() -> None:
    shown = drawn(printed("".join(f"line {number}\n" for number in range(1000))))
    assert f"┃ line {HEAD_LINES - 1}\n" in shown
    assert f"┃ … {1000 - HEAD_LINES - TAIL_LINES} lines not shown …\n" in shown
    assert f"┃ line {HEAD_LINES}\n" not in shown
    assert shown.endswith("  ┃ line 999\n")


def test_output_is_the_same_however_it_was_cut_into_pieces() -> None:
    text = "one\r\ntwo\n\nthree"
    whole, pieces = Excerpt(), Excerpt()
    by_character = [line for character in text for line in pieces.feed(1, character)] + pieces.finish()
    assert whole.feed(1, text) + whole.finish() == by_character == [(1, "one"), (1, "two"), (1, ""), (1, "three")]


def test_an_endless_line_is_cut() -> None:
    excerpt = Excerpt()
    for _ in range(100):
        assert excerpt.feed(1, "x" * 10_000) == []
    ((_, line),) = excerpt.finish()
    assert line.endswith("x…")
    assert len(line) < 1000


def test_output_of_a_turn_that_began_again_is_not_mixed_with_what_comes_after() -> None:
    story = (
        Story()
        .tell(turn=0, run_started=run_pb2.RunStarted(model="m"))
        .tell(turn_started=run_pb2.TurnStarted(max_turn_count=5))
        .tell(code_started=run_pb2.CodeStarted(code="print(x)", block=1))
        .tell(output=session_pb2.Output(text="".join(f"{n}\n" for n in range(40)) + "cut sh"))
        .tell(turn_restarted=session_pb2.TurnRestarted(reason="the process died"))
        .tell(output=session_pb2.Output(text="anew\n"))
        .tell(code_finished=run_pb2.CodeFinished(result=OK))
    )
    lines = drawn(story).splitlines()
    began = next(number for number, line in enumerate(lines) if "began again" in line)
    assert "the process died" in lines[began]
    assert [line.strip() for line in lines[began + 1 :]] == ["┃ anew"]


def test_an_error_in_the_code_is_named() -> None:
    error = session_pb2.TurnError(type="ValueError", message="bad\nvalue")
    failed = session_pb2.TurnResult(status=session_pb2.TURN_STATUS_ERROR, error=error)
    undone = session_pb2.TurnResult(
        status=session_pb2.TURN_STATUS_ROLLED_BACK, error=session_pb2.TurnError(type="MEMORY", message="64 MiB")
    )
    for result, told in ((failed, r"✗ ValueError: bad\nvalue"), (undone, "✗ rolled back: MEMORY: 64 MiB")):
        assert told in drawn(Story().tell(code_finished=run_pb2.CodeFinished(result=result)))


def test_the_reason_a_run_ended_is_shown_in_full() -> None:
    reason = "the budget of the run is used up; " * 10
    finished = run_pb2.RunFinished(state=run_pb2.RUN_STATE_EXHAUSTED, end_message=reason)
    shown = drawn(Story().tell(turn=0, run_finished=finished))
    assert shown.startswith("exhausted · ")
    assert " ".join(shown.split()).count("is used up;") == 10


def test_a_watch_from_the_middle_does_not_claim_the_whole_cost() -> None:
    replied = run_pb2.ModelReplied(model="m", spent=money(1))
    assert "since event 7" in drawn_on_a_terminal(Story(first=7).tell(model_replied=replied))


def test_a_kind_of_event_from_a_newer_server_is_passed_over() -> None:
    assert drawn(Story().tell()) == ""


HOSTILE_STORIES = {
    "output": printed(HOSTILE),
    "error output": printed(HOSTILE, session_pb2.OUTPUT_STREAM_STDERR),
    "code": Story().tell(code_started=run_pb2.CodeStarted(code=f"'{HOSTILE}'\n# {HOSTILE}")),
    "model": Story().tell(model_replied=run_pb2.ModelReplied(model=HOSTILE)),
    "models": Story().tell(run_started=run_pb2.RunStarted(model=HOSTILE, sub_model=HOSTILE)),
    "question": Story().tell(child_started=run_pb2.ChildStarted(child_id="a", question=HOSTILE)),
    "child": Story().tell(child_finished=run_pb2.ChildFinished(child_id=HOSTILE, end_message=HOSTILE)),
    "node": Story().tell(HOSTILE, "root", 1, 1, turn_started=run_pb2.TurnStarted()),
    "guard": Story().tell(guard=run_pb2.Guard(detail=HOSTILE)),
    "error": Story().tell(
        code_finished=run_pb2.CodeFinished(
            result=session_pb2.TurnResult(
                status=session_pb2.TURN_STATUS_ERROR, error=session_pb2.TurnError(type=HOSTILE, message=HOSTILE)
            )
        )
    ),
    "reason": Story().tell(turn=0, run_finished=run_pb2.RunFinished(end_message=HOSTILE)),
}


@pytest.mark.parametrize("where", HOSTILE_STORIES)
def test_no_text_of_a_guest_or_a_model_commands_the_terminal(where: str) -> None:
    shown = drawn(HOSTILE_STORIES[where])
    assert not _CONTROLS.search(shown)
    assert r"\x1b[2J" in shown
    on_terminal = drawn_on_a_terminal(HOSTILE_STORIES[where])
    assert "\x1b[2J\x1b]" not in on_terminal
    assert "\x07" not in on_terminal
    assert "\u202e" not in on_terminal


@pytest.mark.parametrize("forged", ["\nsucceeded · $0.00", "\r\nsucceeded", " " * 96 + "succeeded · $0.00"])
def test_no_output_stands_at_the_start_of_a_line(forged: str) -> None:
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn_on_a_terminal(printed(forged)))
    assert not re.search(r"^\s*succeeded", shown, re.MULTILINE)


def test_markup_is_text() -> None:
    assert "┃ [bold red]not markup[/] :smile:" in drawn(printed("[bold red]not markup[/] :smile:"))


def test_ordinary_text_is_shown_as_it_is() -> None:
    for text in ("héllo wörld", "日本語", "עברית", "👩‍👩‍👧", "C:\\new"):
        assert sanitize_line(text) == sanitize(text) == text
    assert sanitize("a\tb\r\nc\n") == "a    b\nc\n"
    assert sanitize_line("a\nb") == r"a\nb"


def test_a_turn_without_calls_has_no_line_for_them() -> None:
    story = Story().tell(turn_started=run_pb2.TurnStarted()).tell(code_finished=run_pb2.CodeFinished(result=OK))
    assert "llm_query" not in drawn(story.tell(turn_checkpointed=run_pb2.TurnCheckpointed()))


def test_what_is_redacted_is_told_by_its_size() -> None:
    def cut(field: str, size: int) -> types_pb2.CutText:
        return types_pb2.CutText(field=field, size_bytes=size, redacted=True, digest="0" * 64)

    error = session_pb2.TurnResult(
        status=session_pb2.TURN_STATUS_ERROR, error=session_pb2.TurnError(type="ValueError"), output_bytes=7
    )
    child = run_pb2.ChildStarted(child_id="c", context_character_count=5)
    story = (
        Story()
        .tell(turn=0, run_started=run_pb2.RunStarted(model="m"), cut=[cut("question", 9)])
        .tell(turn_started=run_pb2.TurnStarted(max_turn_count=5))
        .tell(code_started=run_pb2.CodeStarted(block=1), cut=[cut("code", 1_234)])
        .tell(output=session_pb2.Output(stream=session_pb2.OUTPUT_STREAM_STDOUT), cut=[cut("text", 7)])
        .tell(child_started=child, cut=[cut("question", 3)])
        .tell(
            code_finished=run_pb2.CodeFinished(result=error),
            cut=[cut("result.error.message", 5), cut("result.error.traceback", 40)],
        )
        .tell(guard=run_pb2.Guard(kind=run_pb2.GUARD_KIND_NO_ANSWER), cut=[cut("detail", 20)])
        .tell(answer=run_pb2.Answer(), cut=[cut("text", 42)])
    )
    assert drawn(story).splitlines() == [
        "model m · context of 0 characters",
        "  redacted: question of 9 bytes",
        "─ turn 1 of 5",
        "code 1",
        "  redacted: code of 1,234 bytes",
        "├─ child 1 · 5 characters",
        "  redacted: question of 3 bytes",
        "─ turn 1, going on",
        "  ✗ ValueError",
        "  redacted: result.error.message of 5 bytes, result.error.traceback of 40 bytes",
        "! guard no_answer",
        "  redacted: detail of 20 bytes",
        "answer of 42 bytes",
    ]

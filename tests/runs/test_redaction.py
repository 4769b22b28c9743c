"""No event of a redacted run has contents, and each says of what size they were, and what stands for them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from enum import StrEnum
from types import UnionType
from typing import Any, Union, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.broker.provider import Failure, Message
from rlm_server.ledger import Amounts
from rlm_server.repl.bounds import MAX_EVENT_TEXT
from rlm_server.repl.events import CallFinished, CodeFinished, FinishedCall, Printed
from rlm_server.runs.cuts import CutText, size_of, with_texts
from rlm_server.runs.event_log import EventLog
from rlm_server.runs.events import Body, ChildFinished, CodeStarted, Guard, RunFinished, read, written
from rlm_server.runs.journal import Journal
from rlm_server.runs.redaction import NO_CONTENTS, UNREDACTED, Redaction, RunRedaction, rules
from rlm_server.runs.state import EndReason, RunState, own_words
from rlm_server.runs.tree import Outcome, kept_form
from sandbox.turn import Status, Stop, TurnError, Variable
from tests.runs.stage import AMPLE, END, ROOT, a_node, a_run, a_turn, an_event, asked
from tests.runs.test_journal import BODIES

SECRET = "marzipan"
BODY_KINDS: tuple[type, ...] = typing.get_args(Body)

CONTENTS = {
    "RunStarted.question",
    "ModelReplied.text",
    "CodeStarted.code",
    "Printed.text",
    "TurnRestarted.reason",
    "ChildStarted.question",
    "Turn.stdout",
    "Turn.stderr",
    "TurnError.message",
    "TurnError.traceback",
    "Variable.name",
    "Variable.type",
    "ToolCallRequested.arguments_json",
    "ToolCallAnswered.result_json",
    "ModelCallRequested.system",
    "Message.content",
    "ToolCallAnswered.error",
    "Guard.detail",
    "Answer.text",
    "RunFinished.answer",
    "Outcome.answer",
}
"""Every text of an event, and of what is kept of a node, that is contents."""


def redaction(run: str = "run", tenant: str = "acme", secret: bytes = b"secret") -> RunRedaction:
    return Redaction(lambda _: True, secret).of(tenant, run)


# ---- what contents are -------------------------------------------------------------------------------------------


def texts_of(kind: Any, where: str = "") -> Iterator[str]:
    """Name every text that a type may hold but those of a few words, by class and field."""
    if kind is str:
        yield where
    elif isinstance(kind, type) and (issubclass(kind, StrEnum) or kind in (int, float, bool, type(None))):
        return
    elif is_dataclass(kind):
        for name, hint in typing.get_type_hints(kind).items():
            yield from texts_of(hint, f"{cast('type', kind).__name__}.{name}")
    elif typing.get_origin(kind) in (Union, UnionType):
        for part in typing.get_args(kind):
            yield from texts_of(part, where)
    elif typing.get_origin(kind) is tuple:
        item, _ = typing.get_args(kind)
        assert is_dataclass(item), f"{where}: neither cutting nor redaction looks into a list of {item}"
        yield from texts_of(item, where)
    else:
        assert typing.get_origin(kind) is typing.Literal, f"{where}: neither cutting nor redaction looks into {kind}"


def test_every_text_of_an_event_is_contents_or_is_named_as_none() -> None:
    there_are = {text for kind in (*BODY_KINDS, Outcome) for text in texts_of(kind)}
    assert there_are - NO_CONTENTS.keys() == CONTENTS, "say of each new text whether it is contents"
    assert NO_CONTENTS.keys() <= there_are, "these texts are no more"


# ---- what becomes of them ----------------------------------------------------------------------------------------


@dataclass
class Secrets:
    """Puts a secret into every text that is contents, or may have words of others."""

    put: list[str] = field(default_factory=list)

    def text(self, owner: type, name: str, text: str, path: str, /) -> str:
        if type(text) is not str or rules(owner).get(name, own_words)(SECRET) == SECRET:
            return text
        self.put.append(path)
        return SECRET

    def items(self, items: tuple[Any, ...], _names: Sequence[str], path: str, /) -> tuple[Any, ...]:
        self.put.append(path)
        return tuple(
            replace(item, content=SECRET) if isinstance(item, Message) else type(item)(SECRET, SECRET, 3)
            for item in items
        )


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.kind)
def test_nothing_of_the_contents_of_any_event_is_kept_or_told(body: Body) -> None:
    secrets = Secrets()
    row = written(an_event(1, with_texts(body, secrets)), redaction())
    assert SECRET not in row.body + row.cut + repr(row.event)
    assert {one.field for one in row.event.cut} == set(secrets.put)
    assert all(one.size_bytes >= len(SECRET) and len(one.digest) == 64 for one in row.event.cut)
    assert read(1, 10, ROOT, row.body, row.cut) == row.event


def test_what_is_no_contents_stays() -> None:
    spent = Amounts(1, 2, 3, 4)
    call = CallFinished(FinishedCall("call_1", "model", spent), 20)
    assert written(an_event(1, call), redaction()).event.body == call
    error = TurnError("ZeroDivisionError", "division", "Traceback")
    turn = a_turn(error=error, output_bytes=7, variables=(Variable("x", "list", 3),))
    left = written(an_event(1, CodeFinished(turn)), redaction()).event.body
    assert left == CodeFinished(
        a_turn(error=TurnError("ZeroDivisionError", ""), output_bytes=7, variables=(Variable("", "", 3),))
    )


def test_what_stopped_a_turn_stays() -> None:
    for stop in Stop:
        turn = a_turn(error=TurnError(stop, "60 s"))
        body: Any = redaction().redacted(CodeFinished(turn))[0]
        assert body.result.error == TurnError(stop, "")


@pytest.mark.parametrize("type_name", ["a secret", "", "x" * 101, "Märzipan", "A\nB"])
def test_an_exceptions_type_that_is_no_types_name_is_contents(type_name: str) -> None:
    body: Any = redaction().redacted(CodeFinished(a_turn(error=TurnError(type_name, ""))))[0]
    assert body.result.error.type == ""
    body = redaction().redacted(CodeFinished(a_turn(error=TurnError("pkg.Own_Error2", ""))))[0]
    assert body.result.error.type == "pkg.Own_Error2"


def test_a_long_text_is_redacted_as_a_whole_and_not_cut_besides() -> None:
    row = written(an_event(1, CodeStarted("x" * (MAX_EVENT_TEXT + 1), 1)), redaction())
    assert [(one.field, one.size_bytes) for one in row.event.cut] == [("code", MAX_EVENT_TEXT + 1)]
    assert row.size < 1_000


def test_an_empty_text_is_not_told_as_redacted() -> None:
    assert redaction().redacted(CodeStarted("", 1)) == (CodeStarted("", 1), ())
    assert redaction().text("question", "") == ("", ())


def test_without_the_policy_nothing_is_redacted() -> None:
    for body in BODIES:
        assert UNREDACTED.redacted(body) == (body, ())
    assert Redaction(lambda tenant: tenant == "other", b"").of("acme", "run").text("question", "Why?") == ("Why?", ())


# ---- reasons and errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "left"),
    [
        ("", ""),
        ("cancelled", "cancelled"),
        ("max_turns: no answer after 3 turns", "max_turns: no answer after 3 turns"),
        ("budget.nano_usd: 5 of 4 are used", "budget.nano_usd: 5 of 4 are used"),
        ("no progress: the same code", "no progress: the same code"),
        ("the server stopped during the run", "the server stopped during the run"),
        ("the model m:8b did not answer: refused: marzipan: x", "the model m:8b did not answer: refused"),
        ("marzipan", "failed"),
        ("failed: marzipan", "failed"),
    ],
)
def test_a_reason_keeps_the_words_that_are_surely_the_servers(reason: str, left: str) -> None:
    assert own_words(reason) == left
    for body in (
        RunFinished(RunState.FAILED, reason, Amounts(), ""),
        ChildFinished("node_1", RunState.FAILED, reason, Amounts()),
    ):
        after, cuts = redaction().redacted(body)
        assert after.reason == left
        assert [one.field for one in cuts] == (["reason"] if left != reason else [])


@given(st.sampled_from(EndReason), st.text(max_size=30), st.sampled_from([RunState.FAILED, RunState.EXHAUSTED]))
def test_what_ended_a_run_is_the_same_with_and_without_redaction(end: EndReason, more: str, state: RunState) -> None:
    for reason in (f"{end}{more}", f"{end}: {more}", more):
        assert EndReason.of(state, own_words(reason)) == EndReason.of(state, reason)


@pytest.mark.parametrize(
    ("error", "left"),
    [
        ("", ""),
        ("cancelled", "cancelled"),
        ("marzipan", "failed"),
        *((f"{one}: marzipan", str(one)) for one in Failure),
    ],
)
def test_an_error_of_a_call_is_never_empty_and_keeps_the_kind_of_failure(error: str, left: str) -> None:
    call = FinishedCall("call_1", "model", Amounts(), error=error)
    assert redaction().redacted(CallFinished(call, 0))[0].call.error == left


# ---- what stands for them ----------------------------------------------------------------------------------------


def digest(of: RunRedaction, text: str) -> str:
    _, (one,) = of.text("question", text)
    return one.digest


def test_equal_texts_of_a_run_have_equal_digests_and_those_of_two_runs_or_tenants_or_servers_have_not() -> None:
    others = [redaction(), redaction("other"), redaction(tenant="other"), redaction(secret=b"other")]
    assert len({digest(one, "yes") for one in others}) == 4
    assert digest(redaction(), "yes") == digest(redaction(), "yes")
    assert digest(redaction(), "yes") != digest(redaction(), "no")


def test_a_digest_is_keyed_so_that_no_short_text_can_be_guessed_by_it() -> None:
    assert digest(redaction(), "yes") != hashlib.sha256(b"yes").hexdigest()
    key = hmac.digest(b"secret", b"redaction\0run\0acme\0run", "sha256")
    assert digest(redaction(), "yes") == hmac.digest(key, b"yes", "sha256").hex()


def test_names_of_variables_have_one_digest_together() -> None:
    variables = (Variable("a", "int", -1), Variable("b", "list", 2))
    _, (one,) = redaction().redacted(CodeFinished(a_turn(variables=variables)))
    key = hmac.digest(b"secret", b"redaction\0run\0acme\0run", "sha256")
    assert one == CutText("result.variables", 9, hmac.digest(key, b"a\0int\0b\0list", "sha256").hex())


def test_half_of_a_pair_of_surrogates_is_redacted_too() -> None:
    _, (one,) = redaction().text("question", "\ud800")
    assert one.size_bytes == 1


# ---- when --------------------------------------------------------------------------------------------------------


async def test_the_policy_holds_at_once_for_the_next_event(journal: Journal) -> None:
    await journal.create(a_run(), "What?")
    on = set[str]()
    log = EventLog(journal, "run", AMPLE, redaction=Redaction(on.__contains__, b"secret").of("acme", "run"))
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(log.serve())
        log.emit(ROOT, Printed("stdout", "before"))
        on.add("acme")
        log.emit(ROOT, Printed("stdout", "during"))
        log.emit(ROOT, Guard("no_answer", "during"))
        on.clear()
        log.emit(ROOT, Printed("stdout", "after"))
        log.emit(ROOT, END)
        told = [event async for events in log.watch(1) for event in events]
    texts = [body.text for event in told if isinstance(body := event.body, Printed)]
    assert texts == ["before", "", "after"]
    assert [bool(event.cut) for event in told] == [False, True, True, False, False]
    assert await journal.events("run", 1, 100) == told


async def test_long_output_is_told_in_pieces_whose_sizes_add_up(journal: Journal) -> None:
    await journal.create(a_run(), "What?")
    log, text = EventLog(journal, "run", AMPLE, redaction=redaction()), "\xe9" * MAX_EVENT_TEXT
    log.emit(ROOT, Printed("stdout", text))
    log.emit(ROOT, END)
    async with asyncio.timeout(60):
        await log.serve()
        told = await journal.events("run", 1, 100)
    assert sum(one.size_bytes for event in told[:-1] for one in event.cut) == size_of(text)


# ---- nodes -------------------------------------------------------------------------------------------------------


async def test_a_redacted_node_says_of_what_size_its_texts_were_and_keeps_none_of_them(journal: Journal) -> None:
    kept, redacted = redaction().text("question", "Which marzipan?")
    await journal.create(a_run(), "Open?")
    await journal.add_node(a_node("child", question=kept, redacted=redacted))
    await journal.move("child", RunState.RUNNING)
    outcome, more = kept_form(Outcome(RunState.FAILED, "marzipan!", "of marzipan"), redaction(), root=False)
    assert outcome == Outcome(RunState.FAILED, "", "failed")
    await journal.move("child", outcome.state, answer=outcome.answer, reason=outcome.reason, redacted=more)
    root, child = await journal.nodes("run")
    assert (root.question, root.cut) == ("Open?", ())
    assert (child.question, child.answer, child.reason) == ("", "", "failed")
    assert (child.question_bytes, child.answer_bytes) == (15, 9)
    assert child.cut == (*redacted, *more)
    assert [(one.field, one.size_bytes) for one in child.cut] == [("question", 15), ("answer", 9), ("reason", 11)]
    assert await journal.kept_bytes("acme") == len("Open?")
    assert await journal.answer_piece("run", "child", 0, 100) == ("", 9)


async def test_a_roots_answer_stays_and_is_cut_where_it_is_long(journal: Journal) -> None:
    kept, redacted = redaction().text("question", "Why?")
    await journal.create(a_run(), kept, redacted=redacted)
    await journal.move("run", RunState.RUNNING)
    outcome, more = kept_form(Outcome(RunState.EXHAUSTED, "x" * 100, "max_turns: 3"), redaction(), root=True)
    assert more == ()
    await journal.move("run", outcome.state, answer=outcome.answer, reason=outcome.reason, redacted=more)
    (root,) = await journal.nodes("run", text_bytes=10)
    assert (root.answer, root.reason) == ("x" * 10, "max_turns: 3")
    assert root.cut == (*redacted, CutText("answer", 100))


async def test_a_request_is_known_again_by_its_digest_and_by_what_was_kept_before(journal: Journal) -> None:
    first = await journal.create(a_run(request_id="plain"), "What?", asked("plain"))
    keeper = Redaction(lambda _: True, b"secret")
    assert await journal.by_request(keeper.of_request(asked("plain"))) == first
    second = await journal.create(a_run("second", request_id="keyed"), "", keeper.of_request(asked("keyed")))
    assert await journal.by_request(keeper.of_request(asked("keyed"))) == second
    assert keeper.of_request(None) is None


def test_a_turns_status_is_no_contents() -> None:
    body: Any = redaction().redacted(CodeFinished(a_turn(error=TurnError("E", "m"))))[0]
    assert body.result.status is Status.ERROR

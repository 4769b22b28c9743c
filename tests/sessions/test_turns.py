"""A turn of a session: what its caller sees of it, and what is left of it when the caller goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from rlm_server.broker.provider import ModelRequest
from rlm_server.ledger import Amounts
from rlm_server.repl.events import CallFinished, CodeFinished, Printed
from rlm_server.repl.functions import FUNCTIONS
from rlm_server.repl.tracing import Tracer
from rlm_server.sessions.happenings import Happening
from rlm_server.sessions.session import ReplSession
from rlm_server.sessions.turns import Turns
from rlm_server.shares.shares import Shares
from sandbox.door import DoorRefusal, HostCall
from sandbox.turn import OutputListener, Turn
from tests.broker.books import RUN, Books
from tests.broker.stage import Play, broker_of
from tests.runs.stage import a_turn
from tests.sessions.stage import Act, Answer, a_session


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    async with Books.opened(tmp_path / "ledger.db") as opened:
        yield opened


async def ask(request: ModelRequest) -> str:
    return f"about {request.messages[0].content}"


def turns_of(books: Books) -> Turns:
    return Turns(broker_of(books, Play([ask])), books, FUNCTIONS, Shares.of(), budget_wait_seconds=60.0)


def session_of(act: Act) -> ReplSession:
    """A session that has the account of the books' payer."""
    return a_session(RUN, act)


async def happenings(turns: Turns, session: ReplSession, code: str = "code") -> list[Happening]:
    async with asyncio.timeout(30), aclosing(turns.run(session, code)) as found:
        return [happening async for happening in found]


async def test_a_turn_is_seen_as_it_prints_calls_and_ends(books: Books) -> None:
    async def act(code: str, answer: Answer, listener: OutputListener) -> Turn:
        listener(1, b"asking\n")
        slots = await answer(HostCall("llm_query", {"prompts": [code]}))
        listener(2, f"{slots}\n".encode())
        return a_turn("asking\n", running_seconds=0.25)

    session = session_of(act)
    before = session.used_at
    seen = await happenings(turns_of(books), session, "x = 1")
    assert [one for one in seen if not isinstance(one, CallFinished)] == [
        Printed("stdout", "asking\n"),
        Printed("stderr", "[{'ok': 'about x = 1'}]\n"),
        CodeFinished(a_turn("asking\n", running_seconds=0.25)),
    ]
    assert [one.call.error for one in seen if isinstance(one, CallFinished)] == [""]
    assert (session.running, session.used_at >= before) == (0, True)
    spent = (await books.balance(RUN)).posted
    assert spent.calls == 1
    assert spent.cpu_ms >= 250, "and what the server worked for it"


async def test_what_a_session_has_not_is_refused_and_what_it_answers_is_taken(books: Books) -> None:
    async def act(code: str, answer: Answer, listener: OutputListener) -> Turn:
        assert await answer(HostCall("answer", {"content": "42", "ready": True})) is None
        with pytest.raises(DoorRefusal, match="rlm_query cannot be called in a session"):
            await answer(HostCall("rlm_query", {}))
        return a_turn()

    assert await happenings(turns_of(books), session_of(act)) == [CodeFinished(a_turn())]


async def test_a_caller_who_goes_away_stops_the_turn_and_what_it_ran_is_paid_for(books: Books) -> None:
    stopped = asyncio.Event()

    async def act(code: str, answer: Answer, listener: OutputListener) -> Turn:
        listener(1, b"begun\n")
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        raise AssertionError

    session = session_of(act)
    async with asyncio.timeout(30), aclosing(turns_of(books).run(session, "code")) as found:
        assert await anext(found) == Printed("stdout", "begun\n")
        assert session.running == 1
    assert stopped.is_set()
    assert session.running == 0
    assert session.turn is not None
    assert session.turn.done()
    balance = await books.balance(RUN)
    assert balance.pending == Amounts()
    assert balance.posted.cpu_ms > 0


async def test_what_goes_wrong_with_a_turn_is_raised_after_what_happened(books: Books) -> None:
    async def act(code: str, answer: Answer, listener: OutputListener) -> Turn:
        listener(1, b"begun\n")
        raise MemoryError("no room")

    found = turns_of(books).run(session_of(act), "code")
    assert await anext(found) == Printed("stdout", "begun\n")
    with pytest.raises(MemoryError, match="no room"):
        await anext(found)


async def test_a_turn_that_ended_is_remembered_though_its_caller_went_away_before_it_was_told(books: Books) -> None:
    async def act(code: str, answer: Answer, listener: OutputListener) -> Turn:
        listener(1, b"begun\n")
        return a_turn("begun\n")

    class Endless(Tracer):
        async def settle(self) -> None:
            await asyncio.Event().wait()

    session, turns = session_of(act), turns_of(books)
    session.tracer = Endless()
    async with asyncio.timeout(30), aclosing(turns.run(session, "code", "again")) as found:
        assert await anext(found) == Printed("stdout", "begun\n")
    assert turns.result(session, "again") == CodeFinished(replace(a_turn("begun\n"), stdout=""))
    assert turns.result(session, "another") is None
    assert turns.result(session, None) is None

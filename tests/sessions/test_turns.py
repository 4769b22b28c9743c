"""The turns of a session: what their callers see of them, and what is left of one when its caller goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from rlm_server.broker.provider import ModelRequest
from rlm_server.database.requests import RequestIdReused
from rlm_server.ledger import Amounts, BudgetExceeded, Limit
from rlm_server.repl.events import CallFinished, CodeFinished, Printed
from rlm_server.repl.functions import FUNCTIONS
from rlm_server.repl.tracing import Tracer
from rlm_server.sessions import turn_line
from rlm_server.sessions.happenings import Accepted, Happening
from rlm_server.sessions.session import ReplSession
from rlm_server.sessions.state import End, EndReason, SessionEnded
from rlm_server.sessions.turn import TurnRequest, turn_id_of
from rlm_server.sessions.turn_line import SessionLineFull, TurnLine, TurnUnknown
from rlm_server.sessions.turn_log import Told
from rlm_server.sessions.turns import Turns
from rlm_server.shares.shares import Shares
from sandbox.door import DoorRefusal, HostCall
from sandbox.pool.worker_session import undone
from sandbox.turn import OutputListener, Status, Stop, Turn
from tests.broker.books import RUN, Books
from tests.broker.stage import Play, broker_of
from tests.runs.stage import a_turn
from tests.sessions.stage import Act, Answer, a_session


def told(stdout: str) -> CodeFinished:
    """A result as it is told where what was printed is not kept with it."""
    return CodeFinished(replace(a_turn(stdout), stdout=""))


INTERRUPTED = CodeFinished(undone(Stop.INTERRUPTED, "the turn was interrupted"))
DELETED = End(EndReason.DELETED, "the session was deleted", 1)


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    async with Books.opened(tmp_path / "ledger.db") as opened:
        yield opened


@pytest.fixture
def line(books: Books) -> TurnLine:
    return line_of(books)


async def ask(request: ModelRequest) -> str:
    return f"about {request.messages[0].content}"


def line_of(books: Books, shares: Shares | None = None) -> TurnLine:
    turns = Turns(
        broker_of(books, Play([ask])), books, FUNCTIONS, Shares.of() if shares is None else shares,
        budget_wait_seconds=60.0,
    )  # fmt: skip
    return TurnLine(turns)


def session_of(act: Act) -> ReplSession:
    """A session that has the account of the books' payer."""
    return a_session(RUN, act)


async def prints(code: str, answer: Answer, listener: OutputListener) -> Turn:
    """Print the code."""
    listener(1, code.encode())
    return a_turn(code)


class Gates:
    """Code that prints that it has begun, and ends when it may."""

    def __init__(self) -> None:
        self.begun, self.may_end, self.stopped = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.count = 0

    async def act(self, code: str, answer: Answer, listener: OutputListener) -> Turn:
        self.count += 1
        listener(1, b"begun\n")
        self.begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.stopped.set()
            raise
        return a_turn("begun\n")


async def read(told: AsyncGenerator[Told, None]) -> list[Happening | None]:
    async with asyncio.timeout(30), aclosing(told):
        return [one.happening async for one in told]


async def happenings(line: TurnLine, session: ReplSession, code: str = "code", id: str = "") -> list[Happening | None]:
    return await read(line.execute(session, TurnRequest(code, id)))


async def until_asked(session: ReplSession, turns: int) -> None:
    """Wait until a session has so many turns."""
    for _ in range(100):
        if len(session.turns) == turns:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{len(session.turns)} turns")


async def test_a_turn_is_seen_as_it_prints_calls_and_ends(books: Books, line: TurnLine) -> None:
    async def act(code: str, answer: Answer, listener: OutputListener) -> Turn:
        listener(1, b"asking\n")
        slots = await answer(HostCall("llm_query", {"prompts": [code]}))
        listener(2, f"{slots}\n".encode())
        return a_turn("asking\n", running_seconds=0.25)

    session = session_of(act)
    seen = await happenings(line, session, "x = 1")
    assert [one for one in seen if not isinstance(one, CallFinished)] == [
        Printed("stdout", "asking\n"),
        Printed("stderr", "[{'ok': 'about x = 1'}]\n"),
        CodeFinished(a_turn("asking\n", running_seconds=0.25)),
    ]
    assert [one.call.error for one in seen if isinstance(one, CallFinished)] == [""]
    assert (session.busy, session.running, session.turns_ended, session.used_at > 0) == (False, None, 1, True)
    await asyncio.gather(*session.bookings)
    spent = (await books.balance(RUN)).posted
    assert spent.calls == 1
    assert spent.cpu_ms >= 250, "and what the server worked for it"


async def test_where_a_budget_of_processor_time_has_no_room_for_a_turn_it_does_not_run(books: Books) -> None:
    await books.set_limit(RUN, Limit(cpu_ms=1))
    line = line_of(books)
    with pytest.raises(BudgetExceeded, match="processor time"):
        await happenings(line, session_of(prints))


async def test_what_a_session_has_not_is_refused_and_what_it_answers_is_taken(line: TurnLine) -> None:
    async def act(code: str, answer: Answer, listener: OutputListener) -> Turn:
        assert await answer(HostCall("answer", {"content": "42", "ready": True})) is None
        with pytest.raises(DoorRefusal, match="rlm_query cannot be called in a session"):
            await answer(HostCall("rlm_query", {}))
        return a_turn()

    assert await happenings(line, session_of(act)) == [CodeFinished(a_turn())]


async def test_a_caller_who_goes_away_stops_the_turn_and_what_it_ran_is_paid_for(books: Books, line: TurnLine) -> None:
    gates = Gates()
    session = session_of(gates.act)
    async with asyncio.timeout(30), aclosing(line.execute(session, TurnRequest("code"))) as happens:
        assert await anext(happens) == Told(Printed("stdout", "begun\n"))
        assert session.busy
    assert gates.stopped.is_set()
    assert (session.busy, session.running) == (False, None)
    balance = await books.balance(RUN)
    assert balance.pending == Amounts()
    assert balance.posted.cpu_ms > 0


async def test_what_goes_wrong_with_a_turn_is_raised_after_what_happened(line: TurnLine) -> None:
    async def act(code: str, answer: Answer, listener: OutputListener) -> Turn:
        listener(1, b"begun\n")
        raise MemoryError("no room")

    happens = line.execute(session_of(act), TurnRequest("code"))
    assert await anext(happens) == Told(Printed("stdout", "begun\n"))
    with pytest.raises(MemoryError, match="no room"):
        await anext(happens)
    with pytest.raises(MemoryError, match="no room"):
        await line.execute_once(session_of(act), TurnRequest("code"))


async def test_a_turn_that_ended_is_remembered_though_its_caller_went_away_before_it_was_told(line: TurnLine) -> None:
    class Endless(Tracer):
        async def settle(self) -> None:
            await asyncio.Event().wait()

    session = session_of(prints)
    session.tracer = Endless()
    async with asyncio.timeout(30), aclosing(line.execute(session, TurnRequest("code", "again"))) as happens:
        assert await anext(happens) == Told(Printed("stdout", "code"))
    session.tracer = Tracer()
    assert await happenings(line, session, "code", "again") == [told("code")]
    assert session.turns_ended == 1


async def test_a_request_that_comes_again_in_another_form_has_the_first_result_and_runs_nothing(line: TurnLine) -> None:
    session = session_of(prints)
    once = await line.execute_once(session, TurnRequest("code", "a"))
    assert (once.result, once.remembered) == (a_turn("code"), False)
    remembered = replace(a_turn("code"), stdout="")
    assert await happenings(line, session, "code", "a") == [CodeFinished(remembered)]
    assert await read(line.execute_detached(session, TurnRequest("code", "a"))) == [CodeFinished(remembered)]
    again = await line.execute_once(session, TurnRequest("code", "a"))
    assert (again.result, again.remembered) == (remembered, True)
    assert session.turns_ended == 1
    for refused in (line.execute, line.execute_detached):
        with pytest.raises(RequestIdReused):
            await read(refused(session, TurnRequest("other code", "a")))
    with pytest.raises(RequestIdReused):
        await line.execute_once(session, TurnRequest("other code", "a"))


async def test_a_turn_for_its_result_alone_tells_its_calls_and_what_they_cost(line: TurnLine) -> None:
    async def act(code: str, answer: Answer, listener: OutputListener) -> Turn:
        for number in range(3):
            await answer(HostCall("llm_query", {"prompts": [str(number), "again"]}))
        return a_turn("printed")

    done = await line.execute_once(session_of(act), TurnRequest("code"))
    assert (done.result, len(done.calls), done.more_calls) == (a_turn("printed"), 6, 0)
    assert done.spent.calls == 4
    assert sum(call.spent.calls for call in done.calls) == 4
    assert sum(call.memo for call in done.calls) == 2


async def test_a_caller_who_goes_away_from_a_result_stops_the_turn(line: TurnLine) -> None:
    gates = Gates()
    session = session_of(gates.act)
    asking = asyncio.create_task(line.execute_once(session, TurnRequest("code")))
    async with asyncio.timeout(30):
        await gates.begun.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert gates.stopped.is_set()
    assert not session.busy


async def test_as_many_turns_wait_for_a_session_as_may_and_more_are_refused(
    line: TurnLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_line, "SESSION_TURNS", 3)
    gates = Gates()
    session = session_of(gates.act)
    asked = [asyncio.create_task(line.execute_once(session, TurnRequest("code"))) for _ in range(3)]
    async with asyncio.timeout(30):
        await gates.begun.wait()
        for refused in (line.execute, line.execute_detached):
            with pytest.raises(SessionLineFull):
                await read(refused(session, TurnRequest("code")))
        gates.may_end.set()
        assert [(await one).result.status for one in asked] == [Status.OK] * 3
    assert (gates.count, session.busy) == (3, False)


# ---- turns that go on without their callers --------------------------------------------------------------------------


async def test_a_detached_turn_goes_on_without_its_reader_and_is_taken_up_again_from_any_number(line: TurnLine) -> None:
    gates = Gates()
    session = session_of(gates.act)
    asked = TurnRequest("code", "mine")
    async with asyncio.timeout(30), aclosing(line.execute_detached(session, asked)) as happens:
        assert await anext(happens) == Told(Accepted(turn_id_of("mine")), 1)
        assert await anext(happens) == Told(Printed("stdout", "begun\n"), 2)
    assert session.busy
    watching = line.watch(session, turn_id_of("mine"), 2)
    assert await anext(watching) == Told(Printed("stdout", "begun\n"), 2)
    gates.may_end.set()
    assert await anext(watching) == Told(told("begun\n"), 3)
    whole = [Accepted(turn_id_of("mine")), Printed("stdout", "begun\n"), told("begun\n")]
    assert await read(watching) == []
    assert await read(line.watch(session, turn_id_of("mine"), 0)) == whole, "also when it has ended"
    assert await read(line.execute_detached(session, asked)) == whole
    assert await read(line.execute(session, asked)) == whole
    assert gates.count == 1
    with pytest.raises(RequestIdReused):
        line.execute_detached(session, TurnRequest("other code", "mine"))


async def test_of_detached_turns_that_ended_the_last_few_can_be_watched_and_of_others_their_results(
    line: TurnLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_line, "WATCHABLE_TURNS", 2)
    session = session_of(prints)
    ids = []
    for number in range(3):
        accepted, *_ = await read(line.execute_detached(session, TurnRequest(str(number))))
        assert isinstance(accepted, Accepted)
        ids.append(accepted.turn)
    assert await read(line.watch(session, ids[0], 0)) == [told("0")]
    assert (await read(line.watch(session, ids[1], 0)))[1] == Printed("stdout", "1")
    monkeypatch.setattr(turn_line, "WATCHABLE_SECONDS", -1)
    line.tidy(session)
    assert await read(line.watch(session, ids[2], 0)) == [told("2")]


async def test_a_turn_that_is_not_there_or_not_detached_is_not_watched(line: TurnLine) -> None:
    gates = Gates()
    session = session_of(gates.act)
    with pytest.raises(TurnUnknown):
        line.watch(session, turn_id_of("none"), 0)
    asking = asyncio.create_task(line.execute_once(session, TurnRequest("code", "mine")))
    async with asyncio.timeout(30):
        await gates.begun.wait()
        with pytest.raises(TurnUnknown, match="not detached"):
            line.watch(session, turn_id_of("mine"), 0)
        gates.may_end.set()
        await asking
    assert len(await read(line.watch(session, turn_id_of("mine"), 0))) == 1


async def test_what_is_kept_of_detached_turns_is_counted_for_the_tenant_and_given_back(books: Books) -> None:
    shares = Shares.of()
    line, session = line_of(books, shares), session_of(prints)
    for _ in range(3):
        await read(line.execute_detached(session, TurnRequest("x" * 10_000)))
    assert shares.held.of("acme") > 60_000
    await line.stop(session)
    assert shares.held.of("acme") == 0


async def test_why_a_detached_turn_could_not_be_run_is_told_to_whoever_watches_it(line: TurnLine) -> None:
    async def act(code: str, answer: Answer, listener: OutputListener) -> Turn:
        raise MemoryError("no room")

    session = session_of(act)
    for happens in (
        line.execute_detached(session, TurnRequest("code", "mine")),
        line.watch(session, turn_id_of("mine"), 0),
    ):
        with pytest.raises(MemoryError, match="no room"):
            await read(happens)


async def test_a_detached_turn_that_could_not_be_run_runs_when_it_is_asked_for_again(books: Books) -> None:
    failing = True

    async def act(code: str, answer: Answer, listener: OutputListener) -> Turn:
        if failing:
            raise MemoryError("no room")
        return a_turn()

    shares = Shares.of()
    line, session = line_of(books, shares), session_of(act)
    with pytest.raises(MemoryError, match="no room"):
        await read(line.execute_detached(session, TurnRequest("code", "mine")))
    failing = False
    assert (await read(line.execute_detached(session, TurnRequest("code", "mine"))))[-1] == CodeFinished(a_turn())
    await line.stop(session)
    assert shares.held.of("acme") == 0


# ---- turns that are interrupted --------------------------------------------------------------------------------------


async def test_a_turn_that_is_interrupted_is_rolled_back_and_its_reader_is_told(line: TurnLine) -> None:
    gates = Gates()
    session = session_of(gates.act)
    reading = asyncio.create_task(happenings(line, session, "code", "mine"))
    async with asyncio.timeout(30):
        await gates.begun.wait()
        assert await line.interrupt(session)
        assert gates.stopped.is_set()
        assert await reading == [Printed("stdout", "begun\n"), INTERRUPTED]
        assert await happenings(line, session, "code", "mine") == [INTERRUPTED], "and it is remembered"
        assert not await line.interrupt(session), "nothing is under way"
    assert (gates.count, session.busy) == (1, False)


async def test_a_detached_turn_is_interrupted_by_its_id_also_while_it_waits(line: TurnLine) -> None:
    gates = Gates()
    session = session_of(gates.act)
    first = asyncio.create_task(line.execute_once(session, TurnRequest("code")))
    async with asyncio.timeout(30):
        await gates.begun.wait()
        waits = asyncio.create_task(read(line.execute_detached(session, TurnRequest("other", "mine"))))
        await until_asked(session, 2)
        assert not await line.interrupt(session, turn_id_of("another"))
        assert await line.interrupt(session, turn_id_of("mine"))
        assert await waits == [Accepted(turn_id_of("mine")), INTERRUPTED]
        assert not await line.interrupt(session, turn_id_of("mine"))
        gates.may_end.set()
        assert (await first).result == a_turn("begun\n")
    assert gates.count == 1


async def test_a_turn_whose_code_has_ended_is_not_interrupted(line: TurnLine) -> None:
    settling, may_settle = asyncio.Event(), asyncio.Event()

    class Slow(Tracer):
        async def settle(self) -> None:
            settling.set()
            await may_settle.wait()

    session = session_of(prints)
    session.tracer = Slow()
    asked = asyncio.create_task(line.execute_once(session, TurnRequest("code")))
    async with asyncio.timeout(30):
        await settling.wait()
        assert not await line.interrupt(session)
        may_settle.set()
        assert (await asked).result == a_turn("code")


async def test_turns_of_a_session_that_ends_say_so(line: TurnLine) -> None:
    gates = Gates()
    session = session_of(gates.act)
    runs = asyncio.create_task(line.execute_once(session, TurnRequest("code")))
    async with asyncio.timeout(30):
        await gates.begun.wait()
        waits = asyncio.create_task(read(line.execute_detached(session, TurnRequest("code"))))
        await until_asked(session, 2)
        session.end = DELETED
        await line.stop(session)
        for asked in (runs, waits):
            with pytest.raises(SessionEnded, match="was deleted"):
                await asked
        with pytest.raises(SessionEnded):
            await line.execute_once(session, TurnRequest("code"))
    assert (gates.count, session.busy) == (1, False)

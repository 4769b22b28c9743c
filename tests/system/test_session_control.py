"""Sessions as a platform needs them: listed, changed, told why they ended, and with turns that go on or are stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from rlm.v1 import session_pb2, types_pb2
from rlm_client.durations import milliseconds, seconds

from rlm_server.database.engine import DatabaseBusyError
from rlm_server.sessions import sessions as module
from tests.servers import Served
from tests.system.books import check_settled, rows
from tests.system.stage import Caller, Play, Refusal, eventually, refusal

ACTIVE, ENDED = session_pb2.SESSION_STATE_ACTIVE, session_pb2.SESSION_STATE_ENDED
OK, ROLLED_BACK = session_pb2.TURN_STATUS_OK, session_pb2.TURN_STATUS_ROLLED_BACK
INTERRUPTED = session_pb2.STOP_REASON_INTERRUPTED
DAY = 86_400
LOOP = "print('begun')\nwhile True: pass"


async def get(caller: Caller, session: str) -> session_pb2.Session:
    request = session_pb2.GetSessionRequest(session_id=session)
    found: session_pb2.Session = (await caller.sessions.GetSession(request, metadata=caller.metadata)).session
    return found


async def page(caller: Caller, **asked: Any) -> session_pb2.ListSessionsResponse:
    request = session_pb2.ListSessionsRequest(**asked)
    found: session_pb2.ListSessionsResponse = await caller.sessions.ListSessions(request, metadata=caller.metadata)
    return found


async def listed(caller: Caller, **asked: Any) -> list[str]:
    return [one.session_id for one in (await page(caller, **asked)).sessions]


async def update(caller: Caller, session: str, *paths: str, request_id: str = "", **new: Any) -> session_pb2.Session:
    request = session_pb2.UpdateSessionRequest(
        request_id=request_id,
        session=session_pb2.Session(session_id=session, **new),
        update_mask=FieldMask(paths=paths),
    )
    changed: session_pb2.Session = (await caller.sessions.UpdateSession(request, metadata=caller.metadata)).session
    return changed


async def once(caller: Caller, session: str, code: str, request_id: str = "") -> session_pb2.ExecuteOnceResponse:
    request = session_pb2.ExecuteOnceRequest(session_id=session, code=code, request_id=request_id)
    done: session_pb2.ExecuteOnceResponse = await caller.sessions.ExecuteOnce(request, metadata=caller.metadata)
    return done


def execute(caller: Caller, session: str, code: str, request_id: str = "") -> AsyncIterator[Any]:
    """Run a detached turn."""
    request = session_pb2.ExecuteRequest(session_id=session, code=code, request_id=request_id, detached=True)
    return aiter(caller.sessions.Execute(request, metadata=caller.metadata))


def watch(caller: Caller, session: str, **asked: Any) -> AsyncIterator[Any]:
    request = session_pb2.WatchTurnRequest(session_id=session, **asked)
    return aiter(caller.sessions.WatchTurn(request, metadata=caller.metadata))


async def interrupt(caller: Caller, session: str, **asked: Any) -> bool:
    request = session_pb2.InterruptSessionRequest(session_id=session, **asked)
    return bool((await caller.sessions.InterruptSession(request, metadata=caller.metadata)).interrupted)


async def delete(caller: Caller, session: str, request_id: str) -> types_pb2.Amounts:
    request = session_pb2.DeleteSessionRequest(session_id=session, request_id=request_id)
    spent: types_pb2.Amounts = (await caller.sessions.DeleteSession(request, metadata=caller.metadata)).spent
    return spent


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is so that only a call tells."""
    async with asyncio.timeout(60):
        while not await true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def waits(caller: Caller, session: str) -> bool:
    """Whether a turn of a session has not ended."""
    return (await get(caller, session)).waiting_turn_count > 0


async def is_empty(caller: Caller) -> bool:
    """Whether no session is listed."""
    return not await listed(caller)


async def gone(caller: Caller, session: str) -> tuple[str, str]:
    """Why a session takes no more turns, and the reason in the metadata."""
    said = await refusal(once(caller, session, "1"))
    assert said.code is grpc.StatusCode.NOT_FOUND
    return said.reason, said.said.get("end_reason", "")


@pytest.fixture(params=["sqlite", "postgres"])
def kept(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The setting that keeps a server's rows in a database of each kind."""
    return {} if request.param == "sqlite" else {"database_url": request.getfixturevalue("postgres_url")}


# ---- what there is ---------------------------------------------------------------------------------------------------


async def test_a_session_says_what_it_is_and_when_it_ends(server: Served) -> None:
    async with server(Play(""), session_idle_seconds=600, session_seconds=DAY) as served:
        limits = types_pb2.SandboxLimits(turn_time=milliseconds(1_500), output_bytes=4_000)
        session = await served.caller.open_session(limits=limits, labels={"team": "red"}, idle_time=seconds(60))
        made = await get(served.caller, session)
        assert (made.state, made.turn_count, made.waiting_turn_count) == (ACTIVE, 0, 0)
        assert (made.limits.turn_time.ToMilliseconds(), made.limits.output_bytes) == (1_500, 4_000)
        assert made.limits.memory_bytes == 512 << 20, "what was not asked for is there too"
        assert (made.idle_time.ToMilliseconds(), made.life_time.ToMilliseconds()) == (60_000, DAY * 1_000)
        assert made.last_use_time == made.create_time
        assert made.idle_expire_time.ToMilliseconds() - made.create_time.ToMilliseconds() == 60_000
        assert made.life_expire_time.ToMilliseconds() - made.create_time.ToMilliseconds() == DAY * 1_000
        assert not made.HasField("end_time")
        await once(served.caller, session, "x = list(range(200_000))\nprint(llm_query('y'))")
        used = await get(served.caller, session)
        assert (used.turn_count, used.spent.call_count, dict(used.labels)) == (1, 1, {"team": "red"})
        assert used.memory_bytes > 1 << 20
        assert used.last_use_time.ToMilliseconds() >= made.last_use_time.ToMilliseconds()
        looping = execute(served.caller, session, LOOP)
        await anext(looping)
        await anext(looping)
        busy = await get(served.caller, session)
        assert (busy.waiting_turn_count, busy.HasField("idle_expire_time")) == (1, False)


async def test_sessions_are_listed_page_by_page_by_all_that_is_asked(server: Served, kept: dict[str, Any]) -> None:
    async with server(Play(""), **kept) as served:
        caller, other = served.caller, await served.tenant("other")
        made = [await caller.open_session(labels={"number": str(number % 2)}) for number in range(5)]
        theirs = await other.open_session()
        await caller.delete(made[0])
        everything = await listed(caller)
        assert sorted(everything) == sorted(made), "one that ended is there as well"
        found, token = [], ""
        while True:
            some = await page(caller, page_size=2, page_token=token)
            found += [one.session_id for one in some.sessions]
            token = some.next_page_token
            if not token:
                break
            assert len(some.sessions) == 2
        assert found == everything
        assert sorted(await listed(caller, labels={"number": "1"})) == sorted([made[1], made[3]])
        assert await listed(caller, states=[ENDED]) == [made[0]]
        assert len(await listed(caller, states=[ACTIVE])) == 4
        assert len(await listed(caller, states=[ACTIVE, ENDED])) == 5
        newest = await get(caller, everything[0])
        assert everything[0] not in await listed(caller, until=newest.create_time)
        assert everything[0] in await listed(caller, since=newest.create_time)
        assert await listed(caller, page_size=1_000_000) == everything
        assert len(await listed(caller, account_id="development")) == 5
        assert await listed(other) == [theirs]
        first = await page(caller, page_size=2)
        for wrong in ("x", first.next_page_token[:-4]):
            said = await refusal(page(caller, page_token=wrong))
            assert (said.reason, said.fields) == ("INVALID_FIELD", ["page_token"])
        said = await refusal(page(caller, page_token=first.next_page_token, labels={"a": "b"}))
        assert said.fields == ["page_token"], "a token of one list is none of another"


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"page_size": -1}, "page_size"),
        ({"states": [0]}, "states[0]"),
        ({"states": [1, 9]}, "states[1]"),
        ({"labels": {"": "x"}}, "labels"),
        ({"labels": {"x" * 64: "x"}}, "labels"),
        ({"labels": {str(number): "" for number in range(17)}}, "labels"),
    ],
)
async def test_a_list_that_cannot_be_is_refused_by_name(server: Served, asked: dict[str, Any], field: str) -> None:
    async with server(Play("")) as served:
        assert (await refusal(page(served.caller, **asked))).fields == [field]


# ---- what can be changed ---------------------------------------------------------------------------------------------


async def test_labels_and_times_of_a_session_that_lives_are_changed(server: Served, kept: dict[str, Any]) -> None:
    async with server(Play(""), session_idle_seconds=600, session_seconds=DAY, **kept) as served:
        session = await served.caller.open_session(labels={"a": "1"}, idle_time=seconds(60))
        changed = await update(served.caller, session, "labels", labels={"b": "2"}, idle_time=seconds(30))
        assert (dict(changed.labels), changed.idle_time.seconds) == ({"b": "2"}, 60)
        changed = await update(served.caller, session, "idle_time", "life_time", life_time=seconds(3_600))
        assert (dict(changed.labels), changed.idle_time.seconds, changed.life_time.seconds) == ({"b": "2"}, 600, 3_600)
        assert await get(served.caller, session) == changed
        assert await listed(served.caller, labels={"b": "2"}) == [session]
        assert await listed(served.caller, labels={"a": "1"}) == []
        await update(served.caller, session, "labels", request_id="once", labels={"c": "3"})
        await update(served.caller, session, "labels", labels={"d": "4"})
        again = await update(served.caller, session, "labels", request_id="once", labels={"c": "3"})
        assert dict(again.labels) == {"d": "4"}, "a repeated request changes nothing"
        said = await refusal(update(served.caller, session, "labels", request_id="once", labels={"e": "5"}))
        assert said.reason == "REQUEST_ID_REUSED"
        await served.caller.delete(session)
        assert (await refusal(update(served.caller, session, "labels"))).reason == "SESSION_ENDED"


@pytest.mark.parametrize(
    ("paths", "new", "field"),
    [
        (("image",), {}, "update_mask"),
        (("labels.a",), {}, "update_mask"),
        ((), {"labels": {"k": "v" * 64}}, "session.labels"),
        (("labels", "x" * 10_000), {}, "update_mask"),
        (("labels",), {"labels": {"k": "v" * 64}}, "session.labels"),
        (("idle_time",), {"idle_time": seconds(600.001)}, "session.idle_time"),
        (("life_time",), {"life_time": seconds(-1)}, "session.life_time"),
        (("life_time",), {"life_time": milliseconds(DAY * 1_000 + 1)}, "session.life_time"),
    ],
)
async def test_a_change_that_cannot_be_is_refused_by_name(
    server: Served, paths: tuple[str, ...], new: dict[str, Any], field: str
) -> None:
    async with server(Play(""), session_idle_seconds=600, session_seconds=DAY) as served:
        session = await served.caller.open_session()
        before = await get(served.caller, session)
        assert (await refusal(update(served.caller, session, *paths, **new))).fields == [field]
        assert await get(served.caller, session) == before
        if field.startswith("session.") and field != "session.labels":
            asked = {name: value for name, value in new.items() if field.endswith(name)}
            assert (await refusal(served.caller.open_session(**asked))).fields == [field.removeprefix("session.")]


async def test_without_a_mask_what_is_set_changes_and_a_star_stands_for_all(
    server: Served, kept: dict[str, Any]
) -> None:
    async with server(Play(""), session_idle_seconds=600, session_seconds=DAY, **kept) as served:
        session = await served.caller.open_session(labels={"a": "1"}, idle_time=seconds(60), life_time=seconds(3_600))
        before = await get(served.caller, session)
        assert await update(served.caller, session) == before, "nothing is set"
        assert await update(served.caller, session, image="data") == before, "what cannot be changed is left out"
        changed = await update(served.caller, session, idle_time=seconds(30))
        assert (dict(changed.labels), changed.idle_time.seconds, changed.life_time.seconds) == ({"a": "1"}, 30, 3_600)
        changed = await update(served.caller, session, labels={"b": "2"}, life_time=seconds(0))
        assert (dict(changed.labels), changed.idle_time.seconds, changed.life_time.seconds) == ({"b": "2"}, 30, DAY)
        changed = await update(served.caller, session, "*", life_time=seconds(60))
        assert (dict(changed.labels), changed.idle_time.seconds, changed.life_time.seconds) == ({}, 600, 60)
        assert await get(served.caller, session) == changed


async def test_times_at_their_bounds_are_taken(server: Served) -> None:
    async with server(Play(""), session_idle_seconds=600, session_seconds=DAY) as served:
        bounds = {"idle_time": seconds(600), "life_time": seconds(DAY)}
        session = await served.caller.open_session(**bounds)
        changed = await update(served.caller, session, "life_time", life_time=seconds(DAY))
        assert (changed.idle_time.seconds, changed.life_time.seconds) == (600, DAY)
        brief = await served.caller.open_session(life_time=milliseconds(1))
        assert (await get(served.caller, brief)).state == ENDED


# ---- why a session ended ---------------------------------------------------------------------------------------------


async def test_a_session_that_ended_says_why_for_a_day_also_after_a_restart(
    server: Served, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(Play(""), **kept) as served:
        caller = served.caller
        deleted = await caller.open_session(request_id="first")
        idle = await caller.open_session(idle_time=milliseconds(1))
        old = await caller.open_session(life_time=milliseconds(1))
        left = await caller.open_session(labels={"a": "b"})
        await once(caller, left, "llm_query('x')")
        await delete(caller, deleted, "")
        reasons = {deleted: "DELETED", idle: "IDLE_TIME", old: "LIFE_TIME"}
        for session, why in reasons.items():
            assert await gone(caller, session) == ("SESSION_ENDED", why)
        (served.data_dir / "sessions" / f"{left}.session").unlink()
    reasons[left] = "RESTART"
    async with server(Play(""), **kept) as served:
        caller, other = served.caller, await served.tenant("other")
        for session, why in reasons.items():
            assert await gone(caller, session) == ("SESSION_ENDED", why)
            shown = await get(caller, session)
            number = session_pb2.SessionEndReason.Value(f"SESSION_END_REASON_{why}")
            assert (shown.state, shown.end_reason) == (ENDED, number)
            assert shown.end_message
            assert shown.end_time.ToMilliseconds() >= shown.create_time.ToMilliseconds()
            assert not shown.HasField("life_expire_time")
            assert await gone(other, session) == ("NOT_FOUND", "")
        assert (shown.turn_count, shown.spent.call_count, dict(shown.labels)) == (1, 1, {"a": "b"})
        assert sorted(await listed(caller, states=[ENDED])) == sorted(reasons)
        assert await caller.open_session(request_id="first") == deleted, "the first answer"
    monkeypatch.setattr(module, "ENDED_SECONDS", -1.0)
    async with server(Play(""), **kept) as served:
        await until(lambda: is_empty(served.caller))
        assert await gone(served.caller, deleted) == ("NOT_FOUND", "")
        assert await served.caller.open_session(request_id="first") != deleted, "the request is forgotten with it"


async def test_a_session_is_ended_soon_after_its_time_though_nobody_asks(server: Served) -> None:
    async with server(Play("")) as served:
        await served.caller.open_session(idle_time=milliseconds(50))
        ended = "SELECT 1 FROM session WHERE end_reason = 'idle_time'"
        await eventually(lambda: rows(served.data_dir, ended))


async def test_deleting_again_with_the_same_request_returns_the_first_answer(
    server: Served, kept: dict[str, Any]
) -> None:
    async with server(Play(""), **kept) as served:
        session = await served.caller.open_session()
        await once(served.caller, session, "llm_query('x')")
        both = await asyncio.gather(*[delete(served.caller, session, "mine") for _ in range(3)])
        assert both[0] == both[1] == both[2]
        assert both[0].call_count == 1
        assert (await refusal(delete(served.caller, session, "other"))).reason == "SESSION_ENDED"
        said = await refusal(delete(served.caller, await served.caller.open_session(), "mine"))
        assert said.reason == "REQUEST_ID_REUSED"
    async with server(Play(""), **kept) as served:
        assert await delete(served.caller, session, "mine") == both[0]


async def test_an_end_that_cannot_be_written_is_written_when_the_request_comes_again(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(Play("")) as served:
        ledger, session = served.running.ledger, await served.caller.open_session()
        await once(served.caller, session, "llm_query('x')")
        failures, close = iter([DatabaseBusyError("locked")]), ledger.close_account

        async def failing(*what: Any, **how: Any) -> Any:
            if (failure := next(failures, None)) is not None:
                raise failure
            return await close(*what, **how)

        monkeypatch.setattr(ledger, "close_account", failing)
        assert (await refusal(delete(served.caller, session, "mine"))).reason == "DATABASE_UNAVAILABLE"
        assert await gone(served.caller, session) == ("SESSION_ENDED", "DELETED")
        assert (await get(served.caller, session)).state == ENDED
        assert (await delete(served.caller, session, "mine")).call_count == 1
        assert (await delete(served.caller, session, "mine")).call_count == 1
        check_settled(served.data_dir)


# ---- turns for their results alone -----------------------------------------------------------------------------------


async def test_a_turn_is_run_for_its_result_alone(server: Served) -> None:
    async with server(Play("")) as served:
        session = await served.caller.open_session()
        done = await once(served.caller, session, "import sys\nprint('a')\nprint('b', file=sys.stderr)\n1 + 1", "mine")
        assert (done.stdout, done.stderr, done.result.status) == ("a\n2\n", "b\n", OK)
        assert (done.result_only, list(done.cut)) == (False, [])
        again = await once(served.caller, session, "import sys\nprint('a')\nprint('b', file=sys.stderr)\n1 + 1", "mine")
        assert (again.result, again.stdout, again.result_only) == (done.result, "", True)
        said = await refusal(once(served.caller, session, "2", "mine"))
        assert (said.reason, said.said["request_id"]) == ("REQUEST_ID_REUSED", "mine")
        called = await once(served.caller, session, "print(llm_query_batched(['a', 'b', 'a']))")
        assert (len(called.calls), called.more_call_count, called.spent.call_count) == (3, 0, 2)
        assert (await once(served.caller, session, "1 / 0")).result.error.type == "ZeroDivisionError"
        await served.caller.delete(session)
        check_settled(served.data_dir)


async def test_the_answer_of_a_turn_is_below_a_mebibyte_whatever_it_printed(server: Served) -> None:
    async with server(Play(""), sandbox={"output_bytes": 4 << 20}) as served:
        session = await served.caller.open_session()
        wide = (
            "import sys\nprint('\\U0001f600' * 300_000)\nprint('é' * 300_000, file=sys.stderr)\n"
            "raise ValueError('語' * 100_000)"
        )
        done = await once(served.another(plain=True), session, wide)
        assert done.ByteSize() < 1 << 20
        assert [(one.field, one.size_bytes) for one in done.cut] == [("stdout", 1_200_001), ("stderr", 600_001)]
        assert (len(done.stdout.encode()), len(done.stderr.encode())) == (128 << 10, 128 << 10)
        one_sided = await once(served.caller, session, "print('x' * 200_000)")
        assert (len(one_sided.stdout), list(one_sided.cut)) == (200_001, [])


@pytest.mark.parametrize("code", ["x = '" + "é" * 499_997 + "'", "#" * 1_000_000], ids=["wide", "narrow"])
async def test_code_may_have_a_million_bytes_and_no_more(server: Served, code: str) -> None:
    async with server(Play("")) as served:
        session = await served.caller.open_session()
        assert len(code.encode()) == 1_000_000
        assert (await once(served.caller, session, code)).result.status == OK
        for call in (once(served.caller, session, code + "#"), served.caller.turn(session, code + "#")):
            said = await refusal(call)
            assert (said.reason, said.fields) == ("INVALID_FIELD", ["code"])
            assert "may have 1000000 bytes of UTF-8, not 1000001" in said.message


# ---- turns that go on, and are stopped -------------------------------------------------------------------------------


async def test_a_detached_turn_goes_on_when_its_stream_breaks_and_is_taken_up_again(server: Served) -> None:
    may_end = asyncio.Event()

    async def sub(prompt: str) -> str:
        await may_end.wait()
        return "done"

    async with server(Play("", sub=sub)) as served:
        session = await served.caller.open_session()
        code = "print('first')\nprint(llm_query('wait'))\nkept = 1"
        lost = served.another()
        stream = execute(lost, session, code, "mine")
        accepted = await anext(stream)
        turn = accepted.accepted.turn_id
        assert (accepted.sequence, bool(turn)) == (1, True)
        assert ((await anext(stream)).output.text, served.provider.billed) == ("first\n", [])
        await lost.channel.close(None)
        stream = watch(served.caller, session, request_id="mine", from_sequence=3)
        may_end.set()
        rest = [told.event async for told in stream]
        assert [told.WhichOneof("event") for told in rest] == ["call_finished", "output", "result"]
        assert [told.sequence for told in rest] == [3, 4, 5]
        whole = [told.event async for told in watch(served.caller, session, turn_id=turn)]
        assert [told.sequence for told in whole] == [1, 2, 3, 4, 5]
        assert whole[2:] == rest
        again = [told async for told in execute(served.caller, session, code, "mine")]
        assert again == whole, "a repeated request reads the same turn"
        assert (await once(served.caller, session, "kept")).stdout == "1\n"
        assert (await refusal(anext(execute(served.caller, session, "other", "mine")))).reason == "REQUEST_ID_REUSED"
        other = await served.tenant("other")
        for stranger, asked in ((other, {"turn_id": turn}), (served.caller, {"turn_id": turn + "0"})):
            assert (await refusal(anext(watch(stranger, session, **asked)))).reason == "NOT_FOUND"
        for asked, field in (({}, "turn_id"), ({"turn_id": turn, "from_sequence": -1}, "from_sequence")):
            assert (await refusal(anext(watch(served.caller, session, **asked)))).fields == [field]


@pytest.mark.parametrize("source", [LOOP, "print('begun')\nllm_query('hang')"], ids=["code", "a model call"])
@pytest.mark.parametrize("how", ["attended", "detached", "once"])
async def test_a_turn_is_interrupted_and_rolled_back_and_who_reads_it_is_told(
    server: Served, source: str, how: str
) -> None:
    begun = asyncio.Event()

    async def hang(prompt: str) -> str:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with server(Play("", sub=hang)) as served:
        caller = served.caller
        session = await caller.open_session()
        await once(caller, session, "n = 1")
        assert not await interrupt(caller, session), "nothing is under way"
        changing = f"n = 2\n{source}"
        if how == "once":
            result = asyncio.create_task(once(caller, session, changing, "mine"))
            await until(lambda: waits(caller, session))
        else:
            if how == "detached":
                stream = execute(caller, session, changing, "mine")
                await anext(stream)
            else:
                stream = aiter(caller.execute(session, changing, "mine"))
            assert (await anext(stream)).output.text == "begun\n"
        assert await interrupt(caller, session)
        last = (await result).result if how == "once" else [told async for told in stream][-1].result
        assert (last.status, last.stop_reason) == (ROLLED_BACK, INTERRUPTED)
        assert not await interrupt(caller, session)
        assert (await once(caller, session, "n")).stdout == "1\n"
        assert (await once(caller, session, changing, "mine")).result == last, "it is remembered"
        await caller.delete(session)
        check_settled(served.data_dir)


async def test_an_interrupt_that_comes_again_stops_no_other_turn(server: Served, kept: dict[str, Any]) -> None:
    async with server(Play(""), **kept) as served:
        caller = served.caller
        session = await caller.open_session()
        first = execute(caller, session, LOOP)
        accepted, _ = await anext(first), await anext(first)
        assert await interrupt(caller, session, request_id="stop")
        second = execute(caller, session, LOOP)
        await anext(second)
        await anext(second)
        assert await interrupt(caller, session, request_id="stop"), "the first answer"
        assert (await get(caller, session)).waiting_turn_count == 1
        assert not await interrupt(caller, session, turn_id=accepted.accepted.turn_id)
        said = await refusal(interrupt(caller, session, request_id="stop", turn_id="turn_x"))
        assert said.reason == "REQUEST_ID_REUSED"
        await caller.delete(session)


async def test_detached_turns_are_bounded_for_a_session(server: Served) -> None:
    async with server(Play(""), sessions=2) as served:
        session = await served.caller.open_session()
        refused: list[Refusal] = []
        for number in range(66):
            stream = execute(served.caller, session, LOOP if number == 0 else "1")
            if number < 64:
                await anext(stream)
            else:
                refused.append(await refusal(anext(stream)))
        assert {(said.reason, said.said["unit"]) for said in refused} == {("TOO_MANY_REQUESTS", "session_turns")}
        assert (await get(served.caller, session)).waiting_turn_count == 64
        await served.caller.delete(session)


async def test_a_server_that_stops_lets_detached_turns_end(server: Served) -> None:
    released = asyncio.Event()

    async def sub(prompt: str) -> str:
        await released.wait()
        return "done"

    async with server(Play("", sub=sub), grace_seconds=30) as served:
        session = await served.caller.open_session()
        lost = served.another()
        stream = execute(lost, session, "print('begun')\nllm_query('wait')")
        await anext(stream)
        await anext(stream)
        await lost.channel.close(None)
        asyncio.get_running_loop().call_later(0.2, released.set)
    ended = rows(served.data_dir, "SELECT turns, end_reason FROM session WHERE id = ?", session)
    assert ended == [{"turns": 1, "end_reason": ""}]
    calls = rows(served.data_dir, "SELECT actual_calls FROM hold WHERE run = ? AND actual_calls > 0", session)
    assert calls == [{"actual_calls": 1}]
    check_settled(served.data_dir)

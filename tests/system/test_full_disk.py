"""On a full disk writers are told so, readers are served, and all is as before once there is room."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from rlm.v1 import budget_pb2, budget_pb2_grpc, run_pb2, session_pb2

from rlm_server.contexts import local_files, spool
from rlm_server.database import sqlite
from rlm_server.database.engine import Connection, in_savepoint, translated
from tests.servers import Served
from tests.system.books import check_settled, rows
from tests.system.context_calls import ContextCalls, nothing_of_uploads, of_text
from tests.system.stage import Play, code, eventually, refusal
from tests.system.test_quota import quota

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@contextmanager
def full_database(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have every transaction fail as it is committed, as SQLite's do on a full disk, and be undone."""

    def transact(engine: sqlite.SQLite, functions: Sequence[Callable[[Connection], Any]]) -> list[Any]:
        with translated(sqlite.typed):
            engine._writer.execute("BEGIN IMMEDIATE")
            try:
                for function in functions:
                    in_savepoint(engine._writer, function, sqlite.typed)
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            finally:
                engine._writer.execute("ROLLBACK")

    with monkeypatch.context() as patched:
        patched.setattr(sqlite.SQLite, "transact", transact)
        yield


async def test_writers_are_refused_and_readers_served_while_the_database_has_no_room(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(Play(code("print('hello')\nFINAL(context[:3])"))) as served:
        caller, contexts = served.caller, ContextCalls(served.caller)
        budgets = budget_pb2_grpc.BudgetServiceStub(caller.channel)
        kept = (await contexts.send(of_text("a text"))).context_id
        done = await caller.ask(context_id=kept)
        session = await caller.open_session(context_id=kept)
        await caller.turn(session, "n = 1")
        before = await caller.get(done.run.run_id)

        with full_database(monkeypatch):
            for write in (
                lambda: caller.create(context_id=kept),
                lambda: caller.open_session(context_id=kept),
                lambda: contexts.send(of_text("another")),
                lambda: contexts.send(of_text("another", request_id="mine")),
                lambda: contexts.delete(kept),
            ):
                said = await refusal(write())
                assert (said.code, said.reason) == (EXHAUSTED, "DISK_FULL")
                assert "google.rpc.RetryInfo" in said.details
            await caller.turn(session, "n = 2")  # which needs no row, and is paid for once there is room
            assert await caller.get(done.run.run_id) == before
            assert (await caller.ended(done.run.run_id)).events == done.events
            assert (await contexts.read(kept)).text == "a text"
            assert [match.text for match in (await contexts.search(kept, "t.")).matches] == ["te"]
            assert [one.context_id for one in (await contexts.list()).contexts] == [kept]
            asked = session_pb2.GetSessionRequest(session_id=session)
            assert (await caller.sessions.GetSession(asked, metadata=caller.metadata)).session.context_id == kept
            asked_budget = budget_pb2.GetBudgetRequest(account_id=done.run.run_id)
            account = (await budgets.GetBudget(asked_budget, metadata=caller.metadata)).account
            assert account.posted == done.run.spent
            told = await quota(caller)
            assert [told[name].used for name in ("tenant_sessions", "tenant_uploads", "context_bytes")] == [1, 0, 6]

        assert (await caller.turn(session, "n")).printed == "2\n"
        assert (await caller.ask(context_id=kept)).run.answer == "a t"
        assert (await contexts.send(of_text("another", request_id="mine"))).size_bytes == 7
        await caller.delete(await caller.open_session(context_id=kept))
        await caller.delete(session)
        assert len(rows(served.data_dir, "SELECT id FROM run")) == 2
        await eventually(lambda: nothing_of_uploads(served.data_dir))
        told = await quota(caller)
        assert [told[name].used for name in ("tenant_sessions", "tenant_uploads", "context_bytes")] == [0, 0, 13]
    check_settled(served.data_dir)


@pytest.mark.parametrize("place", ["the spool", "the context"])
async def test_an_upload_that_finds_no_room_in_the_middle_leaves_nothing_half_done(
    server: Served, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async with server(Play("")) as served:
        contexts = ContextCalls(served.caller)
        kept = (await contexts.send(of_text("kept"))).context_id
        with monkeypatch.context() as patched:
            if place == "the spool":
                patched.setattr(spool, "_write", full)
            else:
                patched.setattr(local_files.LocalContextFiles, "write", full)
            for sent in (of_text("another"), of_text("another", request_id="mine")):
                said = await refusal(contexts.send(sent))
                assert (said.code, said.reason) == (EXHAUSTED, "DISK_FULL")
            assert (await contexts.read(kept)).text == "kept"
            assert [one.context_id for one in (await contexts.list()).contexts] == [kept]
        received = (await contexts.status("mine")).received_bytes
        whole = of_text("another", request_id="mine")
        again = [whole[0], *([] if received else whole[1:])]
        assert (await contexts.go_on(again)).size_bytes == 7
        await eventually(lambda: nothing_of_uploads(served.data_dir))
        assert {path.name for path in (served.data_dir / "contexts").iterdir()} == {
            one.context_id for one in (await contexts.list()).contexts
        }


async def test_a_run_under_way_when_the_disk_fills_ends_and_the_next_is_served(server: Served) -> None:
    with pytest.MonkeyPatch.context() as patched:
        script = Play(code("FINAL(llm_query('x'))"))
        async with server(script) as served:
            full = full_database(patched)

            def fill(prompt: str) -> str:
                if len(script.subcalls) == 1:
                    full.__enter__()
                return "ok"

            script.sub = fill
            run = await served.caller.create()
            await eventually(lambda: len(script.subcalls) == 1)
            assert (await served.caller.get(run.run_id)).run_id == run.run_id
            said = await refusal(served.caller.create())
            assert said.reason == "DISK_FULL"
            full.__exit__(None, None, None)
            ended = await served.caller.get(run.run_id)
            assert ended.state in (run_pb2.RUN_STATE_RUNNING, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_SUCCEEDED)
            assert (await served.caller.ask()).run.answer == "ok"
            await served.caller.cancel(run.run_id)
    async with server(Play("")) as served:
        again = await served.caller.get(run.run_id)
        assert again.state in (run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_CANCELLED)
    check_settled(served.data_dir)

"""Sessions outlive their server: the next one takes them up as they were, and nothing runs twice."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from rlm.v1 import context_pb2, session_pb2, session_pb2_grpc, types_pb2

from tests.databases import KINDS
from tests.servers import Served, Server
from tests.system.books import check_settled
from tests.system.stage import USD, Caller, Play, refusal

PAUSED, ACTIVE, ENDED = (getattr(session_pb2, f"SESSION_STATE_{name}") for name in ("PAUSED", "ACTIVE", "ENDED"))
MIB = 1 << 20
LOST = session_pb2.SESSION_END_REASON_STATE_LOST


@pytest.fixture(params=KINDS)
def kept_in(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The settings of servers that follow each other, on each kind of database."""
    at = {} if request.param == "sqlite" else {"database_url": request.getfixturevalue("postgres_url")}
    return {"data_dir": tmp_path / "data", **at}


async def session_of(caller: Caller, session_id: str) -> session_pb2.Session:
    request = session_pb2.GetSessionRequest(session_id=session_id)
    found: session_pb2.Session = (await caller.sessions.GetSession(request, metadata=caller.metadata)).session
    return found


async def call(caller: Caller, name: str, request: Any) -> Any:
    return await getattr(caller.sessions, name)(request, metadata=caller.metadata)


async def shows(caller: Caller, session: str, source: str) -> str:
    seen = await caller.turn(session, source)
    assert seen.result.status == session_pb2.TURN_STATUS_OK, seen.result
    return seen.printed.removesuffix("\n")


async def test_a_session_goes_on_after_a_restart(server: Served, kept_in: dict[str, Any]) -> None:
    async with server(Play("", sub=lambda prompt: prompt.upper()), **kept_in) as served:
        caller = served.caller
        context = await caller.upload("one two three")
        session = await caller.open_session(
            context_id=context.context_id, budget=types_pb2.Budget(nano_usd=USD, call_count=3), labels={"a": "b"}
        )
        await caller.turn(session, "words = context.split()\nopen('/tmp/f', 'w').write('kept')\nllm_query('x')", "once")
        endless = caller.execute(session, "print('go', flush=True)\nwhile True: pass", "stopped")
        await endless.read()
        interrupt = session_pb2.InterruptSessionRequest(session_id=session)
        assert (await call(caller, "InterruptSession", interrupt)).interrupted
        before = await session_of(caller, session)
        spent = (await served.running.ledger.balance(session)).posted
        assert before.coverage.fraction == 1
        failed = await caller.turn(session, "1 / 0", "failed")
        undone = await caller.turn(session, "import os; os._exit(1)", "undone")
    async with server(Play("", sub=lambda prompt: prompt.upper()), **kept_in) as served:
        caller = served.caller
        found = await session_of(caller, session)
        assert (found.state, found.coverage, dict(found.labels)) == (PAUSED, before.coverage, {"a": "b"})
        assert (found.budget, found.create_time, found.turn_count) == (before.budget, before.create_time, 4)
        now = (await served.running.ledger.balance(session)).posted  # processor time is booked a little later
        assert (now.nano_usd, now.tokens, now.calls) == (spent.nano_usd, spent.tokens, spent.calls)
        again = await caller.turn(
            session, "words = context.split()\nopen('/tmp/f', 'w').write('kept')\nllm_query('x')", "once"
        )
        assert (again.result.status, again.printed) == (session_pb2.TURN_STATUS_OK, "")
        assert (await caller.turn(session, "1 / 0", "failed")).result == failed.result
        assert (await caller.turn(session, "import os; os._exit(1)", "undone")).result == undone.result
        stopped = await caller.turn(session, "print('go', flush=True)\nwhile True: pass", "stopped")
        assert stopped.result.stop_reason == session_pb2.STOP_REASON_INTERRUPTED
        other = await refusal(caller.turn(session, "2", "once"))
        assert other.reason == "REQUEST_ID_REUSED"
        assert await shows(caller, session, "words, open('/tmp/f').read(), context[4:7]") == repr(
            (["one", "two", "three"], "kept", "two")
        )
        assert (await session_of(caller, session)).state == ACTIVE
        assert await shows(caller, session, "llm_query('y')") == "'Y'"
        assert await shows(caller, session, "llm_query('z')") == "'Z'"
        over = await caller.turn(session, "llm_query('more')")
        assert over.result.error.type == "LimitExceeded", over
        assert (await caller.delete(session)).call_count == 3
    async with server(Play(""), **kept_in) as served:
        ended = await refusal(served.caller.turn(session, "1"))
        assert ended.reason == "SESSION_ENDED"
    if "database_url" not in kept_in:
        check_settled(kept_in["data_dir"])


async def test_what_cannot_go_on_ends_and_says_why(server: Served, tmp_path: Path) -> None:
    settings = {"data_dir": tmp_path / "data"}
    async with server(Play(""), **settings) as served:
        caller = served.caller
        one, two = await caller.upload("one"), await caller.upload("two")
        gone = await caller.open_session(context_id=one.context_id)
        deleted = await caller.open_session(context_id=two.context_id)
        altered, cut, well, older = [await caller.open_session() for _ in range(4)]
        for session in (gone, deleted, altered, cut, well, older):
            await caller.turn(session, "x = 1", "once")
        await caller.contexts.DeleteContext(
            context_pb2.DeleteContextRequest(context_id=two.context_id), metadata=caller.metadata
        )
    folder = tmp_path / "data" / "sessions"
    (folder / f"{gone}.session").unlink()
    data = bytearray((folder / f"{altered}.session").read_bytes())
    data[200] ^= 1
    (folder / f"{altered}.session").write_bytes(data)
    data = bytearray((folder / f"{older}.session").read_bytes())
    data[22:38] = bytes(16)  # the mark of the image
    (folder / f"{older}.session").write_bytes(data)
    whole = (folder / f"{cut}.session").read_bytes()
    (folder / f"{cut}.session").write_bytes(whole[:-3])
    (folder / "ses_nobodys.session").write_bytes(whole)
    async with server(Play(""), **settings) as served:
        caller = served.caller
        for session, said in (
            (gone, "nothing is stored"),
            (deleted, f"its context {two.context_id} was deleted"),
            (older, "another image than 'core' is now"),
        ):
            found = await session_of(caller, session)
            assert (found.state, found.end_reason) == (ENDED, LOST)
            assert said in found.end_message
            assert (await refusal(caller.turn(session, "x"))).reason == "SESSION_ENDED"
        assert (await refusal(caller.turn(altered, "x"))).reason == "SESSION_ENDED"
        found = await session_of(caller, altered)
        assert (found.state, found.end_reason) == (ENDED, LOST)
        assert "altered" in found.end_message
        turn = await caller.turn(cut, "x")
        assert turn.result.error.type == "NameError", "it is as before the turn that was cut"
        assert await shows(caller, well, "x") == "1"
        assert sorted(path.name for path in folder.iterdir()) == sorted(f"{one}.session" for one in (cut, well))
    check_settled(tmp_path / "data")


async def test_limits_of_time_go_on_over_a_restart(server: Served, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data_dir": tmp_path / "data"}
    async with server(Play(""), **settings) as served:
        session = await served.caller.open_session()
    async with server(Play(""), **settings, session_seconds=0.001) as served:
        found = await session_of(served.caller, session)
        assert (found.state, found.end_reason) == (ENDED, session_pb2.SESSION_END_REASON_LIFE_TIME)


async def test_a_session_that_finds_no_room_goes_on_and_ends_with_its_server(server: Served, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data_dir": tmp_path / "data", "stored_bytes": MIB}
    async with server(Play(""), **settings) as served:
        caller = served.caller
        large, small = [await caller.open_session() for _ in range(2)]
        await caller.turn(large, "import os\nblock = os.urandom(3 << 20)\nx = 1")
        await caller.turn(small, "x = 1")
        assert await shows(caller, large, "x += 1; x, len(block)") == repr((2, 3 * MIB))
        assert not (await session_of(caller, large)).kept
        assert (await session_of(caller, small)).kept
        for name, request in (
            ("ForkSession", session_pb2.ForkSessionRequest(session_id=large)),
            ("CreateSnapshot", session_pb2.CreateSnapshotRequest(session_id=large)),
            ("PauseSession", session_pb2.PauseSessionRequest(session_id=large)),
        ):
            full = await refusal(call(caller, name, request))
            assert (full.reason, full.code) == ("TOO_MANY_SESSIONS", grpc.StatusCode.RESOURCE_EXHAUSTED), name
            assert "stored_bytes" in full.message
        too_large = await refusal(imported(served, bytes(2 * MIB), "0" * 64))
        assert too_large.reason == "TOO_MANY_SESSIONS"
        assert await shows(caller, large, "x") == "2"
    async with server(Play(""), **settings) as served:
        found = await session_of(served.caller, large)
        assert (found.state, found.end_reason) == (ENDED, session_pb2.SESSION_END_REASON_RESTART)
        assert "could not be stored" in found.end_message
        assert await shows(served.caller, small, "x") == "1"


# ---- pausing and forking ---------------------------------------------------------------------------------------------


async def test_a_session_is_paused_and_its_next_turn_wakes_it(server: Served) -> None:
    async with server(Play("")) as served:
        caller = served.caller
        session = await caller.open_session()
        await caller.turn(session, "x = 5")
        pause = session_pb2.PauseSessionRequest(session_id=session, request_id="p")
        assert (await call(caller, "PauseSession", pause)).session.state == PAUSED
        assert await shows(caller, session, "x") == "5"
        assert (await session_of(caller, session)).state == ACTIVE
        assert (await call(caller, "PauseSession", pause)).session.state == ACTIVE, "a repeated request pauses nothing"
        assert (await refusal(call(await served.tenant("other"), "PauseSession", pause))).reason == "NOT_FOUND"


async def test_forks_have_accounts_of_their_own_and_outlive_the_server(server: Served, kept_in: dict[str, Any]) -> None:
    async with server(Play("", sub=lambda prompt: "ok"), **kept_in) as served:
        caller = served.caller
        context = await caller.upload("one two three")
        session = await caller.open_session(context_id=context.context_id, budget=types_pb2.Budget(call_count=2))
        await caller.turn(session, "x = [1]\nllm_query('a')")
        asked = session_pb2.ForkSessionRequest(session_id=session, count=3, request_id="f", labels={"fork": "yes"})
        forks = [one.session_id for one in (await call(caller, "ForkSession", asked)).sessions]
        assert len({session, *forks}) == 4
        assert [one.session_id for one in (await call(caller, "ForkSession", asked)).sessions] == forks
        for number, fork in enumerate(forks):
            assert await shows(caller, fork, f"x.append({number}); x, context[:3]") == repr(([1, number], "one"))
        assert await shows(caller, forks[0], "llm_query('b'), llm_query('c')") == "('ok', 'ok')"
        assert (await served.running.ledger.balance(forks[0])).posted.calls == 2
        assert (await served.running.ledger.balance(session)).posted.calls == 1
        found = await session_of(caller, forks[1])
        assert (found.parent_id, dict(found.labels), found.budget.call_count) == (session, {"fork": "yes"}, 2)
        await caller.delete(session)
    async with server(Play(""), **kept_in) as served:
        assert await shows(served.caller, forks[2], "x, context[:3]") == repr(([1, 2], "one"))
        for fork in forks:
            await served.caller.delete(fork)
    if "database_url" not in kept_in:
        check_settled(kept_in["data_dir"])


async def test_forks_are_bounded_and_made_all_or_none(server: Served) -> None:
    async with server(Play(""), tenant_sessions=3) as served:
        caller = served.caller
        session = await caller.open_session()
        await caller.turn(session, "x = 1")
        too_many = await refusal(
            call(caller, "ForkSession", session_pb2.ForkSessionRequest(session_id=session, count=3))
        )
        assert (too_many.reason, too_many.code) == ("TOO_MANY_SESSIONS", grpc.StatusCode.RESOURCE_EXHAUSTED)
        for count in (-1, 65):
            wrong = session_pb2.ForkSessionRequest(session_id=session, count=count)
            assert (await refusal(call(caller, "ForkSession", wrong))).code is grpc.StatusCode.INVALID_ARGUMENT
        assert len(list((served.data_dir / "sessions").iterdir())) == 1
        made = await call(caller, "ForkSession", session_pb2.ForkSessionRequest(session_id=session, count=2))
        assert len(made.sessions) == 2


# ---- snapshots -------------------------------------------------------------------------------------------------------


async def snap(caller: Caller, session: str, **more: Any) -> session_pb2.Snapshot:
    request = session_pb2.CreateSnapshotRequest(session_id=session, **more)
    made: session_pb2.Snapshot = (await call(caller, "CreateSnapshot", request)).snapshot
    return made


async def test_snapshots_are_made_listed_begun_from_and_deleted(server: Served, kept_in: dict[str, Any]) -> None:
    async with server(Play(""), **kept_in) as served:
        caller = served.caller
        context = await caller.upload("one two three")
        session = await caller.open_session(context_id=context.context_id)
        await caller.turn(session, "x = 1\nlen(context)")
        first = await snap(caller, session, name="first", labels={"n": "1"}, request_id="s")
        assert await snap(caller, session, name="first", labels={"n": "1"}, request_id="s") == first
        assert (first.session_id, first.image, first.context_id) == (session, "core", context.context_id)
        await caller.turn(session, "x = 2")
        second = await snap(caller, session, name="second")
        await caller.delete(session)
    async with server(Play(""), **kept_in) as served:
        caller = served.caller
        everything = session_pb2.ListSnapshotsRequest(page_size=1)
        page = await call(caller, "ListSnapshots", everything)
        assert list(page.snapshots) == [second]
        everything.page_token = page.next_page_token
        assert list((await call(caller, "ListSnapshots", everything)).snapshots) == [first]
        labelled = await call(caller, "ListSnapshots", session_pb2.ListSnapshotsRequest(labels={"n": "1"}))
        assert list(labelled.snapshots) == [first]
        for number, snapshot in enumerate((first, second), 1):
            begun = await caller.open_session(snapshot_id=snapshot.snapshot_id)
            assert await shows(caller, begun, "x, context[:3]") == repr((number, "one"))
            found = await session_of(caller, begun)
            assert (found.snapshot_id, found.coverage.fraction) == (snapshot.snapshot_id, 1)
        for wrong in ({"image": "data"}, {"context_id": context.context_id}):
            refused = await refusal(caller.open_session(snapshot_id=first.snapshot_id, **wrong))
            assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        delete = session_pb2.DeleteSnapshotRequest(snapshot_id=first.snapshot_id, request_id="d")
        await call(caller, "DeleteSnapshot", delete)
        await call(caller, "DeleteSnapshot", delete)
        gone = await refusal(caller.open_session(snapshot_id=first.snapshot_id))
        assert gone.reason == "NOT_FOUND"
        assert not (served.data_dir / "sessions" / f"{first.snapshot_id}.snapshot").exists()
        await caller.contexts.DeleteContext(
            context_pb2.DeleteContextRequest(context_id=context.context_id), metadata=caller.metadata
        )
        without = await refusal(caller.open_session(snapshot_id=second.snapshot_id))
        assert without.reason == "NOT_FOUND"


async def test_snapshots_are_their_tenants_alone(server: Served) -> None:
    async with server(Play(""), tenant_snapshots=2) as served:
        caller, other = served.caller, await served.tenant("other")
        session = await caller.open_session()
        made = [await snap(caller, session) for _ in range(2)]
        too_many = await refusal(snap(caller, session))
        assert (too_many.reason, too_many.code) == ("TOO_MANY_SESSIONS", grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert list((await call(other, "ListSnapshots", session_pb2.ListSnapshotsRequest())).snapshots) == []
        for request in (
            session_pb2.DeleteSnapshotRequest(snapshot_id=made[0].snapshot_id),
            session_pb2.CreateSnapshotRequest(session_id=session),
            session_pb2.ForkSessionRequest(session_id=session),
        ):
            name = type(request).__name__.removesuffix("Request")
            assert (await refusal(call(other, name, request))).reason == "NOT_FOUND"
        assert (await refusal(other.open_session(snapshot_id=made[0].snapshot_id))).reason == "NOT_FOUND"


# ---- elsewhere and back ----------------------------------------------------------------------------------------------


async def exported(caller: Caller, snapshot: str, offset: int = 0) -> tuple[session_pb2.SnapshotFile, bytes]:
    request = session_pb2.ExportSnapshotRequest(snapshot_id=snapshot, offset=offset)
    data, header = b"", session_pb2.SnapshotFile()
    async for message in caller.sessions.ExportSnapshot(request, metadata=caller.metadata):
        assert message.ByteSize() <= 1 << 20
        if message.WhichOneof("part") == "header":
            header = message.header
        else:
            assert message.chunk.offset == offset + len(data)
            data += message.chunk.data
    return header, data


def messages_of(data: bytes, sha256: str, size: int, **named: Any) -> Iterator[session_pb2.ImportSnapshotRequest]:
    header = session_pb2.ImportSnapshotHeader(size_bytes=size, sha256=sha256, **named)
    yield session_pb2.ImportSnapshotRequest(header=header)
    for at in range(0, len(data), 200_000):
        chunk = session_pb2.SnapshotChunk(offset=at, data=data[at : at + 200_000])
        yield session_pb2.ImportSnapshotRequest(chunk=chunk)


async def imported(
    served: Server, data: bytes, sha256: str, size: int = 0, *, by: Caller | None = None, **named: Any
) -> session_pb2.Snapshot:
    """Import a file, by gRPC's other client, for the reason that `Caller.send_parts` has."""
    metadata = (by or served.caller).metadata

    def send() -> session_pb2.Snapshot:
        with grpc.insecure_channel(served.running.address) as channel:
            sessions: Any = session_pb2_grpc.SessionServiceStub(channel)
            messages = messages_of(data, sha256, size or len(data), **named)
            made: session_pb2.Snapshot = sessions.ImportSnapshot(messages, metadata=metadata).snapshot
            return made

    return await asyncio.to_thread(send)


async def a_snapshot(
    served: Server, code: str = "x = 5\nimport os\nblock = os.urandom(900_000)"
) -> session_pb2.Snapshot:
    session = await served.caller.open_session()
    await served.caller.turn(session, code)
    return await snap(served.caller, session, name="mine")


async def test_a_snapshot_goes_elsewhere_and_comes_back(server: Served) -> None:
    async with server(Play("")) as served:
        caller, made = served.caller, await a_snapshot(served)
        header, data = await exported(caller, made.snapshot_id)
        assert (header.size_bytes, header.snapshot) == (len(data), made)
        assert (await exported(caller, made.snapshot_id, 300_000))[1] == data[300_000:]
        await call(caller, "DeleteSnapshot", session_pb2.DeleteSnapshotRequest(snapshot_id=made.snapshot_id))
        back = await imported(served, data, header.sha256, request_id="i", labels={"a": "b"})
        assert await imported(served, data, header.sha256, request_id="i", labels={"a": "b"}) == back
        assert (back.name, back.image, back.session_id, dict(back.labels)) == ("mine", "core", "", {"a": "b"})
        begun = await caller.open_session(snapshot_id=back.snapshot_id)
        assert await shows(caller, begun, "x, len(block)") == "(5, 900000)"


async def test_hostile_files_are_refused_and_leave_nothing(server: Served) -> None:
    async with server(Play("")) as served:
        caller, made = served.caller, await a_snapshot(served)
        _, data = await exported(caller, made.snapshot_id)
        folder = served.data_dir / "sessions"
        before = sorted(folder.iterdir())
        changed = bytearray(data)
        changed[len(data) // 2] ^= 1
        hostile = [b"x", data[:-1], data + b"\0", bytes(changed), data[:54], b"PK\3\4" + data[4:], data + data]
        for one in hostile:
            refused = await refusal(imported(served, one, hashlib.sha256(one).hexdigest()))
            assert refused.reason == "SNAPSHOT_REFUSED", one[:9]
        refused = await refusal(imported(served, data, "0" * 64))
        assert refused.reason == "SNAPSHOT_REFUSED"
        other = await served.tenant("other")
        foreign = await refusal(imported(served, data, hashlib.sha256(data).hexdigest(), by=other))
        assert foreign.reason == "SNAPSHOT_REFUSED"
        assert "somebody else" in foreign.message
        longer = await refusal(imported(served, data, hashlib.sha256(data).hexdigest(), size=100))
        assert longer.code is grpc.StatusCode.INVALID_ARGUMENT
        assert sorted(folder.iterdir()) == before


async def test_a_stalled_import_ends_and_leaves_nothing(server: Served) -> None:
    async with server(Play(""), upload_idle_seconds=0.2) as served:

        async def messages() -> Any:
            header = session_pb2.ImportSnapshotHeader(size_bytes=10, sha256="0" * 64)
            yield session_pb2.ImportSnapshotRequest(header=header)
            await asyncio.Event().wait()

        stalled = await refusal(served.caller.sessions.ImportSnapshot(messages(), metadata=served.caller.metadata))
        assert stalled.reason == "UPLOAD_STALLED"
        assert list((served.data_dir / "sessions").iterdir()) == []
